#include "kernels.h"

#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <limits>

#include "c_api.h"

namespace carafe::torch_adapter {
namespace {

std::atomic<bool> pytorch_offered{false};
thread_local bool pytorch_preferred = false;

struct KernelType {
    std::int32_t (*number)();
    DType dtype;
};

constexpr KernelType kTypes[] = {
    {aoti_torch_dtype_float32, DType::kFloat32},
    {aoti_torch_dtype_float16, DType::kFloat16},
    {aoti_torch_dtype_bfloat16, DType::kBFloat16},
    {aoti_torch_dtype_float64, DType::kFloat64},
};

KernelType const* find(Type type) {
    for (KernelType const& each : kTypes) {
        if (each.number() == type.number) return &each;
    }
    return nullptr;
}

/// libcarafe_kernels.so holds CUDA kernels.
bool kernels_have_cuda() {
    static bool const have = std::strstr(carafe_build_info(), "\"cuda\": \"\"") == nullptr;
    return have;
}

/// Where libcarafe_kernels.so lies.
char const* path_of_kernels() {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&carafe_last_error), &info);
    return info.dli_fname == nullptr ? "libcarafe_kernels.so" : info.dli_fname;
}

/// Its architectures, from what it says of itself.
struct Architectures {
    char text[256] = {};

    Architectures() {
        char const* const begin = std::strstr(carafe_build_info(), "\"architectures\": \"");
        if (begin == nullptr) return;
        char const* const first = std::strchr(begin, ':') + 3;
        std::size_t const count = std::strcspn(first, "\"");
        if (count < sizeof text) std::memcpy(text, first, count);
    }
};

}  // namespace

bool serves(Type type, Device device, bool float64_on_cpu) {
    KernelType const* const found = find(type);
    bool const on_cpu = device.type == aoti_torch_device_type_cpu();
    bool const on_cuda = device.type == aoti_torch_device_type_cuda() && kernels_have_cuda();
    bool const served = (on_cpu || on_cuda) && found != nullptr &&
                        (found->dtype != DType::kFloat64 || (on_cpu && float64_on_cpu));
    if (pytorch_offered) return served && !pytorch_preferred;
    require(served, "features is ", type, " on ", device, ", which the kernels do not compute in");
    return true;
}

void offer_pytorch() {
    pytorch_offered = true;
}

bool can_ask_pytorch() {
    return pytorch_offered;
}

void prefer_pytorch(bool wanted) {
    pytorch_preferred = wanted;
}

DType dtype_of(Type type) {
    return find(type)->dtype;
}

std::int32_t narrow(char const* name, std::int64_t value) {
    using Limits = std::numeric_limits<std::int32_t>;
    require(
        value >= Limits::min() && value <= Limits::max(), name, " is ", value,
        ", expected a number below 2**31");
    return static_cast<std::int32_t>(value);
}

void computed(std::int32_t status) {
    if (status == CARAFE_OK) return;
    char const* const reason = carafe_last_error();
    if (status == CARAFE_INVALID) throw std::invalid_argument(reason);
    if (std::strstr(reason, "no kernel image") != nullptr) {
        Text const text(
            reason, ": ", path_of_kernels(), " is built for the architectures ",
            Architectures().text,
            ", build it for this GPU with `make plugins CUDA_ARCHITECTURES=native`");
        throw std::runtime_error(text.c_str());
    }
    throw std::runtime_error(reason);
}

}  // namespace carafe::torch_adapter
