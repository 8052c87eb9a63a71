// Batched NMS: parameters, their check, workspace, and the CPU twin.
// The contract stands in plugins/README.md.
#pragma once

#include "types.h"

namespace carafe {

/// Geometry and thresholds of one call: boxes [B, L, M, 4], scores [B, L, M].
struct NmsParams {
    std::int32_t batch, labels, candidates;
    std::int32_t max_output;
    float iou_threshold, score_threshold;
};

constexpr std::int64_t box_count(NmsParams const& p) {
    return elements_of({p.batch, p.labels, p.candidates});
}

/// False, with the reason in `message`, when no call can have these parameters.
bool check(NmsParams const& params, Message& message);

/// Bytes of device memory that the CUDA kernels need; a closed formula that grows with every size.
std::size_t nms_workspace_size(NmsParams const& params);

/// Computes on up to `threads` threads (0: as many as there are processors). `params` are checked.
/// num_dets: [B]; indices: [B, max_output] into L*M, padded with -1.
void nms_cpu(
    NmsParams const& params, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, int threads);

}  // namespace carafe
