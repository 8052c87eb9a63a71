// CARAFE's designs through C linkage, for tests that force them.
#include "carafe_designs.h"

#define CARAFE_API __attribute__((visibility("default")))

extern "C" {

/// Bit d: design d can run the call.
CARAFE_API std::int32_t carafe_emulator_designs(
    carafe::CarafeParams const* params, void const* features, void const* masks, void const* out) {
    std::int32_t fitting = 0;
    for (std::int32_t design = 0; design < carafe::kCarafeDesigns; ++design) {
        bool const fits = carafe::carafe_design_fits(
            static_cast<carafe::CarafeDesign>(design), *params, features, masks, out);
        if (fits) fitting |= 1 << design;
    }
    return fitting;
}

/// The one that launch_carafe() chooses.
CARAFE_API std::int32_t carafe_emulator_design(
    carafe::CarafeParams const* params, void const* features, void const* masks, void const* out) {
    return static_cast<std::int32_t>(carafe::carafe_design(*params, features, masks, out));
}

CARAFE_API char const* carafe_emulator_design_name(std::int32_t design) {
    return carafe::name_of(static_cast<carafe::CarafeDesign>(design));
}

/// Null, or why it failed.
CARAFE_API char const* carafe_emulator_run_design(
    std::int32_t design, carafe::CarafeParams const* params, void const* features,
    void const* masks, void* out) {
    cudaError_t const error = carafe::launch_carafe_as(
        static_cast<carafe::CarafeDesign>(design), *params, features, masks, out, nullptr);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // extern "C"
