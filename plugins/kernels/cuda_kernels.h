// The CUDA side of the operators. Every function enqueues on `stream` and returns at once:
// no allocation, no synchronisation, so calls can be captured in a CUDA graph. Pointers are device
// memory, and parameters have passed check(). A call without elements succeeds and launches
// nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "candidates.h"
#include "carafe.h"
#include "nms.h"
#include "preprocess.h"
#include "roi_align.h"

namespace carafe {

/// float32, float16 and bfloat16; accumulates in float. Other types: cudaErrorInvalidValue.
cudaError_t launch_carafe(
    CarafeParams const& params, void const* features, void const* masks, void* out,
    cudaStream_t stream);

/// `features` is a host array of `params.levels` device pointers.
cudaError_t launch_roi_align(
    RoiAlignParams const& params, float const* rois, void const* const* features, void* out,
    cudaStream_t stream);

/// `maps` is a host array of 2 * `params.levels` device pointers. `boxes` is aligned to 16.
cudaError_t launch_rpn_candidates(
    RpnCandidatesParams const& params, float const* image_sizes, float const* anchors,
    float const* normalization, void const* const* maps, float* boxes, float* scores,
    cudaStream_t stream);

/// `boxes` is aligned to 16.
cudaError_t launch_box_candidates(
    BoxCandidatesParams const& params, void const* logits, void const* deltas,
    float const* proposals, std::int32_t const* num_proposals, float const* image_sizes,
    float const* normalization, float* boxes, float* scores, cudaStream_t stream);

/// `workspace` holds nms_workspace_size(params) bytes, aligned to 256.
cudaError_t launch_nms(
    NmsParams const& params, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, void* workspace, cudaStream_t stream);

/// float32, float16, bfloat16, and bytes where `params.raw` is 1, which need no table.
cudaError_t launch_preprocess(
    PreprocessParams const& params, std::uint8_t const* source, float const* table, void* out,
    cudaStream_t stream);

}  // namespace carafe
