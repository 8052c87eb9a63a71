// How CARAFE's CUDA kernels share out their work.
#pragma once

#include <algorithm>

#include "launch.cuh"

namespace carafe {

/// Kernels take `blocks` pieces of work in steps of the grid's size.
inline dim3 grid_of(std::int64_t blocks) {
    return dim3(static_cast<unsigned>(std::min(blocks, kMostBlocksX)));
}

/// Channels of a block: at most `most`, halved down to `least` until there are enough blocks.
inline std::int32_t chunk_for(
    std::int32_t channels, std::int64_t tiles, std::int32_t most, std::int32_t least) {
    std::int32_t chunk = most;
    while (chunk > least && (channels + chunk - 1) / chunk * tiles < kEnoughBlocks) chunk /= 2;
    return chunk;
}

inline bool is_aligned(void const* pointer, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

}  // namespace carafe
