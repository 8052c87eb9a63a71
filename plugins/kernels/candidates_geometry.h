// What ranks two anchors and where a box lies: the same operations, rounded the same way, in the
// CPU twins and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "candidates.h"
#include "host_device.h"

namespace carafe {

/// Descending keys are descending logits, equal logits by ascending index. NaN and -inf have
/// kNoAnchor, which is below all others.
CARAFE_HD inline std::uint64_t anchor_key(float logit, std::uint32_t index) {
    if (!(logit > -INFINITY)) return 0;
    float const value = logit == 0.0f ? 0.0f : logit;  // -0 and +0 are equal
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    std::uint32_t const ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    return std::uint64_t{ascending} << 32 | static_cast<std::uint32_t>(~index);
}

constexpr std::uint64_t kNoAnchor = 0;

CARAFE_HD inline std::uint32_t anchor_of(std::uint64_t key) {
    return ~static_cast<std::uint32_t>(key);
}

CARAFE_HD inline float logit_of(std::uint64_t key) {
    auto const ascending = static_cast<std::uint32_t>(key >> 32);
    std::uint32_t const bits = ascending >> 31 != 0 ? ascending & 0x7fffffffu : ~ascending;
    float logit = 0.0f;
    std::memcpy(&logit, &bits, sizeof logit);
    return logit;
}

/// Between the bounds; NaN stays NaN.
CARAFE_HD inline float clipped(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}

struct Corners {
    float x1, y1, x2, y2;
};

/// What turns deltas into boxes inside an image (mmdetection's DeltaXYWHBBoxCoder).
struct BoxDecoder {
    float const* normalization;  ///< [2, 4]
    float width, height;         ///< of the image

    CARAFE_HD Corners operator()(float const (&box)[4], float const (&deltas)[4]) const {
        Corners result{};
        axis(box[0], box[2], deltas[0], deltas[2], 0, width, result.x1, result.x2);
        axis(box[1], box[3], deltas[1], deltas[3], 1, height, result.y1, result.y2);
        return result;
    }

  private:
    CARAFE_HD float real(float delta, int which) const {
        return delta * normalization[4 + which] + normalization[which];
    }

    CARAFE_HD void axis(
        float low, float high, float shift, float log_ratio, int which, float limit, float& first,
        float& last) const {
        constexpr float kMostLogRatio = 4.135166556742356f;  // log(1000 / 16)
        float const size = high - low;
        float const center = (low + high) * 0.5f + size * real(shift, which);
        float const ratio = clipped(real(log_ratio, 2 + which), -kMostLogRatio, kMostLogRatio);
        float const half = size * expf(ratio) * 0.5f;
        first = clipped(center - half, 0.0f, limit);
        last = clipped(center + half, 0.0f, limit);
    }
};

/// Whether NMS is to see a box of the RPN.
CARAFE_HD inline bool large_enough(Corners const& box, float min_size) {
    return min_size < 0.0f || (box.x2 - box.x1 > min_size && box.y2 - box.y1 > min_size);
}

/// Where the elements of a level lie: anchor a of pixel i at `i * pixel + a * channel`.
struct LevelStrides {
    std::int64_t image, pixel, channel;
};

CARAFE_HD inline LevelStrides strides_of(
    Layout layout, std::int64_t pixels, std::int64_t channels, std::int64_t pitch) {
    if (layout == Layout::kNHWC) return {pixels * pitch, pitch, 1};
    return {pixels * channels, 1, pixels};
}

}  // namespace carafe
