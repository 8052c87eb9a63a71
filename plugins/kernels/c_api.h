// Interface of libcarafe_kernels.so with C linkage, for ctypes and other foreign-function
// interfaces. Structs are plain data, those of carafe.h, candidates.h, roi_align.h, nms.h, masks.h
// and preprocess.h.
// Functions return CARAFE_OK or a code below; carafe_last_error() then tells the calling thread
// why. A null address is CARAFE_INVALID where something is to be read or written, and right
// otherwise. `stream` is a cudaStream_t and ignored on the CPU; `threads` is ignored on CUDA. On
// CUDA the calls only enqueue, on the current device.
#pragma once

#include <stdint.h>

#include "candidates.h"
#include "carafe.h"
#include "masks.h"
#include "nms.h"
#include "preprocess.h"
#include "roi_align.h"

extern "C" {

#define CARAFE_ABI_VERSION 2

enum { CARAFE_OK = 0, CARAFE_INVALID = 1, CARAFE_CUDA_ERROR = 2, CARAFE_NO_CUDA = 3 };
enum { CARAFE_CPU = 0, CARAFE_CUDA = 1 };

#define CARAFE_API __attribute__((visibility("default")))

CARAFE_API int32_t carafe_abi_version(void);

// JSON: version, CUDA version ("" for a CPU-only build), architectures.
CARAFE_API char const* carafe_build_info(void);

CARAFE_API char const* carafe_last_error(void);

// Calls work(data, i) for each i below `pieces`, in any order and at the same time or not, and
// returns after the last.
typedef void (*CarafeParallelFor)(
    void* pool, int64_t pieces, void (*work)(void* data, int64_t piece), void* data);

// Calls of this thread on the CPU use the caller's pool from now on; null: threads of their own.
CARAFE_API void carafe_use_pool(CarafeParallelFor run, void* pool);

CARAFE_API int32_t carafe_forward(
    carafe::CarafeParams const* params, int32_t device, void const* features, void const* masks,
    void* out, void* stream, int32_t threads);

// `maps` holds 2 * levels addresses, logits first.
CARAFE_API int32_t carafe_rpn_candidates(
    carafe::RpnCandidatesParams const* params, int32_t device, float const* image_sizes,
    float const* anchors, float const* normalization, void const* const* maps, float* boxes,
    float* scores, void* stream, int32_t threads);

CARAFE_API int32_t carafe_box_candidates(
    carafe::BoxCandidatesParams const* params, int32_t device, void const* logits,
    void const* deltas, float const* proposals, int32_t const* num_proposals,
    float const* image_sizes, float const* normalization, float* boxes, float* scores, void* stream,
    int32_t threads);

CARAFE_API int32_t carafe_multilevel_roi_align(
    carafe::RoiAlignParams const* params, int32_t device, float const* rois,
    void const* const* features, void* out, void* stream, int32_t threads);

// Bytes of workspace that carafe_batched_nms needs on CUDA; negative when the sizes are invalid.
CARAFE_API int64_t carafe_batched_nms_workspace(carafe::NmsParams const* params);

CARAFE_API int32_t carafe_batched_nms(
    carafe::NmsParams const* params, int32_t device, float const* boxes, float const* scores,
    int32_t* num_dets, int64_t* indices, void* workspace, void* stream, int32_t threads);

// One image into its place in a batch.
CARAFE_API int32_t carafe_preprocess(
    carafe::PreprocessParams const* params, int32_t device, uint8_t const* source,
    float const* table, void* out, void* stream, int32_t threads);

// Masks as COCO's run-length encodings, on the CPU, in the caller's thread. `text` has `capacity`
// bytes; where it takes more, the call succeeds and offsets[masks] tells how many, see masks.h.
CARAFE_API int32_t carafe_paste_masks(
    carafe::PasteParams const* params, float const* probabilities, float const* boxes, char* text,
    int64_t capacity, int64_t* offsets);

}  // extern "C"
