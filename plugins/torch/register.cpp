// Registers the operators with torch when the library is loaded.
//
// In a Python process the package may have registered them before, and a second registration
// would end the process: an exception that leaves a static initialiser. So TORCH_LIBRARY is done
// by hand, on condition that nothing is there yet.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cstdio>
#include <optional>

#include "operators.h"

namespace carafe::torch_adapter {
namespace {

// What torch.library.custom_op infers from the functions in carafe_deploy/ops.
constexpr char const* kSchemas[] = {
    "carafe(Tensor features, Tensor masks, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor",
    "carafe_encoded(Tensor features, Tensor encoded, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor",
    "multilevel_roi_align(Tensor rois, Tensor[] features, SymInt output_size, "
    "SymInt sampling_ratio, SymInt[] strides, SymInt finest_scale) -> Tensor",
    "batched_nms(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)",
};

bool is_registered(char const* name) {
    return c10::Dispatcher::singleton().findSchema({name, ""}).has_value();
}

void implement(torch::Library& library, c10::DispatchKey key) {
    library.impl("carafe", torch::dispatch(key, TORCH_FN(carafe)));
    library.impl("carafe_encoded", torch::dispatch(key, TORCH_FN(carafe_encoded)));
    library.impl("multilevel_roi_align", torch::dispatch(key, TORCH_FN(multilevel_roi_align)));
    library.impl("batched_nms", torch::dispatch(key, TORCH_FN(batched_nms)));
}

/// Torch forgets the operators when the handle dies, at the end of the process.
class Registration {
  public:
    Registration() {
        if (is_registered("carafe::carafe")) {
            std::fputs(
                "libcarafe_torch.so: torch operator carafe::carafe is registered already, most "
                "likely by the Python package carafe_deploy.ops. Those operators stay and this "
                "library registers none: load either, not both.\n",
                stderr);
            return;
        }
        library_.emplace(
            torch::Library::FRAGMENT, "carafe", std::nullopt, __FILE__,
            static_cast<std::uint32_t>(__LINE__));
        for (char const* schema : kSchemas) library_->def(schema);
        implement(*library_, c10::DispatchKey::CPU);
#if defined(CARAFE_TORCH_CUDA)
        implement(*library_, c10::DispatchKey::CUDA);
#endif
    }

  private:
    std::optional<torch::Library> library_;
};

Registration const registration;

}  // namespace
}  // namespace carafe::torch_adapter
