// Strides of a map, for code that serves both layouts.
#pragma once

#include "types.h"

namespace carafe {

/// Elements from one image, channel, row and column to the next.
struct Strides {
    std::int64_t image, channel, row, column;
};

/// `pitch` is that of channels-last maps; 0 when their channels are packed.
inline Strides strides_of(
    Layout layout, std::int64_t channels, std::int64_t height, std::int64_t width,
    std::int64_t pitch) {
    if (layout == Layout::kNCHW) return {channels * height * width, height * width, width, 1};
    if (pitch == 0) pitch = channels;
    return {height * width * pitch, 1, width * pitch, pitch};
}

}  // namespace carafe
