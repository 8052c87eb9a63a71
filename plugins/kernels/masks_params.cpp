// Checks of the parameters of masks' encodings.
#include <limits>

#include "masks.h"

namespace carafe {

namespace {

/// COCO counts pixels in 32 bits.
constexpr std::int64_t kMostPixels = std::numeric_limits<std::uint32_t>::max();

bool check_sizes(std::int32_t masks, std::int32_t height, std::int32_t width, Message& message) {
    if (masks < 0 || height < 0 || width < 0) {
        return message.set(
            "masks is %d, height %d, width %d, expected none below 0", masks, height, width);
    }
    if (std::int64_t{height} * width > kMostPixels) {
        return message.set(
            "an image of %d x %d has more than 2^32 - 1 pixels, which no encoding counts", height,
            width);
    }
    return true;
}

}  // namespace

bool check(PasteParams const& p, Message& message) {
    if (!check_sizes(p.masks, p.height, p.width, message)) return false;
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

bool check(RunsParams const& p, Message& message) {
    return check_sizes(p.masks, p.height, p.width, message);
}

}  // namespace carafe
