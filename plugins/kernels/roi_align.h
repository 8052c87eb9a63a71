// RoIAlign over a pyramid: parameters, their check, and the CPU twin.
// The contract stands in plugins/README.md.
#pragma once

#include "types.h"

namespace carafe {

/// Most levels a pyramid can have; geometry travels by value into the kernel.
constexpr int kMaxLevels = 16;

/// Geometry of one call; sizes are in elements, strides in image pixels.
struct RoiAlignParams {
    DType dtype;    ///< of the feature maps and the result; RoIs are float32
    Layout layout;  ///< of the feature maps, and of the result taken as [B*K, C, S, S]
    std::int32_t batch, rois, channels, levels;
    std::int32_t output_size, sampling_ratio, finest_scale;
    std::int32_t heights[kMaxLevels], widths[kMaxLevels], strides[kMaxLevels];
    /// Channels-last only: elements from one pixel to the next, at least the number of channels.
    /// Channels of the result beyond `channels` are written as zeros.
    std::int32_t feature_pitch, out_pitch;
};

/// Elements of one level in memory, padding channels included.
constexpr std::int64_t feature_elements(RoiAlignParams const& p, std::int32_t level) {
    std::int64_t const depth =
        p.layout == Layout::kNHWC && p.channels > 0 ? p.feature_pitch : p.channels;
    return elements_of({p.batch, p.heights[level], p.widths[level], depth});
}

constexpr std::int64_t out_elements(RoiAlignParams const& p) {
    std::int64_t const depth = p.layout == Layout::kNHWC ? p.out_pitch : p.channels;
    return elements_of({p.batch, p.rois, p.output_size, p.output_size, depth});
}

/// False, with the reason in `message`, when no call can have these parameters.
bool check(RoiAlignParams const& params, Message& message);

/// Computes on up to `threads` threads (0: as many as there are processors). `params` are checked.
/// rois: [B, K, 4]; features: one map [B, C, H_l, W_l] a level; out: [B, K, C, S, S].
/// Element types but float64.
void roi_align_cpu(
    RoiAlignParams const& params, float const* rois, void const* const* features, void* out,
    int threads);

}  // namespace carafe
