// Instance masks as COCO's run-length encodings: what carafe_deploy/masks.py says, in C++. On the
// CPU only: a core does it while the GPU detects.
#pragma once

#include "types.h"

namespace carafe {

/// Masks of cells x cells probabilities, pasted into an image of height x width pixels.
struct PasteParams {
    std::int32_t masks, cells, height, width;
    /// A pixel belongs to a mask where its probability is at least this.
    double threshold;
};

/// Encodings one after the other: that of mask i from byte offsets[i] to offsets[i + 1]. Where
/// `capacity` does not hold them all, the text is cut and offsets[masks] tells how many bytes it
/// takes.
struct Encodings {
    char* text;
    std::int64_t capacity;
    std::int64_t* offsets;
};

/// False, with the reason in `message`, when no call can have these parameters.
bool check(PasteParams const& params, Message& message);

/// probabilities: [N, S, S]; boxes: [N, 4], x1, y1, x2, y2 in pixels. The mask of a box without
/// area is empty, and so is that of a box of no finite size.
void paste_masks_cpu(
    PasteParams const& params, float const* probabilities, float const* boxes, Encodings out);

}  // namespace carafe
