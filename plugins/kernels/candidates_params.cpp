// Checks of the parameters of RpnCandidates and BoxCandidates.
#include <limits>

#include "candidates.h"

namespace carafe {

namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

bool check_type(DType dtype, Message& message) {
    if (dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16) {
        return true;
    }
    return message.set(
        "logits are %s (%d), expected float32, float16 or bfloat16", name_of(dtype),
        static_cast<int>(dtype));
}

bool check_levels(RpnCandidatesParams const& p, Message& message) {
    if (p.levels < 1 || p.levels > kMaxLevels) {
        return message.set("strides has %d entries, expected 1 to %d", p.levels, kMaxLevels);
    }
    for (std::int32_t level = 0; level < p.levels; ++level) {
        std::int32_t const height = p.heights[level];
        std::int32_t const width = p.widths[level];
        if (height < 0 || width < 0 || (p.batch > 0 && (height == 0 || width == 0))) {
            return message.set(
                "level %d has height %d and width %d, expected at least 1", level, height, width);
        }
        if (p.strides[level] < 1) {
            return message.set(
                "stride of level %d is %d, expected at least 1", level, p.strides[level]);
        }
        // Offsets into an image's deltas, the larger of the two maps.
        std::int64_t const depth =
            p.layout == Layout::kNHWC ? p.delta_pitch : std::int64_t{4} * p.anchors;
        if (depth > 0 && std::int64_t{height} * width > kInt32Max / depth) {
            return message.set(
                "level %d of %d x %d pixels with %d anchors each exceeds 2^31 - 1 deltas", level,
                height, width, p.anchors);
        }
    }
    return true;
}

}  // namespace

bool check(RpnCandidatesParams const& p, Message& message) {
    if (!check_type(p.dtype, message)) return false;
    bool const pitched = p.layout == Layout::kNHWC;
    if (!pitched && p.layout != Layout::kNCHW) {
        return message.set(
            "layout is %d, expected 0 (NCHW) or 1 (NHWC)", static_cast<int>(p.layout));
    }
    if (p.batch < 0 || p.anchors < 0 || p.anchors > kInt32Max / 4) {
        return message.set(
            "batch is %d and anchors %d, expected none below 0 and less than 2^29 anchors", p.batch,
            p.anchors);
    }
    if (p.candidates < 1 || p.candidates > kMostCandidates) {
        return message.set("num_candidates is %d, expected 1 to %d", p.candidates, kMostCandidates);
    }
    if (!(p.min_size < std::numeric_limits<float>::infinity())) {
        return message.set(
            "min_size is %g, expected a finite number", static_cast<double>(p.min_size));
    }
    if (pitched && (p.logit_pitch < p.anchors || p.delta_pitch < 4 * p.anchors)) {
        return message.set(
            "logit_pitch is %d and delta_pitch %d, expected at least %d and %d", p.logit_pitch,
            p.delta_pitch, p.anchors, 4 * p.anchors);
    }
    if (!check_levels(p, message)) return false;
    if (std::int64_t{p.batch} * p.levels > kInt32Max / p.candidates) {
        return message.set(
            "%d images of %d levels of %d candidates exceed 2^31 - 1: split the batch", p.batch,
            p.levels, p.candidates);
    }
    return true;
}

bool check(BoxCandidatesParams const& p, Message& message) {
    if (!check_type(p.dtype, message)) return false;
    if (p.batch < 0 || p.proposals < 0 || p.classes < 0) {
        return message.set(
            "batch is %d, proposals %d, classes %d, expected none below 0", p.batch, p.proposals,
            p.classes);
    }
    std::int64_t const rows = std::int64_t{p.batch} * p.proposals;
    if (rows > kInt32Max || (p.classes > 0 && rows > kInt32Max / 4 / p.classes)) {
        return message.set(
            "%d images of %d proposals of %d classes exceed 2^29 - 1 boxes: split the batch",
            p.batch, p.proposals, p.classes);
    }
    return true;
}

}  // namespace carafe
