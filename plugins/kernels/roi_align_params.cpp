// Check of the parameters of multilevel RoIAlign.
#include <limits>

#include "roi_align.h"

namespace carafe {

namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();
/// float32, in which samples are placed, numbers no more pixels one by one.
constexpr std::int32_t kLargestSide = 1 << 24;
constexpr std::int32_t kMostSamples = 1 << 24;

bool check_types(RoiAlignParams const& p, Message& message) {
    if (p.dtype != DType::kFloat32 && p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) {
        return message.set(
            "features are %s (%d), expected float32, float16 or bfloat16", name_of(p.dtype),
            static_cast<int>(p.dtype));
    }
    if (p.layout != Layout::kNCHW && p.layout != Layout::kNHWC) {
        return message.set(
            "layout is %d, expected 0 (NCHW) or 1 (NHWC)", static_cast<int>(p.layout));
    }
    return true;
}

bool check_levels(RoiAlignParams const& p, Message& message) {
    if (p.levels < 1 || p.levels > kMaxLevels) {
        return message.set("%d feature maps, expected 1 to %d levels", p.levels, kMaxLevels);
    }
    for (std::int32_t level = 0; level < p.levels; ++level) {
        std::int32_t const height = p.heights[level];
        std::int32_t const width = p.widths[level];
        if (height < 0 || width < 0 || height > kLargestSide || width > kLargestSide) {
            return message.set(
                "feature map %d has height %d and width %d, expected 0 to %d", level, height, width,
                kLargestSide);
        }
        if (p.strides[level] < 1) {
            return message.set(
                "stride of level %d is %d, expected at least 1", level, p.strides[level]);
        }
    }
    return true;
}

bool check_sizes(RoiAlignParams const& p, Message& message) {
    if (p.batch < 0 || p.rois < 0 || p.channels < 0) {
        return message.set(
            "batch is %d, rois %d, channels %d, expected none below 0", p.batch, p.rois,
            p.channels);
    }
    if (p.output_size < 1 || p.sampling_ratio < 0 || p.finest_scale < 1) {
        return message.set(
            "output_size is %d, sampling_ratio %d, finest_scale %d: only sampling_ratio may be 0, "
            "none negative",
            p.output_size, p.sampling_ratio, p.finest_scale);
    }
    if (p.sampling_ratio > kMostSamples) {
        return message.set(
            "sampling_ratio is %d, expected at most %d", p.sampling_ratio, kMostSamples);
    }
    bool const pitched = p.layout == Layout::kNHWC;
    if (pitched && (p.feature_pitch < p.channels || p.out_pitch < p.channels)) {
        return message.set(
            "feature_pitch is %d and out_pitch %d, expected at least the %d channels",
            p.feature_pitch, p.out_pitch, p.channels);
    }
    if (std::int64_t{p.batch} * p.rois > kInt32Max) {
        return message.set(
            "%d images of %d RoIs exceed 2^31 - 1 RoIs: split the batch", p.batch, p.rois);
    }
    std::int64_t const depth = pitched ? p.out_pitch : p.channels;
    std::int64_t const bins = std::int64_t{p.output_size} * p.output_size;
    if (depth > 0 && bins > kInt32Max / depth) {
        return message.set(
            "%d x %d bins of %d channels exceed 2^31 - 1 values a RoI: lower output_size",
            p.output_size, p.output_size, static_cast<int>(depth));
    }
    bool fits = out_elements(p) <= kMostElements;
    for (std::int32_t level = 0; level < p.levels; ++level) {
        fits = fits && feature_elements(p, level) <= kMostElements;
    }
    if (!fits) {
        return message.set(
            "batch %d of %d RoIs and %d channels makes a tensor of more than 2^48 elements: split "
            "the batch",
            p.batch, p.rois, p.channels);
    }
    return true;
}

}  // namespace

bool check(RoiAlignParams const& p, Message& message) {
    return check_types(p, message) && check_levels(p, message) && check_sizes(p, message);
}

}  // namespace carafe
