// What ranks two candidates and what lets one suppress another: the same operations, rounded the
// same way, in the CPU twin and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace carafe {

struct Box {
    float x1, y1, x2, y2;
};

/// Ascending keys are descending scores, equal scores by ascending index. `index` counts within
/// L*M. No score that exceeds a threshold has kNoKey.
CARAFE_HD inline std::uint64_t ranking_key(float score, std::uint32_t index) {
    float const value = score == 0.0f ? 0.0f : score;  // -0 and +0 are equal
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    std::uint32_t const descending = bits >> 31 != 0 ? bits : bits ^ 0x7fffffffu;
    return std::uint64_t{descending} << 32 | index;
}

constexpr std::uint64_t kNoKey = ~std::uint64_t{0};

CARAFE_HD inline std::uint32_t index_of(std::uint64_t key) {
    return static_cast<std::uint32_t>(key);
}

CARAFE_HD inline float area_of(Box const& box) {
    return (box.x2 - box.x1) * (box.y2 - box.y1);
}

/// Area of the intersection. With a NaN in either box it can be anything: the union is NaN then.
CARAFE_HD inline float intersection(Box const& kept, Box const& other) {
    float const left = kept.x1 < other.x1 ? other.x1 : kept.x1;
    float const top = kept.y1 < other.y1 ? other.y1 : kept.y1;
    float const right = other.x2 < kept.x2 ? other.x2 : kept.x2;
    float const bottom = other.y2 < kept.y2 ? other.y2 : kept.y2;
    float const width = right - left;
    float const height = bottom - top;
    return (width > 0.0f ? width : 0.0f) * (height > 0.0f ? height : 0.0f);
}

/// Whether the IoU exceeds the threshold; 0/0 is NaN and exceeds nothing.
CARAFE_HD inline bool iou_exceeds(
    float overlap, float kept_area, float other_area, float threshold) {
    return overlap / (kept_area + other_area - overlap) > threshold;
}

}  // namespace carafe
