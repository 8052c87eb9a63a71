// What the instruction sets' objects do of RoIAlign on the CPU; roi_align_cpu.cpp places the RoIs
// and shares out the work. Those objects share no inline function with the rest of the program: the
// linker could keep the copy that needs the newer processor.
#pragma once

#include "types.h"

namespace carafe {

/// Taps of all bins along one axis: those of bin b are [ends[b], ends[b + 1]). Together they touch
/// `length` rows or columns from `first` on.
struct TapLists {
    std::int32_t const* at;
    float const* weights;
    std::int32_t const* ends;
    std::int32_t first, length;
};

/// One RoI on its level.
struct RoiTask {
    DType dtype;
    std::int32_t size;  ///< bins along an axis
    TapLists rows, columns;
    std::int64_t height, width;                       ///< of the map
    std::int64_t channels, feature_pitch, out_pitch;  ///< channels-last only
};

/// Most bins along an axis that pool_plane() works on together.
constexpr std::int64_t kRoiBlock = 8;

/// Floats of scratch for pool_plane() with `size` bins an axis that touch `columns` columns.
constexpr std::int64_t roi_scratch(std::int32_t size, std::int32_t columns) {
    return kRoiBlock * (size + kRoiBlock + columns + kRoiBlock);
}

/// Pools a plane [height, width] into [S, S].
using PoolPlane = void (*)(RoiTask const& roi, void const* plane, float* scratch, void* out);
/// Pools an image [height, width, feature_pitch] into [S, S, out_pitch].
using PoolPixels = void (*)(RoiTask const& roi, void const* image, void* out);

namespace baseline {
void pool_plane(RoiTask const&, void const*, float*, void*);
void pool_pixels(RoiTask const&, void const*, void*);
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
void pool_plane(RoiTask const&, void const*, float*, void*);
void pool_pixels(RoiTask const&, void const*, void*);
}  // namespace avx2
namespace avx512 {
void pool_plane(RoiTask const&, void const*, float*, void*);
void pool_pixels(RoiTask const&, void const*, void*);
}  // namespace avx512
#endif

}  // namespace carafe
