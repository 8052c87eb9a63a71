// CARAFE (arXiv:1905.02188, section 3.2): parameters, their check, and the CPU twin.
// The contract stands in plugins/README.md.
#pragma once

#include "types.h"

namespace carafe {

/// What the second input holds.
enum class MaskSource : std::int32_t {
    kNormalized = 0,  ///< [N, G*k*k, s*H, s*W]: weights, ready to use
    kEncoded = 1,     ///< [N, s*s*G*k*k, H, W]: encoder output; shuffled and soft-maxed on the fly
};

/// Geometry of one call; sizes are in elements.
struct CarafeParams {
    DType dtype;
    Layout layout;  ///< of features, masks and result alike
    MaskSource source;
    std::int32_t batch, channels, height, width;  ///< of the features
    std::int32_t kernel_size, groups, scale;
    /// Channels-last only: elements from one pixel to the next, at least the number of channels.
    /// Channels of the result beyond `channels` are written as zeros.
    std::int32_t feature_pitch, mask_pitch, out_pitch;
};

/// Channels of the second input.
constexpr std::int64_t mask_channels(CarafeParams const& p) {
    std::int64_t const taps = std::int64_t{p.groups} * p.kernel_size * p.kernel_size;
    return p.source == MaskSource::kEncoded ? taps * p.scale * p.scale : taps;
}

/// Elements in memory, padding channels included.
constexpr std::int64_t feature_elements(CarafeParams const& p) {
    bool const pitched = p.layout == Layout::kNHWC && p.channels > 0 && p.feature_pitch > 0;
    return elements_of({p.batch, p.height, p.width, pitched ? p.feature_pitch : p.channels});
}

constexpr std::int64_t mask_elements(CarafeParams const& p) {
    bool const pitched = p.layout == Layout::kNHWC && p.mask_pitch > 0;
    std::int64_t const side = p.source == MaskSource::kEncoded ? 1 : p.scale;
    return elements_of(
        {p.batch, side * p.height, side * p.width, pitched ? p.mask_pitch : mask_channels(p)});
}

constexpr std::int64_t out_elements(CarafeParams const& p) {
    std::int64_t const side = p.scale;
    bool const pitched = p.layout == Layout::kNHWC && p.out_pitch > 0;
    return elements_of(
        {p.batch, side * p.height, side * p.width, pitched ? p.out_pitch : p.channels});
}

/// False, with the reason in `message`, when no call can have these parameters.
bool check(CarafeParams const& params, Message& message);

/// Computes on up to `threads` threads (0: as many as there are processors). `params` are checked.
/// All element types; float64 accumulates in double, the others in float.
void carafe_cpu(
    CarafeParams const& params, void const* features, void const* masks, void* out, int threads);

}  // namespace carafe
