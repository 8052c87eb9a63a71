// Registers the operators with torch when the library is loaded.
//
// In a Python process the package may have registered them before, and a second registration
// would end the process: an exception that leaves a static initialiser. So TORCH_LIBRARY is done
// by hand, on condition that nothing is there yet.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cstdio>
#include <optional>
#include <string>

#include "adapters.h"
#include "operators.h"

namespace carafe::torch_adapter {
namespace {

bool is_registered(char const* name) {
    return c10::Dispatcher::singleton().findSchema({name, ""}).has_value();
}

void implement(torch::Library& library, c10::DispatchKey key) {
#define CARAFE_IMPLEMENT(name, plugin, stem) \
    library.impl(#name, torch::dispatch(key, TORCH_FN(name)));
    CARAFE_OPERATORS(CARAFE_IMPLEMENT)
#undef CARAFE_IMPLEMENT
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
#define CARAFE_DEFINE(name, plugin, stem) \
    library_->def(std::string(#name).append(schemas::name).c_str());
        CARAFE_OPERATORS(CARAFE_DEFINE)
#undef CARAFE_DEFINE
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
