// NMS: keys in order, by a block each list or run, and merged by all of the GPU.
#pragma once

#include "nms_blocks.cuh"

namespace carafe {

namespace {  // of nms.cu alone

/// Keys that a warp sorts without the others, two a lane.
constexpr std::uint32_t kChunk = 2 * kWarp;

/// Sorted runs of the labels' keys.
struct Runs {
    std::uint64_t* keys;
    std::int32_t* counts;
};

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

}  // namespace

}  // namespace carafe
