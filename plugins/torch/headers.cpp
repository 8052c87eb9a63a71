// Compiled where CMake finds a torch, for its release TORCH_TARGET_VERSION: what shim.h says is
// what its headers say, or C functions of one name differ in their types, which is an error.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <type_traits>

#include "shim.h"

namespace carafe::torch_adapter {

static_assert(kTorchVersion == TORCH_FEATURE_VERSION);
static_assert(kTorchVersion <= TORCH_ABI_VERSION);

#if defined(USE_CUDA)
static_assert(std::is_same_v<CurrentCudaStream, decltype(&aoti_torch_get_current_cuda_stream)>);
#endif

}  // namespace carafe::torch_adapter
