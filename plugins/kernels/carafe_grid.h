// How CARAFE's CUDA kernels share out their work.
#pragma once

#include <algorithm>

#include "carafe.h"
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

/// Whether pointers and pitches allow accesses of V elements, and groups begin at such.
template <typename T, int V>
bool packs_fit(CarafeParams const& p, void const* features, void const* out) {
    std::int64_t const vectors = blocks_for(p.channels, V) * V;
    return is_aligned(features, V * sizeof(T)) && is_aligned(out, V * sizeof(T)) &&
           p.feature_pitch % V == 0 && p.out_pitch % V == 0 && vectors <= p.feature_pitch &&
           vectors <= p.out_pitch && (p.groups == 1 || p.channels / p.groups % V == 0);
}

}  // namespace carafe
