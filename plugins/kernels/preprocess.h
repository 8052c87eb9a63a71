// From an image to its place in a detector's batch: resized as OpenCV does, normalised, padded.
// Parameters, their check, and the CPU twin.
#pragma once

#include "types.h"

namespace carafe {

/// Geometry of one image; sizes are in pixels.
struct PreprocessParams {
    /// Of the result; kNHWC for [padded_height, padded_width, 3].
    DType dtype;
    Layout layout;
    /// 1: the result is bytes, BGR as they come and kNHWC; `dtype` and the table are not looked at.
    std::int32_t raw;
    /// 1: the result's channels are R, G, B; not with `raw`.
    std::int32_t reversed;
    std::int32_t source_height, source_width;
    /// After resizing, and with the zeros right and below.
    std::int32_t height, width, padded_height, padded_width;
};

/// False, with the reason in `message`, when no call can have these parameters.
bool check(PreprocessParams const& params, Message& message);

/// Elements of the result.
std::int64_t out_elements(PreprocessParams const& params);

/// source: [source_height, source_width, 3], BGR, row after row. table: [3, 256], what becomes of
/// each byte of the result's first, second and third channel; rounded to the result's type. On up
/// to `threads` threads (0: as many as there are processors).
void preprocess_cpu(
    PreprocessParams const& params, std::uint8_t const* source, float const* table, void* out,
    int threads);

}  // namespace carafe
