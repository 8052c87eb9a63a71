#include "c_api.h"

#include <exception>
#include <initializer_list>

#include "threads.h"

#if defined(CARAFE_WITH_CUDA)
#include "cuda_kernels.h"
#endif

namespace {

thread_local carafe::Message last_error;

/// An address that the caller gives, and of how many elements.
struct Given {
    char const* name;
    void const* address;
    int64_t elements;
};

/// Null is right where nothing is read or written.
bool check_addresses(std::initializer_list<Given> all) {
    for (Given const& each : all) {
        if (each.address != nullptr || each.elements == 0) continue;
        return last_error.set(
            "%s is null, expected the address of %lld elements", each.name,
            static_cast<long long>(each.elements));
    }
    return true;
}

bool check_addresses(
    carafe::CarafeParams const& p, void const* features, void const* masks, void const* out) {
    int64_t const written = carafe::out_elements(p);
    bool const computes = written > 0 && p.channels > 0;
    return check_addresses(
        {{"features", features, computes ? carafe::feature_elements(p) : 0},
         {"masks", masks, computes ? carafe::mask_elements(p) : 0},
         {"out", out, written}});
}

bool check_addresses(
    carafe::RpnCandidatesParams const& p, float const* image_sizes, float const* anchors,
    float const* normalization, void const* const* maps, float const* boxes, float const* scores) {
    int64_t const written = carafe::elements_of({p.batch, p.levels, p.candidates});
    if (written == 0) return true;
    if (!check_addresses(
            {{"image_sizes", image_sizes, int64_t{2} * p.batch},
             {"anchors", anchors, carafe::elements_of({p.levels, p.anchors, 4})},
             {"normalization", normalization, 8},
             {"maps", maps, int64_t{2} * p.levels},
             {"boxes", boxes, 4 * written},
             {"scores", scores, written}})) {
        return false;
    }
    for (int32_t map = 0; map < 2 * p.levels; ++map) {
        int32_t const level = map % p.levels;
        if (!check_addresses(
                {{map < p.levels ? "a map of logits" : "a map of deltas", maps[map],
                  carafe::elements_of({p.batch, p.anchors, p.heights[level], p.widths[level]})}})) {
            return false;
        }
    }
    return true;
}

bool check_addresses(
    carafe::BoxCandidatesParams const& p, void const* logits, void const* deltas,
    float const* proposals, int32_t const* num_proposals, float const* image_sizes,
    float const* normalization, float const* boxes, float const* scores) {
    int64_t const rows = int64_t{p.batch} * p.proposals, written = rows * p.classes;
    if (rows == 0) return true;
    return check_addresses(
        {{"logits", logits, rows + written},
         {"deltas", deltas, 4 * written},
         {"proposals", proposals, 4 * rows},
         {"num_proposals", num_proposals, p.batch},
         {"image_sizes", image_sizes, int64_t{2} * p.batch},
         {"normalization", normalization, 8},
         {"boxes", boxes, 4 * written},
         {"scores", scores, written}});
}

bool check_addresses(
    carafe::RoiAlignParams const& p, float const* rois, void const* const* features,
    void const* out) {
    int64_t const written = carafe::out_elements(p);
    int64_t const count = written > 0 ? int64_t{p.batch} * p.rois : 0;
    if (!check_addresses(
            {{"rois", rois, 4 * count},
             {"features", features, count > 0 ? p.levels : 0},
             {"out", out, written}})) {
        return false;
    }
    if (count == 0) return true;
    for (int32_t level = 0; level < p.levels; ++level) {
        if (!check_addresses(
                {{"a feature map", features[level], carafe::feature_elements(p, level)}})) {
            return false;
        }
    }
    return true;
}

bool check_addresses(
    carafe::NmsParams const& p, float const* boxes, float const* scores, int32_t const* num_dets,
    int64_t const* indices) {
    int64_t const candidates = carafe::box_count(p);
    return check_addresses(
        {{"boxes", boxes, 4 * candidates},
         {"scores", scores, candidates},
         {"num_dets", num_dets, p.batch},
         {"indices", indices, int64_t{p.batch} * p.max_output}});
}

bool check_addresses(
    carafe::PreprocessParams const& p, uint8_t const* source, float const* table, void const* out) {
    return check_addresses(
        {{"source", source, carafe::elements_of({3, p.source_height, p.source_width})},
         {"table", table, p.raw == 0 ? 768 : 0},
         {"out", out, carafe::out_elements(p)}});
}

bool check_addresses(carafe::Encodings const& out, std::int32_t masks) {
    if (out.capacity < 0) {
        return last_error.set(
            "capacity is %lld, expected none below 0", static_cast<long long>(out.capacity));
    }
    return check_addresses(
        {{"text", out.text, out.capacity}, {"offsets", out.offsets, int64_t{1} + masks}});
}

bool check_addresses(
    carafe::PasteParams const& p, float const* probabilities, float const* boxes,
    carafe::Encodings out) {
    int64_t const cells = carafe::elements_of({p.masks, p.cells, p.cells});
    return check_addresses(
               {{"probabilities", probabilities, cells}, {"boxes", boxes, int64_t{4} * p.masks}}) &&
           check_addresses(out, p.masks);
}

/// Whether a call can be made; addresses are what check_addresses() takes besides parameters.
template <typename Params, typename... Addresses>
bool usable(Params const* params, int32_t device, int32_t& status, Addresses... addresses) {
    status = CARAFE_INVALID;
    if (!check_addresses({{"params", params, 1}}) || !carafe::check(*params, last_error) ||
        !check_addresses(*params, addresses...)) {
        return false;
    }
    if (device != CARAFE_CPU && device != CARAFE_CUDA) {
        last_error.set("device is %d, expected 0 (CPU) or 1 (CUDA)", static_cast<int>(device));
        return false;
    }
#if !defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        last_error.set("this library was built without CUDA: install one that was");
        status = CARAFE_NO_CUDA;
        return false;
    }
#endif
    status = CARAFE_OK;
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
    } catch (std::exception const&) {  // bad_alloc, or a vector longer than any can be
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
    if (!usable(params, device, status, features, masks, out)) return status;
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
    if (!usable(params, device, status, image_sizes, anchors, normalization, maps, boxes, scores)) {
        return status;
    }
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "rpn_candidates", carafe::launch_rpn_candidates(
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
    if (!usable(
            params, device, status, logits, deltas, proposals, num_proposals, image_sizes,
            normalization, boxes, scores)) {
        return status;
    }
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "box_candidates", carafe::launch_box_candidates(
                                  *params, logits, deltas, proposals, num_proposals, image_sizes,
                                  normalization, boxes, scores, static_cast<cudaStream_t>(stream)));
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
    if (!usable(params, device, status, rois, features, out)) return status;
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
    if (!check_addresses({{"params", params, 1}}) || !carafe::check(*params, last_error)) return -1;
    return static_cast<int64_t>(carafe::nms_workspace_size(*params));
}

int32_t carafe_batched_nms(
    carafe::NmsParams const* params, int32_t device, float const* boxes, float const* scores,
    int32_t* num_dets, int64_t* indices, [[maybe_unused]] void* workspace,
    [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status, boxes, scores, num_dets, indices)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        auto const bytes = static_cast<int64_t>(carafe::nms_workspace_size(*params));
        if (!check_addresses({{"workspace", workspace, bytes}})) return CARAFE_INVALID;
        return enqueued(
            "batched_nms", carafe::launch_nms(
                               *params, boxes, scores, num_dets, indices, workspace,
                               static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] { carafe::nms_cpu(*params, boxes, scores, num_dets, indices, threads); });
}

int32_t carafe_preprocess(
    carafe::PreprocessParams const* params, int32_t device, uint8_t const* source,
    float const* table, void* out, [[maybe_unused]] void* stream, int32_t threads) {
    int32_t status = CARAFE_OK;
    if (!usable(params, device, status, source, table, out)) return status;
#if defined(CARAFE_WITH_CUDA)
    if (device == CARAFE_CUDA) {
        return enqueued(
            "preprocess", carafe::launch_preprocess(
                              *params, source, table, out, static_cast<cudaStream_t>(stream)));
    }
#endif
    return computed([&] { carafe::preprocess_cpu(*params, source, table, out, threads); });
}

int32_t carafe_paste_masks(
    carafe::PasteParams const* params, float const* probabilities, float const* boxes, char* text,
    int64_t capacity, int64_t* offsets) {
    carafe::Encodings const out{text, capacity, offsets};
    int32_t status = CARAFE_OK;
    if (!usable(params, CARAFE_CPU, status, probabilities, boxes, out)) return status;
    return computed([&] { carafe::paste_masks_cpu(*params, probabilities, boxes, out); });
}
