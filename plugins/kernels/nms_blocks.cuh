// What all kernels of NMS share: sizes of blocks, what labels keep, grids.
#pragma once

#include "launch.cuh"
#include "nms_geometry.h"
#include "nms_workspace.h"
#include "numeric.cuh"

namespace carafe {

namespace {  // of nms.cu alone

constexpr std::uint32_t kThreads = 512;
constexpr std::uint32_t kSmallThreads = 256;
constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kWarps = kThreads / kWarp;
constexpr std::uint32_t kAllLanes = 0xffffffffu;

using PackedBox = Pack<float, 4>;

/// What the labels keep.
struct Lists {
    PackedBox* boxes;
    std::uint64_t* keys;
    std::int32_t* counts;
};

CARAFE_HD constexpr std::uint32_t power_of_two_from(std::uint32_t value, std::uint32_t least) {
    std::uint32_t power = least;
    while (power < value) power *= 2;
    return power;
}

/// At least one block, so that a kernel can do what does not grow with `count`.
dim3 grid_of(std::int64_t count, std::uint32_t per_block, std::int64_t rows) {
    std::int64_t const blocks = blocks_for(count, per_block);
    std::int64_t const least = blocks > 0 ? blocks : 1;
    return {
        static_cast<std::uint32_t>(least < kMostBlocksX ? least : kMostBlocksX),
        static_cast<std::uint32_t>(rows < kMostBlocksY ? rows : kMostBlocksY)};
}

}  // namespace

}  // namespace carafe
