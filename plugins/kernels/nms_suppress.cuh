// NMS: a block goes through a label, or a window of it, in tiles.
#pragma once

#include "nms_sort.cuh"

namespace carafe {

namespace {  // of nms.cu alone

constexpr std::uint32_t kTile = 64;
constexpr std::uint32_t kColumns = kTile / kWarps;
/// A long label is suppressed in windows of this many candidates, and
constexpr std::int64_t kFirstWindow = 1024;
/// as many times more at a time.
constexpr std::int64_t kWindowGrowth = 4;
/// Candidates of a block of strike_keys().
constexpr std::uint32_t kStruck = kSmallThreads / kWarp * kColumns;

/// Shared memory of suppress_labels, before the keys.
struct Tile {
    PackedBox boxes[kTile];
    /// Bits of the earlier candidates that suppress this one; its own: an earlier tile's does.
    std::uint64_t suppressors[kTile];
    std::uint32_t counters[kWarps];
};

struct SizedBox {
    Box box;
    float area;
};

__device__ SizedBox sized(PackedBox const& pack) {
    Box const box{pack.values[0], pack.values[1], pack.values[2], pack.values[3]};
    return {box, area_of(box)};
}

__device__ std::uint64_t joined(std::uint32_t low, std::uint32_t high) {
    return std::uint64_t{high} << 32 | low;
}

/// As intersection(), but ignores NaN, since the union is NaN then: one instruction a bound.
__device__ float overlap_of(Box const& kept, Box const& other) {
    float const width = fminf(kept.x2, other.x2) - fmaxf(kept.x1, other.x1);
    float const height = fminf(kept.y2, other.y2) - fmaxf(kept.y1, other.y1);
    return fmaxf(width, 0.0f) * fmaxf(height, 0.0f);
}

/// A little less than the threshold; far less than any rounding of an IoU could make up for.
__device__ float almost(float threshold) {
    return threshold >= 0x1p-60f ? threshold * (1.0f - 0x1p-20f) : 0.0f;
}

/// Bits of the columns from `First` on whose IoU with `kept` may exceed the threshold that
/// `lowest` is almost: without a division, and with NaN, infinity and tiny unions among them.
template <std::uint32_t First = 0>
__device__ std::uint32_t near_columns(
    SizedBox const& kept, SizedBox const (&columns)[kColumns], float lowest) {
    std::uint32_t bits = 0;
#pragma unroll
    for (std::uint32_t c = First; c < kColumns; ++c) {
        float const overlap = overlap_of(kept.box, columns[c].box);
        float const both = kept.area + columns[c].area - overlap;
        if (!(overlap < fmaf(lowest, both, -0x1p-120f))) bits |= 1u << c;
    }
    return bits;
}

/// Those of the columns in `bits` that `kept` suppresses.
__device__ std::uint32_t suppressed_columns(
    SizedBox const& kept, SizedBox const (&columns)[kColumns], float threshold,
    std::uint32_t bits) {
#pragma unroll
    for (std::uint32_t c = 0; c < kColumns; ++c) {
        float const overlap = overlap_of(kept.box, columns[c].box);
        if (!iou_exceeds(overlap, kept.area, columns[c].area, threshold)) bits &= ~(1u << c);
    }
    return bits;
}

/// Those of the columns in `open` that none of the kept boxes [begin, end) suppresses; all lanes of
/// a warp have the same.
__device__ std::uint32_t open_columns(
    SizedBox const (&columns)[kColumns], std::uint32_t open, PackedBox const* kept_boxes,
    std::int32_t begin, std::int32_t end, float threshold) {
    float const lowest = almost(threshold);
    for (; begin < end && open != 0; begin += kWarp) {
        std::int32_t const k = begin + static_cast<std::int32_t>(threadIdx.x % kWarp);
        SizedBox const other = sized(kept_boxes[k < end ? k : end - 1]);
        std::uint32_t const near = near_columns(other, columns, lowest) & open;
        if (__any_sync(kAllLanes, near != 0) == 0) continue;
        std::uint32_t const hits = suppressed_columns(other, columns, threshold, near);
#pragma unroll
        for (std::uint32_t c = 0; c < kColumns; ++c) {
            if (__any_sync(kAllLanes, static_cast<int>(hits >> c & 1u)) != 0) open &= ~(1u << c);
        }
    }
    return open;
}

/// Finds which of the kept boxes [begin, end) and of the tile suppress each of the tile's
/// candidates; warp w takes w, w + kWarps, and so on.
__device__ void compare_tile(
    Tile& tile, std::uint32_t tile_size, PackedBox const* kept_boxes, std::int32_t begin,
    std::int32_t end, float threshold) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    std::uint32_t const warp = threadIdx.x / kWarp;
    SizedBox columns[kColumns];
    std::uint32_t open = 0;
#pragma unroll
    for (std::uint32_t c = 0; c < kColumns; ++c) {
        columns[c] = sized(tile.boxes[warp + c * kWarps]);
        if (warp + c * kWarps < tile_size) open |= 1u << c;
    }
    open = open_columns(columns, open, kept_boxes, begin, end, threshold);
    float const lowest = almost(threshold);
    SizedBox const low_row = sized(tile.boxes[lane]);
    std::uint32_t low = near_columns(low_row, columns, lowest);
    if (low != 0) low = suppressed_columns(low_row, columns, threshold, low);
    // Columns of the first half have no earlier candidates in the second.
    SizedBox const high_row = sized(tile.boxes[kWarp + lane]);
    std::uint32_t high = near_columns<kColumns / 2>(high_row, columns, lowest);
    if (high != 0) high = suppressed_columns(high_row, columns, threshold, high);
#pragma unroll
    for (std::uint32_t c = 0; c < kColumns; ++c) {
        std::uint32_t const column = warp + c * kWarps;
        std::uint64_t const bits = joined(
            __ballot_sync(kAllLanes, static_cast<int>(low >> c & 1u)),
            __ballot_sync(kAllLanes, static_cast<int>(high >> c & 1u)));
        std::uint64_t const own = std::uint64_t{1} << column;
        bool const struck = (open >> c & 1u) == 0;
        if (lane == 0) tile.suppressors[column] = (bits & (own - 1)) | (struck ? own : 0);
    }
}

/// Greedy choice among the tile's candidates, in order: bits of the kept ones. Every warp does the
/// same.
__device__ std::uint64_t choose(Tile const& tile) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    std::uint64_t const low = tile.suppressors[lane];
    std::uint64_t const high = tile.suppressors[kWarp + lane];
    std::uint64_t kept = 0;
    std::uint64_t gone = joined(
        __ballot_sync(kAllLanes, static_cast<int>(low >> lane & 1u)),
        __ballot_sync(kAllLanes, static_cast<int>(high >> (kWarp + lane) & 1u)));
    // The first candidate that is not settled has settled ones before it only.
    while ((kept | gone) != ~std::uint64_t{0}) {
        std::uint64_t const free = joined(
            __ballot_sync(kAllLanes, (low & ~gone) == 0),
            __ballot_sync(kAllLanes, (high & ~gone) == 0));
        kept |= free & ~gone;
        gone |= joined(
            __ballot_sync(kAllLanes, (low & kept) != 0),
            __ballot_sync(kAllLanes, (high & kept) != 0));
    }
    return kept;
}

/// One label of one image.
struct Label {
    PackedBox* kept_boxes;
    std::uint64_t* kept_keys;
    std::int32_t capacity;
    float const* boxes;  ///< of the image

    __device__ Label(NmsParams const& p, Lists const& lists, float const* all, std::int64_t list)
        : kept_boxes(lists.boxes + list * most_kept(p)),
          kept_keys(lists.keys + list * most_kept(p)),
          capacity(most_kept(p)),
          boxes(all + list / p.labels * p.labels * p.candidates * 4) {}

    __device__ PackedBox box_of(std::uint64_t key) const {
        float const* const at = boxes + std::int64_t{index_of(key)} * 4;
        return {{at[0], at[1], at[2], at[3]}};
    }
};

/// Goes through `count` sorted keys that no box before `compared` suppresses; returns how many are
/// kept after, with those before. All threads of the block call it after a barrier.
__device__ std::int32_t suppress(
    Label const& label, Tile& tile, std::uint64_t const* keys, std::uint32_t count,
    std::int32_t compared, std::int32_t kept, float threshold) {
    auto const box_at = [&](std::uint32_t rank) -> PackedBox {
        if (threadIdx.x >= kTile || rank >= count) return {};
        return label.box_of(keys[rank]);
    };
    PackedBox next = box_at(threadIdx.x);
    for (std::uint32_t first = 0; first < count && kept < label.capacity; first += kTile) {
        std::uint32_t const tile_size = count - first < kTile ? count - first : kTile;
        PackedBox const box = next;
        if (threadIdx.x < kTile) tile.boxes[threadIdx.x] = box;
        __syncthreads();
        next = box_at(first + kTile + threadIdx.x);
        compare_tile(tile, tile_size, label.kept_boxes, compared, kept, threshold);
        __syncthreads();
        std::uint64_t const chosen = choose(tile);
        if (threadIdx.x < tile_size && (chosen >> threadIdx.x & 1u) != 0) {
            std::uint64_t const before = chosen & ((std::uint64_t{1} << threadIdx.x) - 1);
            std::int32_t const at = kept + __popcll(before);
            if (at < label.capacity) {
                label.kept_boxes[at] = box;
                label.kept_keys[at] = keys[first + threadIdx.x];
            }
        }
        std::int32_t const all = kept + __popcll(chosen);
        kept = all < label.capacity ? all : label.capacity;
        // The next tile's first barrier serves this one too: until then a thread touches only what
        // no other reads.
    }
    return kept;
}

/// Block x works on list x.
__global__ void __launch_bounds__(kThreads, 2)
    suppress_labels(NmsParams p, Lists lists, float const* boxes, float const* scores) {
    std::int64_t const list = blockIdx.x;
    std::int64_t const candidates = p.candidates;
    Tile& tile = *shared_memory<Tile>();
    auto* const keys = reinterpret_cast<std::uint64_t*>(&tile + 1);
    std::uint32_t const count = rank_scores(
        scores + list * candidates, static_cast<std::uint32_t>(candidates),
        static_cast<std::uint32_t>(list % p.labels * candidates), p.score_threshold, keys,
        tile.counters[0]);
    Label const label(p, lists, boxes, list);
    std::int32_t const kept = suppress(label, tile, keys, count, 0, 0, p.iou_threshold);
    if (threadIdx.x == 0) lists.counts[list] = kept;
}

/// Clears those of the keys [begin, end) of each long label that the boxes kept so far suppress; a
/// warp works on four of a list, block y on list y.
__global__ void __launch_bounds__(kSmallThreads) strike_keys(
    NmsParams p, Lists lists, Runs ranked, std::int64_t count, float const* boxes,
    std::uint32_t begin, std::uint32_t end) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    std::uint32_t const warp = threadIdx.x / kWarp;
    for (std::int64_t list = blockIdx.y; list < count; list += gridDim.y) {
        Label const label(p, lists, boxes, list);
        std::int32_t const kept = lists.counts[list];
        if (kept == label.capacity) continue;
        auto const held = static_cast<std::uint32_t>(ranked.counts[list * runs_of(p)]);
        std::uint64_t* const keys = ranked.keys + list * p.candidates;
        std::uint32_t const last = held < end ? held : end;
        std::uint32_t const stride = gridDim.x * kStruck;
        for (std::uint32_t first = begin + blockIdx.x * kStruck + warp * kColumns; first < last;
             first += stride) {
            SizedBox columns[kColumns];
            std::uint32_t open = 0;
#pragma unroll
            for (std::uint32_t c = 0; c < kColumns; ++c) {
                bool const exists = first + c < last;
                columns[c] = sized(label.box_of(keys[exists ? first + c : first]));
                if (exists) open |= 1u << c;
            }
            open = open_columns(columns, open, label.kept_boxes, 0, kept, p.iou_threshold);
            if (lane < kColumns && first + lane < last && (open >> lane & 1u) == 0) {
                keys[first + lane] = kNoKey;
            }
        }
    }
}

/// Moves those of `length` keys that have not been cleared to `to`, in order; returns their number.
/// All threads of the block call it after a barrier and leave it with one.
__device__ std::uint32_t collect_open(
    std::uint64_t const* keys, std::uint32_t length, std::uint64_t* to,
    std::uint32_t (&counters)[kWarps]) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    std::uint32_t const warp = threadIdx.x / kWarp;
    std::uint32_t count = 0;
    for (std::uint32_t first = 0; first < length; first += kThreads) {
        std::uint32_t const i = first + threadIdx.x;
        std::uint64_t const key = i < length ? keys[i] : kNoKey;
        std::uint32_t const bits = __ballot_sync(kAllLanes, key != kNoKey);
        if (lane == 0) counters[warp] = static_cast<std::uint32_t>(__popc(bits));
        __syncthreads();
        std::uint32_t at = count;
        for (std::uint32_t other = 0; other < kWarps; ++other) {
            if (other < warp) at += counters[other];
            count += counters[other];
        }
        if (key != kNoKey) to[at + __popc(bits & ((1u << lane) - 1))] = key;
        __syncthreads();
    }
    return count;
}

/// Block x goes on with the keys [begin, end) of long list x.
__global__ void __launch_bounds__(kThreads, 2) suppress_window(
    NmsParams p, Lists lists, Runs ranked, float const* boxes, std::uint32_t begin,
    std::uint32_t end) {
    std::int64_t const list = blockIdx.x;
    Tile& tile = *shared_memory<Tile>();
    auto* const open_keys = reinterpret_cast<std::uint64_t*>(&tile + 1);
    Label const label(p, lists, boxes, list);
    auto const held = static_cast<std::uint32_t>(ranked.counts[list * runs_of(p)]);
    std::uint64_t const* const keys = ranked.keys + list * p.candidates;
    std::uint32_t const last = held < end ? held : end;
    std::int32_t const compared = begin > 0 ? lists.counts[list] : 0;
    std::int32_t kept = compared;
    for (std::uint32_t first = begin; first < last && kept < label.capacity; first += kSharedKeys) {
        std::uint32_t const rest = last - first;
        std::uint32_t const count = collect_open(
            keys + first, rest < kSharedKeys ? rest : kSharedKeys, open_keys, tile.counters);
        kept = suppress(label, tile, open_keys, count, compared, kept, p.iou_threshold);
        __syncthreads();
    }
    if (threadIdx.x == 0) lists.counts[list] = kept;
}

/// One block a label, window after window; before each but the first, all blocks of the GPU strike
/// out what is suppressed already.
cudaError_t suppress_long_labels(
    NmsParams const& p, Lists const& lists, Runs const& ranked, float const* boxes,
    cudaStream_t stream) {
    std::int64_t const count = std::int64_t{p.batch} * p.labels;
    std::size_t const shared_bytes = sizeof(Tile) + kSharedKeys * sizeof(std::uint64_t);
    std::int64_t begin = 0, end = kFirstWindow;
    for (; begin < p.candidates; begin = end, end *= kWindowGrowth) {
        if (end > p.candidates) end = p.candidates;
        if (begin > 0) {
            cudaError_t const error = launch(
                strike_keys, grid_of(end - begin, kStruck, count), dim3(kSmallThreads),
                std::size_t{0}, stream, p, lists, ranked, count, boxes, begin, end);
            if (error != cudaSuccess) return error;
        }
        cudaError_t const error = launch(
            suppress_window, dim3(static_cast<std::uint32_t>(count)), dim3(kThreads), shared_bytes,
            stream, p, lists, ranked, boxes, begin, end);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace

}  // namespace carafe
