// Batched NMS, exact for any number of candidates a label.
//
// suppress_labels, one block a label of an image: collects the candidates above the score threshold
// as 64-bit keys (score, index) with warp ballots and sorts as many as there are (bitonic, in
// shared memory; a warp sorts 64 by shuffles), then goes through them in tiles of 64. A warp takes
// four of a tile's candidates, whose boxes stay in registers, and compares them with all boxes kept
// so far, 32 at a time until all four are suppressed, then with the tile itself; so every candidate
// gets the bits of the earlier ones that suppress it. Each warp settles the tile from those bits by
// itself: a candidate with a kept suppressor goes, one whose suppressors are all gone is kept. The
// label ends with its max_output-th kept box. Nothing is quadratic in memory, and no order of
// atomics shows in the result, because keys are distinct and sorted.
//
// Labels of more than 4,096 candidates keep their keys in the workspace. sort_runs: a block sorts a
// run of 1,024. merge_runs: 16 lanes a key find by binary search how many keys of 16 runs are
// below, which is the key's rank among them; one merge serves 16,384 candidates, two 262,144.
// suppress_window then does as suppress_labels, one window after the other: up to the 1,024th
// candidate, the 4,096th, the 16,384th and so on. Before each but the first, strike_keys clears on
// all of the GPU what is suppressed already, so that the one block sees little else than what it
// keeps.
//
// A few labels of 129 to 1,024 candidates, as the RPN's levels, would leave most of the GPU idle
// with a block each. So rank_spread sorts them, mark_suppressors finds on all of the GPU which
// better candidates suppress each, 64 a word, and walk_suppressors goes through these bits with a
// block a label: the words of the next tile come while the last one is settled, so a tile costs no
// access to memory that anything waits for.
//
// rank_kept: the rank of a kept box among those of all labels is the number of better keys in each
// label's sorted list. Up to 32 lanes share the labels of one key and stop at max_output.
//
// Versions                               v1                          v2 (this file)
//   barriers to sort 1,024 / 4,096       55 / 78                     11 / 19
//   sort of 10,000                       one block: 105 steps over   ten blocks: 11 barriers; then
//                                        16,384 keys in L2, 27 MB    one search of 10 steps a key
//   instructions a pair of boxes         48, and many divisions      20.5; divides near threshold
//   barriers a tile of 64                3                           2
//   settling a tile                      a step a kept box, one      a round of four ballots a link
//                                        thread (up to 64)           of its longest chain
//   rank of a key among L labels         L searches, one by one      ceil(L / 32), up to 32 at once
//   kernels: short, few / 10,000         2 / 2                       2, 4 / 8
//   registers sm_75, sm_90, sm_120       45, 32, 55                  64, 64, 64; others up to 64,
//                                                                    58, 61
//   threads an SM, of suppress_labels    1,024; 2,048; 1,024         1,024 each
//   shared memory at 1,000 / 10,000      9.8 / 33.8 KB               9.6 / 33.6 KB
// No local memory, no spills. A block reads 20 bytes a candidate at most: 0.1 MB for 5 x 1,000, 1.6
// MB for 80 x 1,000: latency and comparisons take the time, not bytes.
//
// Microseconds on an H100: in a CUDA graph (benchmarks/results/h100/peer.json), what counting
// instructions and latencies had promised, too little wherever few blocks work, and torchvision's
// batched_nms, by events (operators_gpu.json beside it):
//                                         measured   promised   torchvision
//   RPN 5 x 1,000, keep 1,000                  106         44         1,934
//   box head 80 x 1,000, keep 100               20         10           817
//     with all scores above                     37         12        26,275
//   1 x 10,000, keep 100                        28         20         2,402
// The RPN's was before it was spread: 5 blocks left 127 of 132 multiprocessors idle
// (suppress_labels issued in 2 % of all cycles: ncu.json beside it). Spread, 5 x 1,000 are 680
// blocks that compare 4,096 pairs each, and 16 tiles of three barriers; not measured yet.
#include "cuda_kernels.h"
#include "launch.cuh"
#include "nms_geometry.h"
#include "nms_workspace.h"
#include "numeric.cuh"

namespace carafe {

namespace {

constexpr std::uint32_t kThreads = 512;
constexpr std::uint32_t kSmallThreads = 256;
constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kWarps = kThreads / kWarp;
constexpr std::uint32_t kAllLanes = 0xffffffffu;
constexpr std::uint32_t kTile = 64;
constexpr std::uint32_t kColumns = kTile / kWarps;
/// A long label is suppressed in windows of this many candidates, and
constexpr std::int64_t kFirstWindow = 1024;
/// as many times more at a time.
constexpr std::int64_t kWindowGrowth = 4;
/// Candidates of a block of strike_keys().
constexpr std::uint32_t kStruck = kSmallThreads / kWarp * kColumns;
/// Keys that a warp sorts without the others, two a lane.
constexpr std::uint32_t kChunk = 2 * kWarp;

using PackedBox = Pack<float, 4>;

/// What the labels keep.
struct Lists {
    PackedBox* boxes;
    std::uint64_t* keys;
    std::int32_t* counts;
};

/// Sorted runs of the labels' keys.
struct Runs {
    std::uint64_t* keys;
    std::int32_t* counts;
};

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

CARAFE_HD constexpr std::uint32_t power_of_two_from(std::uint32_t value, std::uint32_t least) {
    std::uint32_t power = least;
    while (power < value) power *= 2;
    return power;
}

__device__ std::uint64_t joined(std::uint32_t low, std::uint32_t high) {
    return std::uint64_t{high} << 32 | low;
}

// --- sorting -------------------------------------------------------------------------------------

__device__ void put_in_order(std::uint64_t& first, std::uint64_t& second, bool ascending) {
    if ((first > second) == ascending) {
        std::uint64_t const other = first;
        first = second;
        second = other;
    }
}

/// Steps of a stage with distances from `step` down to 1 within a warp's chunk; a lane holds two
/// neighbours.
__device__ void order_chunk(
    std::uint64_t& first, std::uint64_t& second, std::uint32_t step, bool ascending) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    for (std::uint32_t distance = step / 2; distance > 0; distance /= 2) {
        bool const smaller = ((lane & distance) == 0) == ascending;
        auto const mask = static_cast<int>(distance);
        std::uint64_t const a = __shfl_xor_sync(kAllLanes, first, mask);
        std::uint64_t const b = __shfl_xor_sync(kAllLanes, second, mask);
        if ((a < first) == smaller) first = a;
        if ((b < second) == smaller) second = b;
    }
    put_in_order(first, second, ascending);
}

/// Sorts `size` keys ascending; `size` is a power of two, kChunk or more. All threads of the block
/// call it after a barrier and leave it with one.
__device__ void bitonic_sort(std::uint64_t* keys, std::uint32_t size) {
    std::uint32_t const first_pair = threadIdx.x / kWarp * kChunk + threadIdx.x % kWarp * 2;
    for (std::uint32_t at = first_pair; at < size; at += kWarps * kChunk) {
        std::uint64_t a = keys[at], b = keys[at + 1];
        for (std::uint32_t run = 1; run < kChunk; run *= 2) {
            order_chunk(a, b, run, (at & (2 * run)) == 0);
        }
        keys[at] = a;
        keys[at + 1] = b;
    }
    __syncthreads();
    for (std::uint32_t run = kChunk; run < size; run *= 2) {
        std::uint32_t step = run;
        for (; step > kChunk; step /= 4) {  // two steps at once
            std::uint32_t const half = step / 2;
            for (std::uint32_t four = threadIdx.x; four < size / 4; four += kThreads) {
                std::uint32_t const low = 4 * four - 3 * (four & (half - 1));
                bool const ascending = (low & (2 * run)) == 0;
                std::uint64_t a = keys[low], b = keys[low + half];
                std::uint64_t c = keys[low + step], d = keys[low + step + half];
                put_in_order(a, c, ascending);
                put_in_order(b, d, ascending);
                put_in_order(a, b, ascending);
                put_in_order(c, d, ascending);
                keys[low] = a;
                keys[low + half] = b;
                keys[low + step] = c;
                keys[low + step + half] = d;
            }
            __syncthreads();
        }
        if (step == kChunk) {
            for (std::uint32_t two = threadIdx.x; two < size / 2; two += kThreads) {
                std::uint32_t const low = 2 * two - (two & (step - 1));
                std::uint64_t a = keys[low], b = keys[low + step];
                put_in_order(a, b, (low & (2 * run)) == 0);
                keys[low] = a;
                keys[low + step] = b;
            }
            __syncthreads();
        }
        for (std::uint32_t at = first_pair; at < size; at += kWarps * kChunk) {
            std::uint64_t a = keys[at], b = keys[at + 1];
            order_chunk(a, b, kWarp, (at & (2 * run)) == 0);
            keys[at] = a;
            keys[at + 1] = b;
        }
        __syncthreads();
    }
}

/// Sorts the keys of those of `candidates` scores that exceed the threshold and returns their
/// number. All threads of the block call it and leave it with a barrier.
__device__ std::uint32_t rank_scores(
    float const* scores, std::uint32_t candidates, std::uint32_t first_index, float threshold,
    std::uint64_t* keys, std::uint32_t& counter) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    if (threadIdx.x == 0) counter = 0;
    __syncthreads();
    for (std::uint32_t first = 0; first < candidates; first += kThreads) {
        std::uint32_t const i = first + threadIdx.x;
        float const score = i < candidates ? scores[i] : threshold;
        bool const chosen = score > threshold;
        std::uint32_t const bits = __ballot_sync(kAllLanes, chosen);
        std::uint32_t at = 0;
        if (lane == 0) at = atomicAdd(&counter, static_cast<std::uint32_t>(__popc(bits)));
        at = __shfl_sync(kAllLanes, at, 0);
        if (chosen) {
            keys[at + __popc(bits & ((1u << lane) - 1))] = ranking_key(score, first_index + i);
        }
    }
    __syncthreads();
    std::uint32_t const count = counter;
    if (count == 0) return 0;
    std::uint32_t const size = power_of_two_from(count, kChunk);
    for (std::uint32_t i = count + threadIdx.x; i < size; i += kThreads) keys[i] = kNoKey;
    __syncthreads();
    bitonic_sort(keys, size);
    return count;
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

/// Sum over groups of `lanes` lanes, a power of two.
__device__ std::int32_t sum_of_lanes(std::int32_t value, std::int32_t lanes) {
    for (std::int32_t distance = lanes / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
}

/// Block (x, y) sorts run x of list y.
__global__ void __launch_bounds__(kThreads)
    sort_runs(NmsParams p, Runs runs, std::int64_t lists, float const* scores) {
    auto* const keys = shared_memory<std::uint64_t>();
    std::uint32_t& counter = *reinterpret_cast<std::uint32_t*>(keys + kRun);
    auto const candidates = static_cast<std::uint32_t>(p.candidates);
    auto const count = static_cast<std::uint32_t>(runs_of(p));
    for (std::int64_t list = blockIdx.y; list < lists; list += gridDim.y) {
        for (std::uint32_t run = blockIdx.x; run < count; run += gridDim.x) {
            std::uint32_t const first = run * kRun;
            std::uint32_t const rest = candidates - first;
            std::int64_t const start = list * candidates + first;
            std::uint32_t const held = rank_scores(
                scores + start, rest < kRun ? rest : kRun,
                static_cast<std::uint32_t>(list % p.labels) * candidates + first, p.score_threshold,
                keys, counter);
            for (std::uint32_t i = threadIdx.x; i < held; i += kThreads) {
                runs.keys[start + i] = keys[i];
            }
            if (threadIdx.x == 0) {
                runs.counts[list * count + run] = static_cast<std::int32_t>(held);
            }
            __syncthreads();
        }
    }
}

/// Merges each list's `count` runs, which start `length` keys apart, kFan into one; kFan lanes find
/// the place of a key.
__global__ void __launch_bounds__(kSmallThreads) merge_runs(
    NmsParams p, Runs from, Runs to, std::int64_t lists, std::int32_t count, std::int32_t length) {
    constexpr std::uint32_t kKeys = kSmallThreads / kFan;
    auto const lane = static_cast<std::int32_t>(threadIdx.x % kFan);
    auto const candidates = static_cast<std::uint32_t>(p.candidates);
    for (std::int64_t list = blockIdx.y; list < lists; list += gridDim.y) {
        std::int64_t const start = list * candidates;
        std::int32_t const* const counts = from.counts + list * runs_of(p);
        for (std::uint32_t first = blockIdx.x * kKeys; first < candidates;
             first += gridDim.x * kKeys) {
            std::uint32_t const slot = first + threadIdx.x / kFan;
            auto const run = static_cast<std::int32_t>(slot / static_cast<std::uint32_t>(length));
            auto const offset =
                static_cast<std::int32_t>(slot % static_cast<std::uint32_t>(length));
            std::int32_t const other = run / kFan * kFan + lane;
            std::int32_t const held = other < count ? counts[other] : 0;
            bool const filled = slot < candidates && offset < counts[run];
            std::uint64_t const key = filled ? from.keys[start + slot] : kNoKey;
            std::int32_t below = 0;
            if (filled) {
                std::uint64_t const* const keys = from.keys + start + std::int64_t{other} * length;
                below = other == run ? offset : keys_below(keys, held, key);
            }
            std::int64_t const rank = sum_of_lanes(below, kFan);
            std::int32_t const all = sum_of_lanes(held, kFan);
            std::int64_t const first_run = run / kFan * kFan;
            if (lane != 0) continue;
            if (filled) to.keys[start + first_run * length + rank] = key;
            if (run == first_run && offset == 0) {
                to.counts[list * runs_of(p) + run / kFan] = all;
            }
        }
    }
}

// --- suppression ---------------------------------------------------------------------------------

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

// --- a few labels, by all of the GPU
// ---------------------------------------------------------------

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

// --- all labels ----------------------------------------------------------------------------------

/// Block (x, y) works on image y; `lanes` lanes, a power of two, find the place of a key.
__global__ void __launch_bounds__(kSmallThreads) rank_kept(
    NmsParams p, Lists lists, std::int32_t lanes, std::int32_t* num_dets, std::int64_t* indices) {
    std::uint32_t const keys_per_block = kSmallThreads / static_cast<std::uint32_t>(lanes);
    std::int32_t const lane = static_cast<std::int32_t>(threadIdx.x) % lanes;
    auto const capacity = static_cast<std::uint32_t>(most_kept(p));
    auto const slots = static_cast<std::uint32_t>(p.labels) * capacity;
    for (std::int64_t image = blockIdx.y; image < p.batch; image += gridDim.y) {
        std::uint64_t const* const keys = lists.keys + image * slots;
        std::int32_t const* const counts = lists.counts + image * p.labels;
        std::int64_t* const out = indices + image * p.max_output;

        std::int32_t found = 0;
        for (std::int32_t label = threadIdx.x % kWarp; label < p.labels; label += kWarp) {
            found += counts[label];
        }
        found = sum_of_lanes(found, kWarp);
        if (found > p.max_output) found = p.max_output;
        if (blockIdx.x == 0 && threadIdx.x == 0) num_dets[image] = found;
        // The image's blocks share out the rows that stay empty.
        std::int64_t row = found + std::int64_t{blockIdx.x} * kSmallThreads + threadIdx.x;
        std::int64_t const stride = std::int64_t{gridDim.x} * kSmallThreads;
        for (; row < p.max_output; row += stride) out[row] = -1;

        for (std::uint32_t first = blockIdx.x * keys_per_block; first < slots;
             first += gridDim.x * keys_per_block) {
            std::uint32_t const slot = first + threadIdx.x / static_cast<std::uint32_t>(lanes);
            auto const label = static_cast<std::int32_t>(slot / capacity);
            auto const offset = static_cast<std::int32_t>(slot % capacity);
            bool const filled = slot < slots && offset < counts[label];
            std::uint64_t const key = filled ? keys[slot] : kNoKey;
            std::int32_t rank = filled ? 0 : p.max_output;
            for (std::int32_t others = 0;
                 others < p.labels && __any_sync(kAllLanes, rank < p.max_output) != 0;
                 others += lanes) {
                std::int32_t const other = others + lane;
                std::int32_t below = 0;
                if (filled && other < p.labels) {
                    std::uint64_t const* const list = keys + std::int64_t{other} * capacity;
                    below = other == label ? offset : keys_below(list, counts[other], key);
                }
                rank += sum_of_lanes(below, lanes);
            }
            if (lane == 0 && rank < p.max_output) out[rank] = index_of(key);
        }
    }
}

/// At least one block, so that a kernel can do what does not grow with `count`.
dim3 grid_of(std::int64_t count, std::uint32_t per_block, std::int64_t rows) {
    std::int64_t const blocks = blocks_for(count, per_block);
    std::int64_t const least = blocks > 0 ? blocks : 1;
    return {
        static_cast<std::uint32_t>(least < kMostBlocksX ? least : kMostBlocksX),
        static_cast<std::uint32_t>(rows < kMostBlocksY ? rows : kMostBlocksY)};
}

/// Sorts all labels' keys between the two halves of `runs` and leaves them in the first.
cudaError_t sort_long_labels(
    NmsParams const& p, Runs (&runs)[2], float const* scores, cudaStream_t stream) {
    std::int64_t const lists = std::int64_t{p.batch} * p.labels;
    std::size_t const shared_bytes = kRun * sizeof(std::uint64_t) + 16;
    cudaError_t error = launch(
        sort_runs, grid_of(p.candidates, kRun, lists), dim3(kThreads), shared_bytes, stream, p,
        runs[0], lists, scores);
    std::int64_t length = kRun;
    for (std::int32_t count = runs_of(p); error == cudaSuccess && count > 1;) {
        error = launch(
            merge_runs, grid_of(p.candidates, kSmallThreads / kFan, lists), dim3(kSmallThreads),
            std::size_t{0}, stream, p, runs[0], runs[1], lists, count, length);
        Runs const merged = runs[1];
        runs[1] = runs[0];
        runs[0] = merged;
        count = (count - 1) / kFan + 1;
        length *= kFan;
    }
    return error;
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

cudaError_t launch_nms(
    NmsParams const& p, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, void* workspace, cudaStream_t stream) {
    if (p.batch == 0) return cudaSuccess;
    NmsWorkspace const layout(p);
    auto* const bytes = static_cast<unsigned char*>(workspace);
    Lists const lists{
        reinterpret_cast<PackedBox*>(bytes + layout.kept_boxes),
        reinterpret_cast<std::uint64_t*>(bytes + layout.kept_keys),
        reinterpret_cast<std::int32_t*>(bytes + layout.counts)};
    auto const runs_at = [&](int half) -> Runs {
        return {
            reinterpret_cast<std::uint64_t*>(bytes + layout.keys[half]),
            reinterpret_cast<std::int32_t*>(bytes + layout.run_counts[half])};
    };
    std::int64_t const blocks = std::int64_t{p.batch} * p.labels;
    if (blocks > 0) {
        dim3 const grid(static_cast<std::uint32_t>(blocks));
        cudaError_t error = cudaSuccess;
        if (runs_of(p) > 0) {
            Runs runs[2] = {runs_at(0), runs_at(1)};
            error = sort_long_labels(p, runs, scores, stream);
            if (error == cudaSuccess) {
                error = suppress_long_labels(p, lists, runs[0], boxes, stream);
            }
        } else if (is_spread(p)) {
            Spread const spread{
                reinterpret_cast<PackedBox*>(bytes + layout.spread_boxes),
                reinterpret_cast<std::uint64_t*>(bytes + layout.spread_keys),
                reinterpret_cast<std::uint64_t*>(bytes + layout.suppressors),
                reinterpret_cast<std::int32_t*>(bytes + layout.spread_counts)};
            error = suppress_spread(p, lists, spread, boxes, scores, stream);
        } else {
            std::uint32_t const keys =
                power_of_two_from(static_cast<std::uint32_t>(p.candidates), kChunk);
            error = launch(
                suppress_labels, grid, dim3(kThreads), sizeof(Tile) + keys * sizeof(std::uint64_t),
                stream, p, lists, boxes, scores);
        }
        if (error != cudaSuccess) return error;
    }
    auto const labels = static_cast<std::uint32_t>(p.labels < 32 ? p.labels : 32);
    std::uint32_t const lanes = power_of_two_from(labels, 1);
    return launch(
        rank_kept, grid_of(std::int64_t{p.labels} * most_kept(p), kSmallThreads / lanes, p.batch),
        dim3(kSmallThreads), std::size_t{0}, stream, p, lists, static_cast<std::int32_t>(lanes),
        num_dets, indices);
}

}  // namespace carafe
