// Bilinear resizing of bytes as OpenCV's INTER_LINEAR does it, in integers, for the CPU twin and
// the CUDA kernel.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "preprocess.h"

namespace carafe {

/// Two neighbouring source pixels along an axis and their weights, which add up to 2048 or so.
struct alignas(16) Tap {
    std::int32_t first, second, first_weight, second_weight;
};

/// Source pixels a result pixel of one axis.
inline double scale_of(std::int32_t source, std::int32_t result) {
    return static_cast<double>(source) / result;
}

/// At pixel `at` of an axis that has `count` source pixels. Where both are the border pixel, a
/// column reads it once and a row twice, which rounds otherwise.
template <bool kColumn>
CARAFE_HD inline Tap tap_of(std::int32_t at, double scale, std::int32_t count) {
    auto const position = static_cast<float>((at + 0.5) * scale - 0.5);
    float const floor = floorf(position);
    auto const index = static_cast<std::int32_t>(floor);
    float fraction = position - floor;
    if (kColumn && (index < 0 || index >= count - 1)) fraction = 0.0f;
    return {
        index < 0 ? 0 : index,
        index < count - 1 ? index + 1 : count - 1,
        static_cast<std::int32_t>(rintf((1.0f - fraction) * 2048.0f)),
        static_cast<std::int32_t>(rintf(fraction * 2048.0f)),
    };
}

/// One channel of a result pixel; `upper` and `lower` are that channel of the source rows' first
/// pixels.
CARAFE_HD inline std::uint8_t resized(
    std::uint8_t const* upper, std::uint8_t const* lower, Tap const& row, Tap const& column) {
    std::int64_t const first = std::int64_t{3} * column.first;
    std::int64_t const second = std::int64_t{3} * column.second;
    std::int32_t const above =
        upper[first] * column.first_weight + upper[second] * column.second_weight;
    std::int32_t const below =
        lower[first] * column.first_weight + lower[second] * column.second_weight;
    // At most 2049 / 65536 * (255 * 2049 / 16), plus 2, over 4: no more than 255.
    return static_cast<std::uint8_t>(
        (((row.first_weight * (above >> 4)) >> 16) + ((row.second_weight * (below >> 4)) >> 16) +
         2) >>
        2);
}

/// Where the source's row of that number begins.
CARAFE_HD inline std::uint8_t const* row_of(
    PreprocessParams const& p, std::uint8_t const* source, std::int32_t row) {
    return source + std::int64_t{3} * row * p.source_width;
}

/// Where channel 0 of a result pixel lies, and how far it is to the next channel.
struct Place {
    std::int64_t first, step;
};

CARAFE_HD inline Place place_of(PreprocessParams const& p, std::int32_t row, std::int32_t column) {
    std::int64_t const pixel = std::int64_t{row} * p.padded_width + column;
    if (p.layout == Layout::kNHWC) return {3 * pixel, 1};
    return {pixel, std::int64_t{p.padded_height} * p.padded_width};
}

}  // namespace carafe
