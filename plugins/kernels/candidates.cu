// RpnCandidates and BoxCandidates on CUDA, one kernel each.
//
// rpn_candidates, one block a level of an image. Logits become distinct 64-bit keys (logit, index),
// so that the best ones are a set whatever the order of threads. The block reads a level twice.
// First it deals the keys out to 4,096 heaps, four a thread, and keeps the best of each: the K-th
// best of these is a bound that K keys reach, and where like logits do not all lie in the same
// heaps few others (1,150 for K = 1,000). Then it collects what reaches the bound, sorts it and
// decodes K boxes. Should more reach the bound than there is memory for, the bound is raised by
// bisection, one pass over the level for each bit at most. A level of no more than 4,096 anchors
// needs no bound.
//
// box_candidates, one block 32 proposals of an image: a warp finds the softmax of four of them,
// then takes every eighth class of all 32, so that results are written in whole lines.
//
// PyTorch did the same in 229 operators, some of them many kernels: a top-k a level, sorting,
// gathering and each step of the arithmetic; top-k, sort and gather alone took 310 us on an H100
// (benchmarks/results/h100/detectors.json). Not measured yet. Counted for P2 of an 832x1344 image
// (209,664 anchors): 205 reads a thread and pass, 78 and at most 78 steps of sorting.
#include <algorithm>

#include "candidates_geometry.h"
#include "cuda_kernels.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

namespace {

constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kAllLanes = 0xffffffffu;

// --- RpnCandidates -------------------------------------------------------------------------------

constexpr std::uint32_t kThreads = 1024;
/// Keys that fit into a block's memory.
constexpr std::uint32_t kKeys = 4096;
constexpr std::uint32_t kHeaps = kKeys / kThreads;
static_assert(kKeys >= static_cast<std::uint32_t>(kMostCandidates));

/// Shared memory of a block.
struct Chosen {
    std::uint64_t keys[kKeys];
    std::uint32_t count;
};

struct RpnPointers {
    void const* maps[2 * kMaxLevels];
    float const *image_sizes, *anchors, *normalization;
    float *boxes, *scores;
};

/// The logits of a level of an image.
template <typename T>
struct Logits {
    T const* first;
    LevelStrides at;
    std::uint32_t pixels, anchors;

    /// Calls `use(key, heap)` for each of the thread's anchors; the threads of a block share them.
    template <typename Use>
    __device__ void each(Use const& use) const {
        bool const dense = at.channel == 1 && at.pixel == anchors;
        std::uint32_t const runs = dense ? 1 : anchors;
        std::uint32_t const length = dense ? pixels * anchors : pixels;
        std::int64_t const step = dense ? 1 : at.pixel;
        for (std::uint32_t run = 0; run < runs; ++run) {
            T const* const start = first + run * at.channel;
#pragma unroll 2
            for (std::uint32_t i = threadIdx.x; i < length; i += kKeys) {
#pragma unroll
                for (std::uint32_t heap = 0; heap < kHeaps; ++heap) {
                    std::uint32_t const place = i + heap * kThreads;
                    if (place >= length) break;
                    use(anchor_key(to_float(start[place * step]), place * runs + run), heap);
                }
            }
        }
    }

    __device__ std::uint32_t count() const { return pixels * anchors; }
};

/// Sorts `size` keys, a power of two, best first. All threads of the block call it after a barrier
/// and leave it with one.
__device__ void sort_descending(std::uint64_t* keys, std::uint32_t size) {
    for (std::uint32_t run = 1; run < size; run *= 2) {
        for (std::uint32_t step = run; step > 0; step /= 2) {
            for (std::uint32_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                std::uint32_t const low = 2 * pair - (pair & (step - 1));
                std::uint64_t const a = keys[low];
                std::uint64_t const b = keys[low + step];
                if ((a < b) == ((low & (2 * run)) == 0)) {
                    keys[low] = b;
                    keys[low + step] = a;
                }
            }
            __syncthreads();
        }
    }
}

/// A key that `wanted` keys of the level reach, if it has so many.
template <typename T>
__device__ std::uint64_t lower_bound(
    Logits<T> const& logits, std::uint32_t wanted, Chosen& chosen) {
    std::uint64_t best[kHeaps] = {};
    logits.each([&](std::uint64_t key, std::uint32_t heap) {
        if (key > best[heap]) best[heap] = key;
    });
#pragma unroll
    for (std::uint32_t heap = 0; heap < kHeaps; ++heap) {
        chosen.keys[heap * kThreads + threadIdx.x] = best[heap];
    }
    __syncthreads();
    sort_descending(chosen.keys, kKeys);
    std::uint64_t const bound = chosen.keys[wanted - 1];
    __syncthreads();
    return bound > kNoAnchor ? bound : kNoAnchor + 1;
}

/// How many keys reach the bound. All threads of the block call it and leave it with a barrier.
template <typename T>
__device__ std::uint32_t count_from(Logits<T> const& logits, std::uint64_t bound, Chosen& chosen) {
    if (threadIdx.x == 0) chosen.count = 0;
    __syncthreads();
    std::uint32_t own = 0;
    logits.each([&](std::uint64_t key, std::uint32_t) { own += key >= bound ? 1 : 0; });
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        own += __shfl_xor_sync(kAllLanes, own, distance);
    }
    if (threadIdx.x % kWarp == 0 && own > 0) atomicAdd(&chosen.count, own);
    __syncthreads();
    std::uint32_t const count = chosen.count;
    __syncthreads();
    return count;
}

/// Puts what reaches the bound into `chosen`, as far as there is memory; the count is of all.
template <typename T>
__device__ std::uint32_t collect(Logits<T> const& logits, std::uint64_t bound, Chosen& chosen) {
    if (threadIdx.x == 0) chosen.count = 0;
    __syncthreads();
    logits.each([&](std::uint64_t key, std::uint32_t) {
        if (key < bound) return;
        std::uint32_t const at = atomicAdd(&chosen.count, 1u);
        if (at < kKeys) chosen.keys[at] = key;
    });
    __syncthreads();
    std::uint32_t const count = chosen.count;
    __syncthreads();
    return count;
}

/// The best keys of a level, best first, in `chosen`; returns their number, which is `wanted` or,
/// where there are no more, less.
template <typename T>
__device__ std::uint32_t best_keys(Logits<T> const& logits, std::uint32_t wanted, Chosen& chosen) {
    std::uint64_t bound =
        logits.count() <= kKeys ? kNoAnchor + 1 : lower_bound(logits, wanted, chosen);
    std::uint32_t count = collect(logits, bound, chosen);
    if (count > kKeys) {
        // Keys are distinct, so a bound that exactly `wanted` keys reach exists.
        std::uint64_t above = ~std::uint64_t{0};  // which less than `wanted` reach
        while (count > kKeys) {
            std::uint64_t const middle = bound + (above - bound) / 2;
            std::uint32_t const reach = count_from(logits, middle, chosen);
            if (reach < wanted) {
                above = middle;
            } else {
                bound = middle;
                count = reach;
            }
        }
        count = collect(logits, bound, chosen);
    }
    std::uint32_t size = 1;
    while (size < count) size *= 2;
    for (std::uint32_t i = count + threadIdx.x; i < size; i += kThreads) {
        chosen.keys[i] = kNoAnchor;
    }
    __syncthreads();
    sort_descending(chosen.keys, size);
    return count < wanted ? count : wanted;
}

/// Block x works on image x / levels and level x % levels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    rpn_candidates(RpnCandidatesParams p, RpnPointers pointers) {
    Chosen& chosen = *shared_memory<Chosen>();
    auto const list = static_cast<std::int64_t>(blockIdx.x);
    std::int64_t const image = list / p.levels;
    auto const level = static_cast<std::int32_t>(list % p.levels);
    auto const width = static_cast<std::uint32_t>(p.widths[level]);
    auto const per_pixel = static_cast<std::uint32_t>(p.anchors);
    std::uint32_t const pixels = static_cast<std::uint32_t>(p.heights[level]) * width;
    LevelStrides const logit_at = strides_of(p.layout, pixels, p.anchors, p.logit_pitch);
    LevelStrides const delta_at =
        strides_of(p.layout, pixels, std::int64_t{4} * p.anchors, p.delta_pitch);
    Logits<T> const logits{
        static_cast<T const*>(pointers.maps[level]) + image * logit_at.image, logit_at, pixels,
        per_pixel};
    auto const wanted = static_cast<std::uint32_t>(p.candidates);
    std::uint32_t const count = best_keys(logits, wanted, chosen);
    T const* const deltas =
        static_cast<T const*>(pointers.maps[p.levels + level]) + image * delta_at.image;
    float const* const size = pointers.image_sizes + 2 * image;
    BoxDecoder const decoder{pointers.normalization, size[1], size[0]};
    for (std::uint32_t row = threadIdx.x; row < wanted; row += kThreads) {
        Corners box{};
        float score = -INFINITY;
        if (row < count) {
            std::uint64_t const key = chosen.keys[row];
            std::uint32_t const pixel = anchor_of(key) / per_pixel;
            std::uint32_t const anchor = anchor_of(key) % per_pixel;
            float const* const base =
                pointers.anchors + (std::int64_t{level} * per_pixel + anchor) * 4;
            auto const x = static_cast<float>(std::int64_t{pixel % width} * p.strides[level]);
            auto const y = static_cast<float>(std::int64_t{pixel / width} * p.strides[level]);
            float const anchor_box[4] = {x + base[0], y + base[1], x + base[2], y + base[3]};
            T const* const from =
                deltas + pixel * delta_at.pixel + std::int64_t{anchor} * 4 * delta_at.channel;
            float values[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] = to_float(from[i * delta_at.channel]);
            Corners const found = decoder(anchor_box, values);
            if (large_enough(found, p.min_size)) {
                box = found;
                score = logit_of(key);
            }
        }
        std::int64_t const at = list * wanted + row;
        *reinterpret_cast<Pack<float, 4>*>(pointers.boxes + 4 * at) = {
            {box.x1, box.y1, box.x2, box.y2}};
        pointers.scores[at] = score;
    }
}

// --- BoxCandidates -------------------------------------------------------------------------------

constexpr std::uint32_t kRowThreads = 256;
constexpr std::uint32_t kRowWarps = kRowThreads / kWarp;

/// Of the softmax of each of a block's proposals.
struct Softmaxes {
    float top[kWarp], total[kWarp];
};

template <typename T>
struct BoxPointers {
    T const *logits, *deltas;
    float const* proposals;
    std::int32_t const* num_proposals;
    float const *image_sizes, *normalization;
    float *boxes, *scores;
};

/// Largest logit and sum of exponentials of one proposal, by a warp.
template <typename T>
__device__ void sum_up(T const* logits, std::uint32_t count, float& top, float& total) {
    std::uint32_t const lane = threadIdx.x % kWarp;
    top = -INFINITY;
    for (std::uint32_t i = lane; i < count; i += kWarp) top = fmaxf(top, to_float(logits[i]));
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, distance));
    }
    total = 0.0f;
    for (std::uint32_t i = lane; i < count; i += kWarp) total += expf(to_float(logits[i]) - top);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        total += __shfl_xor_sync(kAllLanes, total, distance);
    }
}

/// Block x of y works on 32 proposals of an image, or of several.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    box_candidates(BoxCandidatesParams p, BoxPointers<T> pointers) {
    Softmaxes& softmaxes = *shared_memory<Softmaxes>();
    std::uint32_t const lane = threadIdx.x % kWarp;
    std::uint32_t const warp = threadIdx.x / kWarp;
    auto const proposals = static_cast<std::uint32_t>(p.proposals);
    auto const classes = static_cast<std::uint32_t>(p.classes);
    std::uint32_t const tiles = (proposals + kWarp - 1) / kWarp;
    std::int64_t const work = std::int64_t{p.batch} * tiles;
    for (std::int64_t item = blockIdx.x; item < work; item += gridDim.x) {
        std::int64_t const image = item / tiles;
        std::uint32_t const first = static_cast<std::uint32_t>(item % tiles) * kWarp;
        std::int64_t const image_row = image * proposals;
        std::int32_t const held = pointers.num_proposals[image];
        for (std::uint32_t one = warp; one < kWarp; one += kRowWarps) {
            if (first + one >= proposals) break;
            float top = 0.0f, total = 0.0f;
            sum_up(
                pointers.logits + (image_row + first + one) * (classes + 1), classes + 1, top,
                total);
            if (lane == 0) {
                softmaxes.top[one] = top;
                softmaxes.total[one] = total;
            }
        }
        __syncthreads();
        std::uint32_t const place = first + lane;
        if (place < proposals) {
            bool const is_held = static_cast<std::int64_t>(place) < held;
            std::int64_t const row = image_row + place;
            float const* const proposal = pointers.proposals + 4 * row;
            float const box[4] = {proposal[0], proposal[1], proposal[2], proposal[3]};
            float const* const size = pointers.image_sizes + 2 * image;
            BoxDecoder const decoder{pointers.normalization, size[1], size[0]};
            float const top = softmaxes.top[lane], total = softmaxes.total[lane];
            for (std::uint32_t label = warp; label < classes; label += kRowWarps) {
                Corners found{};
                float score = -INFINITY;
                if (is_held) {
                    T const* const from = pointers.deltas + (row * classes + label) * 4;
                    float values[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) values[i] = to_float(from[i]);
                    found = decoder(box, values);
                    float const logit = to_float(pointers.logits[row * (classes + 1) + label]);
                    score = expf(logit - top) / total;
                }
                std::int64_t const at = (image * classes + label) * proposals + place;
                *reinterpret_cast<Pack<float, 4>*>(pointers.boxes + 4 * at) = {
                    {found.x1, found.y1, found.x2, found.y2}};
                pointers.scores[at] = score;
            }
        }
        __syncthreads();
    }
}

template <typename T>
cudaError_t launch_box(
    BoxCandidatesParams const& p, void const* logits, void const* deltas, float const* proposals,
    std::int32_t const* num_proposals, float const* image_sizes, float const* normalization,
    float* boxes, float* scores, cudaStream_t stream) {
    BoxPointers<T> const pointers{
        static_cast<T const*>(logits),
        static_cast<T const*>(deltas),
        proposals,
        num_proposals,
        image_sizes,
        normalization,
        boxes,
        scores};
    std::int64_t const blocks = std::min(p.batch * blocks_for(p.proposals, kWarp), kMostBlocksX);
    return launch(
        &box_candidates<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads),
        sizeof(Softmaxes), stream, p, pointers);
}

}  // namespace

cudaError_t launch_rpn_candidates(
    RpnCandidatesParams const& p, float const* image_sizes, float const* anchors,
    float const* normalization, void const* const* maps, float* boxes, float* scores,
    cudaStream_t stream) {
    if (p.batch == 0) return cudaSuccess;
    RpnPointers pointers{{}, image_sizes, anchors, normalization, boxes, scores};
    std::copy_n(maps, 2 * p.levels, pointers.maps);
    dim3 const grid(static_cast<unsigned>(p.batch) * static_cast<unsigned>(p.levels));
    auto const run = [&](auto* kernel) {
        return launch(kernel, grid, dim3(kThreads), sizeof(Chosen), stream, p, pointers);
    };
    switch (p.dtype) {
        case DType::kFloat32:
            return run(&rpn_candidates<float>);
        case DType::kFloat16:
            return run(&rpn_candidates<__half>);
        case DType::kBFloat16:
            return run(&rpn_candidates<__nv_bfloat16>);
        default:
            return cudaErrorInvalidValue;
    }
}

cudaError_t launch_box_candidates(
    BoxCandidatesParams const& p, void const* logits, void const* deltas, float const* proposals,
    std::int32_t const* num_proposals, float const* image_sizes, float const* normalization,
    float* boxes, float* scores, cudaStream_t stream) {
    if (p.batch == 0 || p.proposals == 0 || p.classes == 0) return cudaSuccess;
    auto const run = [&](auto launch_typed) {
        return launch_typed(
            p, logits, deltas, proposals, num_proposals, image_sizes, normalization, boxes, scores,
            stream);
    };
    switch (p.dtype) {
        case DType::kFloat32:
            return run(&launch_box<float>);
        case DType::kFloat16:
            return run(&launch_box<__half>);
        case DType::kBFloat16:
            return run(&launch_box<__nv_bfloat16>);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace carafe
