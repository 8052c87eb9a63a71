// Which of its kernels a CARAFE call takes: launch_carafe() chooses, tests and measurements may.
#pragma once

#include "cuda_kernels.h"

namespace carafe {

/// carafe.cu describes them.
enum class CarafeDesign : std::int32_t {
    kAny = 0,
    kPlanes = 1,
    kRowPairs = 2,
    kChannelsLast = 3,
    kStrips4x4 = 4,
    kStrips2x8 = 5,
};
constexpr std::int32_t kCarafeDesigns = 6;

constexpr char const* name_of(CarafeDesign design) {
    constexpr char const* kNames[kCarafeDesigns] = {"any",           "planes",     "row_pairs",
                                                    "channels_last", "strips_4x4", "strips_2x8"};
    return kNames[static_cast<std::int32_t>(design)];
}

/// Whether a design can run a call of these sizes and addresses.
bool carafe_design_fits(
    CarafeDesign design, CarafeParams const& params, void const* features, void const* masks,
    void const* out);

/// The one that launch_carafe() runs.
CarafeDesign carafe_design(
    CarafeParams const& params, void const* features, void const* masks, void const* out);

/// As launch_carafe() with a chosen design; cudaErrorInvalidValue when it does not fit.
cudaError_t launch_carafe_as(
    CarafeDesign design, CarafeParams const& params, void const* features, void const* masks,
    void* out, cudaStream_t stream);

}  // namespace carafe
