#include "c_api.h"

#include <new>

#include "threads.h"

#if defined(CARAFE_WITH_CUDA)
#include "cuda_kernels.h"
#endif

namespace {

thread_local carafe::Message last_error;

template <typename Params>
bool usable(Params const* params, int32_t device, int32_t& status) {
    if (!carafe::check(*params, last_error)) {
        status = CARAFE_INVALID;
        return false;
    }
    if (device != CARAFE_CPU && device != CARAFE_CUDA) {
        last_error.set("device is %d, expected 0 (CPU) or 1 (CUDA)", static_cast<int>(device));
        status = CARAFE_INVALID;
        return false;
    }
#if !defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        last_error.set("this library was built without CUDA: install one that was");
        status = CARAFE_NO_CUDA;
        return false;
    }
#endif
    return true;
}

#if defined(CARAFE_WITH_CUDA)
int32_t enqueued(char const* name, cudaError_t error) {
    if (error == cudaSuccess) return CARAFE_OK;
    last_error.set("%s: %s", name, cudaGetErrorString(error));
    return CARAFE_CUDA_ERROR;
}
#endif

/// Runs a CPU twin; no exception may reach the caller's language.
template <typename Twin>
int32_t computed(Twin const& twin) {
    try {
        twin();
    } catch (std::bad_alloc const&) {
        last_error.set("out of memory: use fewer threads or smaller inputs");
        return CARAFE_INVALID;
    }
    return CARAFE_OK;
}

}  // namespace

int32_t carafe_abi_version(void) {
    return CARAFE_ABI_VERSION;
}

char const* carafe_build_info(void) {
    return "{\"version\": \"" CARAFE_VERSION "\", \"cuda\": \"" CARAFE_CUDA_VERSION
           "\", \"architectures\": \"" CARAFE_CUDA_ARCHITECTURES "\"}";
}

char const* carafe_last_error(void) {
    return last_error.text;
}

void carafe_use_pool(CarafeParallelFor run, void* pool) {
    carafe::current_pool() = {run, pool};
}

int32_t carafe_forward(
    carafe::CarafeParams const* params, int32_t device, void const* features, void const* masks,
    void* out, [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "carafe", carafe::launch_carafe(
                          *params, features, masks, out, static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] { carafe::carafe_cpu(*params, features, masks, out, threads); });
}

int32_t carafe_rpn_candidates(
    carafe::RpnCandidatesParams const* params, int32_t device, float const* image_sizes,
    float const* anchors, float const* normalization, void const* const* maps, float* boxes,
    float* scores, [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "rpn_candidates",
            carafe::launch_rpn_candidates(
                *params, image_sizes, anchors, normalization, maps, boxes, scores,
                static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] {
        carafe::rpn_candidates_cpu(
            *params, image_sizes, anchors, normalization, maps, boxes, scores, threads);
    });
}

int32_t carafe_box_candidates(
    carafe::BoxCandidatesParams const* params, int32_t device, void const* logits,
    void const* deltas, float const* proposals, int32_t const* num_proposals,
    float const* image_sizes, float const* normalization, float* boxes, float* scores,
    [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "box_candidates",
            carafe::launch_box_candidates(
                *params, logits, deltas, proposals, num_proposals, image_sizes, normalization,
                boxes, scores, static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] {
        carafe::box_candidates_cpu(
            *params, logits, deltas, proposals, num_proposals, image_sizes, normalization, boxes,
            scores, threads);
    });
}

int32_t carafe_multilevel_roi_align(
    carafe::RoiAlignParams const* params, int32_t device, float const* rois,
    void const* const* features, void* out, [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "multilevel_roi_align",
            carafe::launch_roi_align(
                *params, rois, features, out, static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] { carafe::roi_align_cpu(*params, rois, features, out, threads); });
}

int64_t carafe_batched_nms_workspace(carafe::NmsParams const* params) {
    if (!carafe::check(*params, last_error)) return -1;
    return static_cast<int64_t>(carafe::nms_workspace_size(*params));
}

int32_t carafe_batched_nms(
    carafe::NmsParams const* params, int32_t device, float const* boxes, float const* scores,
    int32_t* num_dets, int64_t* indices, [[maybe_unused]] void* workspace,
    [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "batched_nms", carafe::launch_nms(
                               *params, boxes, scores, num_dets, indices, workspace,
                               static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] { carafe::nms_cpu(*params, boxes, scores, num_dets, indices, threads); });
}
