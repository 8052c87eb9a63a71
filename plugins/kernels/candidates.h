// RpnCandidates and BoxCandidates, what a detector hands to NMS: parameters, their check, and the
// CPU twins. The contract stands in plugins/README.md.
#pragma once

#include "roi_align.h"
#include "types.h"

namespace carafe {

/// Most candidates a level can give: a block of the CUDA kernel keeps twice as many in its memory.
constexpr std::int32_t kMostCandidates = 4096;

/// Geometry of one call of RpnCandidates; sizes are in elements, strides in image pixels.
struct RpnCandidatesParams {
    DType dtype;    ///< of logits and deltas
    Layout layout;  ///< likewise
    /// `anchors` a pixel; `candidates` of each level.
    std::int32_t batch, levels, anchors, candidates;
    std::int32_t heights[kMaxLevels], widths[kMaxLevels], strides[kMaxLevels];
    /// Channels-last only: elements from one pixel to the next.
    std::int32_t logit_pitch, delta_pitch;
    /// Boxes of which a side is no longer than this are dropped; none where it is negative.
    float min_size;
};

/// Geometry of one call of BoxCandidates.
struct BoxCandidatesParams {
    DType dtype;  ///< of logits and deltas
    std::int32_t batch, proposals, classes;
};

/// False, with the reason in `message`, when no call can have these parameters.
bool check(RpnCandidatesParams const& params, Message& message);
bool check(BoxCandidatesParams const& params, Message& message);

/// Both compute on up to `threads` threads (0: as many as there are processors), in float32, from
/// checked parameters. image_sizes: [B, 2], height and width; normalization: [2, 4], means and
/// standard deviations of the deltas.
///
/// anchors: [L, A, 4]; maps: first the logits [B, A, H_l, W_l], then the deltas [B, 4*A, H_l, W_l]
/// of every level; boxes: [B, L, K, 4]; scores: [B, L, K].
void rpn_candidates_cpu(
    RpnCandidatesParams const& params, float const* image_sizes, float const* anchors,
    float const* normalization, void const* const* maps, float* boxes, float* scores, int threads);

/// logits: [B, P, C+1]; deltas: [B, P, 4*C]; proposals: [B, P, 4]; num_proposals: [B, 1]; boxes:
/// [B, C, P, 4]; scores: [B, C, P].
void box_candidates_cpu(
    BoxCandidatesParams const& params, void const* logits, void const* deltas,
    float const* proposals, std::int32_t const* num_proposals, float const* image_sizes,
    float const* normalization, float* boxes, float* scores, int threads);

}  // namespace carafe
