// NMS of a few labels, by all of the GPU.
#pragma once

#include "nms_suppress.cuh"

namespace carafe {

namespace {  // of nms.cu alone

/// Candidates above the threshold by rank, and the bits of the better ones that suppress each.
struct Spread {
    PackedBox* boxes;
    std::uint64_t* keys;
    std::uint64_t* suppressors;
    std::int32_t* counts;
};

/// Shared memory of walk_suppressors.
struct Walk {
    Tile tile;
    std::uint64_t kept[kSpreadKeys / kSpreadTile];
    std::uint32_t struck[kSpreadTile];
};

/// Block x sorts list x and puts its boxes in order.
__global__ void __launch_bounds__(kThreads)
    rank_spread(NmsParams p, Spread spread, float const* boxes, float const* scores) {
    auto* const keys = shared_memory<std::uint64_t>();
    std::uint32_t& counter = *reinterpret_cast<std::uint32_t*>(keys + kSpreadKeys);
    std::int64_t const list = blockIdx.x;
    std::int64_t const start = list * p.candidates;
    std::uint32_t const count = rank_scores(
        scores + start, static_cast<std::uint32_t>(p.candidates),
        static_cast<std::uint32_t>(list % p.labels * p.candidates), p.score_threshold, keys,
        counter);
    float const* const own = boxes + list / p.labels * p.labels * p.candidates * 4;
    for (std::uint32_t i = threadIdx.x; i < count; i += kThreads) {
        float const* const at = own + std::int64_t{index_of(keys[i])} * 4;
        spread.keys[start + i] = keys[i];
        spread.boxes[start + i] = {{at[0], at[1], at[2], at[3]}};
    }
    if (threadIdx.x == 0) spread.counts[list] = static_cast<std::int32_t>(count);
}

/// Block (x, y) compares a tile of list y, a thread a candidate, with an earlier tile or itself.
__global__ void __launch_bounds__(kSpreadTile)
    mark_suppressors(NmsParams p, Spread spread, std::int64_t lists) {
    auto* const others = shared_memory<SizedBox>();
    auto const words = static_cast<std::uint32_t>(spread_words(p));
    for (std::int64_t list = blockIdx.y; list < lists; list += gridDim.y) {
        auto const count = static_cast<std::uint32_t>(spread.counts[list]);
        std::int64_t const start = list * p.candidates;
        for (std::uint32_t pair = blockIdx.x; pair < words * (words + 1) / 2; pair += gridDim.x) {
            std::uint32_t earlier = pair, tile = 0;
            for (; earlier > tile; earlier -= tile) ++tile;
            std::uint32_t const other = earlier * kSpreadTile + threadIdx.x;
            std::uint32_t const rank = tile * kSpreadTile + threadIdx.x;
            __syncthreads();
            if (other < count) others[threadIdx.x] = sized(spread.boxes[start + other]);
            __syncthreads();
            if (rank >= count) continue;
            SizedBox const own = sized(spread.boxes[start + rank]);
            // Of an earlier tile all; of its own those before it.
            std::uint32_t const end = earlier == tile ? threadIdx.x : kSpreadTile;
            std::uint64_t bits = 0;
            for (std::uint32_t i = 0; i < end; ++i) {
                float const overlap = intersection(others[i].box, own.box);
                if (iou_exceeds(overlap, others[i].area, own.area, p.iou_threshold)) {
                    bits |= std::uint64_t{1} << i;
                }
            }
            spread.suppressors[(start + rank) * words + earlier] = bits;
        }
    }
}

/// Block x keeps greedily from list x, tile by tile: a candidate is struck by the kept ones of the
/// tiles before, then the tile is settled.
__global__ void __launch_bounds__(kSmallThreads)
    walk_suppressors(NmsParams p, Lists lists, Spread spread) {
    constexpr std::uint32_t kParts = kSmallThreads / kSpreadTile;
    constexpr std::uint32_t kOwn = kSpreadKeys / kSpreadTile / kParts;
    Walk& walk = *shared_memory<Walk>();
    std::int64_t const list = blockIdx.x;
    std::int64_t const start = list * p.candidates;
    auto const count = static_cast<std::uint32_t>(spread.counts[list]);
    std::uint32_t const words = static_cast<std::uint32_t>(spread_words(p));
    std::uint32_t const column = threadIdx.x % kSpreadTile;
    std::uint32_t const part = threadIdx.x / kSpreadTile;
    std::int32_t const capacity = most_kept(p);
    std::uint64_t* const kept_keys = lists.keys + list * capacity;
    std::int32_t kept = 0;
    // Words of a tile do not depend on what is kept, so they come before they are needed.
    std::uint64_t next[kOwn];
    auto const load = [&](std::uint32_t tile) {
        std::uint32_t const rank = tile * kSpreadTile + column;
#pragma unroll
        for (std::uint32_t i = 0; i < kOwn; ++i) {
            std::uint32_t const word = part + i * kParts;
            bool const exists = rank < count && word <= tile;
            next[i] = exists ? spread.suppressors[(start + rank) * words + word] : 0;
        }
    };
    load(0);
    for (std::uint32_t tile = 0; tile * kSpreadTile < count && kept < capacity; ++tile) {
        std::uint32_t const rank = tile * kSpreadTile + column;
        if (part == 0) walk.struck[column] = rank < count ? 0 : 1;
        __syncthreads();
        std::uint64_t hit = 0, own = 0;
#pragma unroll
        for (std::uint32_t i = 0; i < kOwn; ++i) {
            std::uint32_t const word = part + i * kParts;
            if (word < tile) hit |= next[i] & walk.kept[word];
            if (word == tile) own = next[i];
        }
        load(tile + 1);
        if (hit != 0) atomicAdd(&walk.struck[column], 1u);
        if (tile % kParts == part) walk.tile.suppressors[column] = own;
        __syncthreads();
        if (part == 0 && walk.struck[column] != 0) {
            walk.tile.suppressors[column] |= std::uint64_t{1} << column;
        }
        __syncthreads();
        std::uint64_t const chosen = choose(walk.tile);
        if (threadIdx.x == 0) walk.kept[tile] = chosen;
        if (part == 0 && (chosen >> column & 1u) != 0) {
            std::uint64_t const before = chosen & ((std::uint64_t{1} << column) - 1);
            std::int32_t const at = kept + __popcll(before);
            if (at < capacity) kept_keys[at] = spread.keys[start + rank];
        }
        std::int32_t const all = kept + __popcll(chosen);
        kept = all < capacity ? all : capacity;
        __syncthreads();
    }
    if (threadIdx.x == 0) lists.counts[list] = kept;
}

/// All pairs are compared by all of the GPU, and one block a label goes through the bits.
cudaError_t suppress_spread(
    NmsParams const& p, Lists const& lists, Spread const& spread, float const* boxes,
    float const* scores, cudaStream_t stream) {
    std::int64_t const count = std::int64_t{p.batch} * p.labels;
    dim3 const grid(static_cast<std::uint32_t>(count));
    cudaError_t error = launch(
        rank_spread, grid, dim3(kThreads), kSpreadKeys * sizeof(std::uint64_t) + 16, stream, p,
        spread, boxes, scores);
    if (error != cudaSuccess) return error;
    std::int64_t const tiles = spread_words(p);
    error = launch(
        mark_suppressors, grid_of(tiles * (tiles + 1) / 2, 1, count), dim3(kSpreadTile),
        kSpreadTile * sizeof(SizedBox), stream, p, spread, count);
    if (error != cudaSuccess) return error;
    return launch(
        walk_suppressors, grid, dim3(kSmallThreads), sizeof(Walk), stream, p, lists, spread);
}

}  // namespace

}  // namespace carafe
