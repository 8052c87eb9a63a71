// Check of the parameters of batched NMS, and its workspace.
#include <cmath>
#include <limits>

#include "nms_workspace.h"

namespace carafe {

namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

bool check_sizes(NmsParams const& p, Message& message) {
    if (p.batch < 0 || p.labels < 0 || p.candidates < 0) {
        return message.set(
            "boxes has sizes [%d, %d, %d, 4], expected none below 0", p.batch, p.labels,
            p.candidates);
    }
    if (std::int64_t{p.labels} * p.candidates > kInt32Max) {
        return message.set(
            "%d labels of %d candidates exceed 2^31 - 1 candidates an image: lower either",
            p.labels, p.candidates);
    }
    if (std::int64_t{p.batch} * p.labels > kInt32Max) {
        return message.set(
            "%d images of %d labels exceed 2^31 - 1 lists: split the batch", p.batch, p.labels);
    }
    if (box_count(p) > kMostElements) {
        return message.set(
            "%d images of %d labels of %d candidates exceed 2^48 candidates: split the batch",
            p.batch, p.labels, p.candidates);
    }
    return true;
}

}  // namespace

bool check(NmsParams const& p, Message& message) {
    if (!check_sizes(p, message)) return false;
    if (p.max_output < 1) {
        return message.set("max_output is %d, expected at least 1", p.max_output);
    }
    if (!(p.iou_threshold >= 0.0f && p.iou_threshold <= 1.0f)) {
        return message.set(
            "iou_threshold is %g, expected a number from 0 to 1",
            static_cast<double>(p.iou_threshold));
    }
    if (std::isnan(p.score_threshold) ||
        p.score_threshold == std::numeric_limits<float>::infinity()) {
        return message.set(
            "score_threshold is %g, expected a finite number, or -inf for none",
            static_cast<double>(p.score_threshold));
    }
    return true;
}

std::size_t nms_workspace_size(NmsParams const& p) {
    return NmsWorkspace(p).total;
}

}  // namespace carafe
