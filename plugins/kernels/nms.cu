// Batched NMS in two kernels, exact for any number of candidates a label.
//
// suppress_labels, one block a label of an image: collects the candidates above the score threshold
// as 64-bit keys (score, index), sorts them (bitonic; in shared memory up to 4,096 of them, else in
// the workspace), then goes through them in tiles of 64. A tile is compared with all boxes kept so
// far, then with itself as a matrix of bits, which one thread resolves in order. It ends with the
// label's max_output-th kept box. Nothing is quadratic in memory, and no order of atomics shows in
// the result, because keys are distinct and sorted.
//
// rank_kept, one block a label of an image: the rank of a kept box among those of all labels is the
// number of better keys in each label's sorted list, found by binary search, and tells where its
// index goes.
//
// Registers (CUDA 13.0, sm_75 / sm_120): suppress_labels 45 / 55, rank_kept 33 / 34, no spills.
// Speed: not measured yet.
#include "cuda_kernels.h"
#include "launch.cuh"
#include "nms_geometry.h"
#include "nms_workspace.h"
#include "numeric.cuh"

namespace carafe {

namespace {

constexpr std::uint32_t kThreads = 512;
constexpr std::uint32_t kRankThreads = 256;
constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kAllLanes = 0xffffffffu;
constexpr std::uint32_t kTile = 64;

using PackedBox = Pack<float, 4>;

/// Pointers into the workspace.
struct Lists {
    std::uint64_t* keys;
    PackedBox* kept_boxes;
    std::uint64_t* kept_keys;
    std::int32_t* counts;
    std::int64_t keys_per_label;
};

Lists lists_in(void* workspace, NmsParams const& p) {
    NmsWorkspace const layout(p);
    auto* const bytes = static_cast<unsigned char*>(workspace);
    return {
        reinterpret_cast<std::uint64_t*>(bytes + layout.keys),
        reinterpret_cast<PackedBox*>(bytes + layout.kept_boxes),
        reinterpret_cast<std::uint64_t*>(bytes + layout.kept_keys),
        reinterpret_cast<std::int32_t*>(bytes + layout.counts), layout.keys_per_label};
}

/// Shared memory of suppress_labels, behind the keys.
struct Tile {
    Box boxes[kTile];
    float areas[kTile];
    std::uint32_t suppressed[kTile][2];  ///< row i: bits of the later candidates that i suppresses
    std::uint32_t dead[2];               ///< suppressed by boxes of earlier tiles
    std::uint32_t chosen[2];
    std::uint32_t candidates;
};

__device__ bool suppresses(
    Box const& kept, float kept_area, Box const& other, float other_area, float threshold) {
    float const overlap = intersection(kept, other);
    // Without overlap the IoU is zero or NaN; most pairs spare the division.
    return overlap > 0.0f && iou_exceeds(overlap, kept_area, other_area, threshold);
}

/// Sorts `size` keys ascending; `size` is a power of two. All threads of the block call it after a
/// barrier and leave it with one.
__device__ void bitonic_sort(std::uint64_t* keys, std::uint32_t size) {
    for (std::uint32_t run = 1; run < size; run *= 2) {
        for (std::uint32_t step = run; step > 0; step /= 2) {
            for (std::uint32_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                std::uint32_t const low = 2 * pair - (pair & (step - 1));
                std::uint32_t const high = low + step;
                bool const ascending = (low & (2 * run)) == 0;
                std::uint64_t const a = keys[low];
                std::uint64_t const b = keys[high];
                if ((a > b) == ascending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

/// The label's sorted keys, in shared memory if they fit, and their number.
__device__ std::uint64_t* rank_candidates(
    NmsParams const& p, float const* scores, std::uint32_t first_index, std::uint64_t* shared_keys,
    std::uint32_t shared_capacity, std::uint64_t* spare_keys, Tile& tile, std::uint32_t& count) {
    auto const candidates = static_cast<std::uint32_t>(p.candidates);
    if (threadIdx.x == 0) tile.candidates = 0;
    __syncthreads();
    std::uint32_t mine = 0;
    for (std::uint32_t i = threadIdx.x; i < candidates; i += kThreads) {
        mine += scores[i] > p.score_threshold ? 1 : 0;
    }
    std::uint32_t at = mine > 0 ? atomicAdd(&tile.candidates, mine) : 0;
    __syncthreads();
    count = tile.candidates;

    std::uint32_t size = 1;
    while (size < count) size *= 2;
    std::uint64_t* const keys = size <= shared_capacity ? shared_keys : spare_keys;
    for (std::uint32_t i = threadIdx.x; i < candidates; i += kThreads) {
        float const score = scores[i];
        if (score > p.score_threshold) keys[at++] = ranking_key(score, first_index + i);
    }
    for (std::uint32_t i = count + threadIdx.x; i < size; i += kThreads) keys[i] = kNoKey;
    __syncthreads();
    bitonic_sort(keys, size);
    return keys;
}

/// Marks the tile's candidates that one of the boxes kept so far suppresses.
__device__ void strike_by_kept(
    Tile& tile, std::uint32_t tile_size, PackedBox const* kept_boxes, std::int32_t kept,
    float threshold) {
    std::uint32_t const column = threadIdx.x % kTile;
    bool struck = false;
    if (column < tile_size) {
        Box const box = tile.boxes[column];
        float const area = tile.areas[column];
        auto k = static_cast<std::int32_t>(threadIdx.x / kTile);
        for (; k < kept && !struck; k += kThreads / kTile) {
            PackedBox const pack = kept_boxes[k];
            Box const other{pack.values[0], pack.values[1], pack.values[2], pack.values[3]};
            struck = suppresses(other, area_of(other), box, area, threshold);
        }
    }
    std::uint32_t const bits = __ballot_sync(kAllLanes, struck);
    if (threadIdx.x % kWarp == 0 && bits != 0) atomicOr(&tile.dead[column / kWarp], bits);
}

/// Compares the tile's candidates with the later ones; a warp takes half a row.
__device__ void compare_tile(Tile& tile, std::uint32_t tile_size, float threshold) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    for (std::uint32_t at = threadIdx.x / kWarp; at < 2 * kTile; at += kThreads / kWarp) {
        std::uint32_t const row = at / 2;
        std::uint32_t const column = at % 2 * kWarp + lane;
        bool hit = false;
        if (row < column && column < tile_size) {
            hit = suppresses(
                tile.boxes[row], tile.areas[row], tile.boxes[column], tile.areas[column],
                threshold);
        }
        std::uint32_t const bits = __ballot_sync(kAllLanes, hit);
        if (lane == 0) tile.suppressed[row][at % 2] = bits;
    }
}

__device__ std::uint64_t joined(std::uint32_t const* halves) {
    return std::uint64_t{halves[1]} << 32 | halves[0];
}

/// Greedy choice among the tile's candidates, in order; one thread.
__device__ void choose(Tile& tile, std::uint32_t tile_size) {
    std::uint64_t alive = ~joined(tile.dead);
    if (tile_size < kTile) alive &= (std::uint64_t{1} << tile_size) - 1;
    std::uint64_t chosen = 0;
    while (alive != 0) {
        int const row = __ffsll(static_cast<long long>(alive)) - 1;
        std::uint64_t const bit = std::uint64_t{1} << row;
        chosen |= bit;
        alive &= ~(joined(tile.suppressed[row]) | bit);
    }
    tile.chosen[0] = static_cast<std::uint32_t>(chosen);
    tile.chosen[1] = static_cast<std::uint32_t>(chosen >> 32);
}

__global__ void __launch_bounds__(kThreads) suppress_labels(
    NmsParams p, Lists lists, float const* boxes, float const* scores,
    std::uint32_t shared_capacity) {
    std::int64_t const list = blockIdx.x;
    std::int64_t const image = list / p.labels;
    std::int64_t const candidates = p.candidates;
    auto const first_index = static_cast<std::uint32_t>(list % p.labels * candidates);
    std::int32_t const capacity = most_kept(p);
    PackedBox* const kept_boxes = lists.kept_boxes + list * capacity;
    std::uint64_t* const kept_keys = lists.kept_keys + list * capacity;
    boxes += image * p.labels * candidates * 4;

    auto* const shared_keys = shared_memory<std::uint64_t>();
    Tile& tile = *reinterpret_cast<Tile*>(shared_keys + shared_capacity);
    std::uint32_t count = 0;
    std::uint64_t const* const keys = rank_candidates(
        p, scores + list * candidates, first_index, shared_keys, shared_capacity,
        lists.keys + list * lists.keys_per_label, tile, count);

    std::int32_t kept = 0;
    for (std::uint32_t first = 0; first < count && kept < capacity; first += kTile) {
        std::uint32_t const tile_size = count - first < kTile ? count - first : kTile;
        if (threadIdx.x < tile_size) {
            float const* const at = boxes + std::int64_t{index_of(keys[first + threadIdx.x])} * 4;
            Box const box{at[0], at[1], at[2], at[3]};
            tile.boxes[threadIdx.x] = box;
            tile.areas[threadIdx.x] = area_of(box);
        }
        if (threadIdx.x < 2) tile.dead[threadIdx.x] = 0;
        __syncthreads();
        strike_by_kept(tile, tile_size, kept_boxes, kept, p.iou_threshold);
        compare_tile(tile, tile_size, p.iou_threshold);
        __syncthreads();
        if (threadIdx.x == 0) choose(tile, tile_size);
        __syncthreads();

        std::uint64_t const chosen = joined(tile.chosen);
        if (threadIdx.x < tile_size && (chosen >> threadIdx.x & 1u) != 0) {
            std::uint64_t const before = chosen & ((std::uint64_t{1} << threadIdx.x) - 1);
            std::int32_t const at = kept + __popcll(before);
            if (at < capacity) {
                Box const box = tile.boxes[threadIdx.x];
                kept_boxes[at] = {{box.x1, box.y1, box.x2, box.y2}};
                kept_keys[at] = keys[first + threadIdx.x];
            }
        }
        std::int32_t const all = kept + __popcll(chosen);
        kept = all < capacity ? all : capacity;
        // The next tile's first barrier serves this one too: until then a thread touches only what
        // no other reads.
    }
    if (threadIdx.x == 0) lists.counts[list] = kept;
}

/// How many of `count` ascending keys are below `key`.
__device__ std::int32_t keys_below(
    std::uint64_t const* keys, std::int32_t count, std::uint64_t key) {
    std::int32_t low = 0;
    std::int32_t high = count;
    while (low < high) {
        std::int32_t const middle = low + (high - low) / 2;
        if (keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

__global__ void __launch_bounds__(kRankThreads) rank_kept(
    NmsParams p, Lists lists, std::uint32_t blocks_per_image, std::int32_t* num_dets,
    std::int64_t* indices) {
    std::int64_t const image = blockIdx.x / blocks_per_image;
    auto const label = static_cast<std::int32_t>(blockIdx.x % blocks_per_image);
    std::int32_t const capacity = most_kept(p);
    std::uint64_t const* const kept_keys = lists.kept_keys + image * p.labels * capacity;
    std::int32_t const* const counts = lists.counts + image * p.labels;
    indices += image * p.max_output;

    std::int32_t found = 0;
    for (std::int32_t other = 0; other < p.labels && found < p.max_output; ++other) {
        std::int32_t const room = p.max_output - found;
        found += counts[other] < room ? counts[other] : room;
    }
    if (label == 0 && threadIdx.x == 0) num_dets[image] = found;
    // The image's blocks share out the rows that stay empty.
    std::int64_t const stride = std::int64_t{blocks_per_image} * kRankThreads;
    std::int64_t row = found + std::int64_t{label} * kRankThreads + threadIdx.x;
    for (; row < p.max_output; row += stride) indices[row] = -1;

    if (p.labels == 0) return;
    std::uint64_t const* const own = kept_keys + std::int64_t{label} * capacity;
    for (std::uint32_t k = threadIdx.x; k < static_cast<std::uint32_t>(counts[label]);
         k += kRankThreads) {
        std::uint64_t const key = own[k];
        auto rank = static_cast<std::int32_t>(k);
        for (std::int32_t other = 0; other < p.labels && rank < p.max_output; ++other) {
            if (other == label) continue;
            rank += keys_below(kept_keys + std::int64_t{other} * capacity, counts[other], key);
        }
        if (rank < p.max_output) indices[rank] = index_of(key);
    }
}

}  // namespace

cudaError_t launch_nms(
    NmsParams const& p, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, void* workspace, cudaStream_t stream) {
    if (p.batch == 0) return cudaSuccess;
    Lists const lists = lists_in(workspace, p);
    auto const blocks = static_cast<std::uint32_t>(p.batch) * static_cast<std::uint32_t>(p.labels);
    if (blocks > 0) {
        std::int64_t const needed = power_of_two_from(p.candidates);
        auto const capacity =
            static_cast<std::uint32_t>(needed < kSharedKeys ? needed : kSharedKeys);
        cudaError_t const error = launch(
            suppress_labels, dim3(blocks), dim3(kThreads),
            capacity * sizeof(std::uint64_t) + sizeof(Tile), stream, p, lists, boxes, scores,
            capacity);
        if (error != cudaSuccess) return error;
    }
    std::uint32_t const blocks_per_image =
        p.labels > 0 ? static_cast<std::uint32_t>(p.labels) : std::uint32_t{1};
    return launch(
        rank_kept, dim3(static_cast<std::uint32_t>(p.batch) * blocks_per_image), dim3(kRankThreads),
        std::size_t{0}, stream, p, lists, blocks_per_image, num_dets, indices);
}

}  // namespace carafe
