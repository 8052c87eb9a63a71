// NMS: what all labels of an image keep, by rank.
#pragma once

#include "nms_sort.cuh"

namespace carafe {

namespace {  // of nms.cu alone

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

}  // namespace

}  // namespace carafe
