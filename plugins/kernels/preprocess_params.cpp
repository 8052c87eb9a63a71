// Check of the parameters of preprocessing.
#include "preprocess.h"

namespace carafe {

namespace {

/// Beyond, float32 has no halves of pixels.
constexpr std::int32_t kMostSide = 1 << 23;

}  // namespace

bool check(PreprocessParams const& p, Message& message) {
    if (p.layout != Layout::kNCHW && p.layout != Layout::kNHWC) {
        return message.set(
            "layout is %d, expected 0 (NCHW) or 1 (NHWC)", static_cast<int>(p.layout));
    }
    if (p.raw < 0 || p.raw > 1 || p.reversed < 0 || p.reversed > 1) {
        return message.set("raw is %d and reversed %d, expected 0 or 1", p.raw, p.reversed);
    }
    if (p.raw == 1 && (p.layout != Layout::kNHWC || p.reversed == 1)) {
        return message.set("raw is 1, expected layout 1 (NHWC) and reversed 0 with it");
    }
    if (p.raw == 0 && p.dtype != DType::kFloat32 && p.dtype != DType::kFloat16 &&
        p.dtype != DType::kBFloat16) {
        return message.set(
            "result is %s (%d), expected float32, float16 or bfloat16", name_of(p.dtype),
            static_cast<int>(p.dtype));
    }
    if (p.source_height < 1 || p.source_width < 1) {
        return message.set(
            "the image has %d x %d pixels, expected at least 1 x 1", p.source_height,
            p.source_width);
    }
    if (p.source_height > kMostSide || p.source_width > kMostSide || p.padded_height > kMostSide ||
        p.padded_width > kMostSide) {
        return message.set(
            "%d x %d pixels become %d x %d, expected sides of at most 2^23", p.source_height,
            p.source_width, p.padded_height, p.padded_width);
    }
    if (p.height < 1 || p.width < 1 || p.padded_height < p.height || p.padded_width < p.width) {
        return message.set(
            "%d x %d pixels padded to %d x %d, expected at least 1 x 1, and no fewer after padding",
            p.height, p.width, p.padded_height, p.padded_width);
    }
    return true;
}

std::int64_t out_elements(PreprocessParams const& p) {
    return elements_of({3, p.padded_height, p.padded_width});
}

}  // namespace carafe
