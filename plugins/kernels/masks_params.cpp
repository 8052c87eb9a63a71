// Checks of the parameters of masks' encodings.
#include <limits>

#include "masks.h"

namespace carafe {

namespace {

/// COCO counts pixels in 32 bits.
constexpr std::int64_t kMostPixels = std::numeric_limits<std::uint32_t>::max();

}  // namespace

bool check(PasteParams const& p, Message& message) {
    if (p.masks < 0 || p.height < 0 || p.width < 0) {
        return message.set(
            "masks is %d, height %d, width %d, expected none below 0", p.masks, p.height, p.width);
    }
    if (std::int64_t{p.height} * p.width > kMostPixels) {
        return message.set(
            "an image of %d x %d has more than 2^32 - 1 pixels, which no encoding counts", p.height,
            p.width);
    }
    if (p.cells < 1) return message.set("cells is %d, expected at least 1", p.cells);
    if (elements_of({p.masks, p.cells, p.cells}) > kMostElements) {
        return message.set(
            "%d masks of %d x %d cells are more than 2^48 elements", p.masks, p.cells, p.cells);
    }
    if (!(p.threshold > 0 && p.threshold < std::numeric_limits<double>::infinity())) {
        return message.set("threshold is %g, expected a number above 0", p.threshold);
    }
    return true;
}

}  // namespace carafe
