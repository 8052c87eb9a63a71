// What carafe_cpu() and launch_carafe() rely on.
#include <limits>

#include "carafe.h"

namespace carafe {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kMaxSquared = 46340;  // its square still fits in 32 bits

bool check_kinds(CarafeParams const& p, Message& message) {
    switch (p.dtype) {
        case DType::kFloat32:
        case DType::kFloat16:
        case DType::kBFloat16:
        case DType::kFloat64:
            break;
        default:
            return message.set(
                "dtype is %d, expected 0 (float32), 1 (float16), 2 (bfloat16) or 3 (float64)",
                static_cast<int>(p.dtype));
    }
    if (p.layout != Layout::kNCHW && p.layout != Layout::kNHWC) {
        return message.set(
            "layout is %d, expected 0 (NCHW) or 1 (NHWC)", static_cast<int>(p.layout));
    }
    if (p.source != MaskSource::kNormalized && p.source != MaskSource::kEncoded) {
        return message.set(
            "source is %d, expected 0 (normalised masks) or 1 (encoder output)",
            static_cast<int>(p.source));
    }
    return true;
}

bool check_attributes(CarafeParams const& p, Message& message) {
    if (p.kernel_size < 1 || p.kernel_size % 2 == 0) {
        return message.set(
            "kernel_size is %d, expected an odd number of at least 1", p.kernel_size);
    }
    if (p.groups < 1) return message.set("group_size is %d, expected at least 1", p.groups);
    if (p.scale < 1) return message.set("scale_factor is %d, expected at least 1", p.scale);
    if (p.channels % p.groups != 0) {
        return message.set(
            "features has %d channels, not divisible by group_size = %d: choose a divisor",
            p.channels, p.groups);
    }
    return true;
}

bool check_sizes(CarafeParams const& p, Message& message) {
    struct {
        char const* name;
        std::int32_t size;
    } const sizes[] = {
        {"batch", p.batch}, {"channels", p.channels}, {"height", p.height}, {"width", p.width}};
    for (auto const& [name, size] : sizes) {
        if (size < 0) return message.set("%s of features is %d, expected at least 0", name, size);
    }
    if (std::int64_t{p.scale} * p.height > kMaxInt || std::int64_t{p.scale} * p.width > kMaxInt) {
        return message.set(
            "a result of height %d * %d and width %d * %d is too large, expected sides below 2^31",
            p.scale, p.height, p.scale, p.width);
    }
    // Each factor first, so that the products fit in 64 bits.
    std::int64_t const taps = std::int64_t{p.kernel_size} * p.kernel_size;
    if (p.kernel_size > kMaxSquared || p.scale > kMaxSquared || taps * p.groups > kMaxInt ||
        taps * p.groups * p.scale * p.scale > kMaxInt) {
        return message.set(
            "kernel_size %d, group_size %d and scale_factor %d give a pixel too many weights, "
            "expected fewer than 2^31",
            p.kernel_size, p.groups, p.scale);
    }
    return true;
}

bool check_elements(CarafeParams const& p, Message& message) {
    if (feature_elements(p) <= kMostElements && mask_elements(p) <= kMostElements &&
        out_elements(p) <= kMostElements) {
        return true;
    }
    return message.set(
        "batch %d, %d channels, height %d and width %d with scale_factor %d make a tensor of more "
        "than 2^48 elements: split the batch",
        p.batch, p.channels, p.height, p.width, p.scale);
}

bool check_pitch(char const* name, std::int32_t pitch, std::int64_t channels, Message& message) {
    if (pitch == 0 || pitch >= channels) return true;
    return message.set(
        "%s is %d, expected at least the %lld channels, or 0 when they are packed", name, pitch,
        static_cast<long long>(channels));
}

}  // namespace

bool check(CarafeParams const& p, Message& message) {
    if (!check_kinds(p, message) || !check_attributes(p, message) || !check_sizes(p, message)) {
        return false;
    }
    if (p.layout == Layout::kNCHW) return check_elements(p, message);
    return check_pitch("feature_pitch", p.feature_pitch, p.channels, message) &&
           check_pitch("mask_pitch", p.mask_pitch, mask_channels(p), message) &&
           check_pitch("out_pitch", p.out_pitch, p.channels, message) && check_elements(p, message);
}

}  // namespace carafe
