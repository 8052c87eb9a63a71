// libcarafe_onnxruntime.so: the function by which ONNX Runtime takes operators from a library.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "kernel.h"

// The usual one prints the exception's type, and brings 40 kB of demangler with it.
void __gnu_cxx::__verbose_terminate_handler() {
    std::abort();
}

#define CARAFE_ENTRY extern "C" __attribute__((visibility("default")))

namespace carafe::ort {
namespace {

constexpr char const* kCuda = "CUDAExecutionProvider";

/// What ONNX Runtime holds a pointer to: one operator for one type and one provider.
struct Registered : CustomOp {
    Operator const* op;
    int element;  ///< of "T"
    bool on_gpu;
    Api const* api;

    int of(int wanted) const { return wanted == 0 ? element : wanted; }
};

Registered const& self(CustomOp const* op) {
    return *static_cast<Registered const*>(op);
}

/// One node; ONNX Runtime holds it as void*.
struct Node {
    char const* name;
    std::unique_ptr<Kernel> kernel;
    Api const* api;
    bool on_gpu;
};

/// Runs `body`; no exception may reach ONNX Runtime.
template <typename Body>
Status* guarded(Api const* api, char const* name, Body const& body) {
    auto const status = [&](int code, char const* text) {
        try {
            return CreateStatus::call(api, code, (std::string(name) + ": " + text).c_str());
        } catch (std::bad_alloc const&) {
            return CreateStatus::call(api, code, name);
        }
    };
    try {
        body();
        return nullptr;
    } catch (Failed const& failed) {
        return failed.status;
    } catch (Invalid const& error) {
        return status(kInvalidArgument, error.what());
    } catch (std::exception const& error) {
        return status(kFail, error.what());
    }
}

Status* create(CustomOp const* op, Api const* api, KernelInfo const* info, void** kernel) {
    Registered const& made = self(op);
    return guarded(api, made.op->name, [&] {
        std::unique_ptr<Kernel> built(made.op->create(Attributes(api, info)));
        *kernel = new Node{made.op->name, std::move(built), api, made.on_gpu};
    });
}

Status* compute(void* kernel, KernelContext* context) {
    auto const& node = *static_cast<Node const*>(kernel);
    return guarded(
        node.api, node.name, [&] { node.kernel->compute(Run(node.api, context, node.on_gpu)); });
}

Status* infer_shapes(CustomOp const* op, ShapeContext* context) {
    Registered const& made = self(op);
    return guarded(made.api, made.op->name, [&] { made.op->infer(ShapeRun(made.api, context)); });
}

Registered registered(Operator const& op, int element, bool on_gpu, Api const* api) {
    Registered made{};
    made.version = kVersion;
    made.op = &op;
    made.element = element;
    made.on_gpu = on_gpu;
    made.api = api;
    made.name = [](CustomOp const* o) { return self(o).op->name; };
    made.provider = [](CustomOp const* o) { return self(o).on_gpu ? kCuda : nullptr; };
    made.input_count = [](CustomOp const* o) { return self(o).op->inputs.size(); };
    made.input_element = [](CustomOp const* o, std::size_t i) {
        return self(o).of(self(o).op->inputs[i]);
    };
    made.output_count = [](CustomOp const* o) { return self(o).op->outputs.size(); };
    made.output_element = [](CustomOp const* o, std::size_t i) {
        return self(o).of(self(o).op->outputs[i]);
    };
    made.input_characteristic = [](CustomOp const* o, std::size_t i) -> int {
        bool const last = i + 1 == self(o).op->inputs.size();
        return last && self(o).op->last_is_variadic ? kVariadic : kRequired;
    };
    made.output_characteristic = [](CustomOp const*, std::size_t) -> int { return kRequired; };
    made.input_memory = [](CustomOp const*, std::size_t) -> int { return kDefault; };
    auto const one = [](CustomOp const*) { return 1; };
    made.variadic_input_arity = made.variadic_output_arity = one;
    made.variadic_input_homogeneity = made.variadic_output_homogeneity = one;
    made.start_version = one;
    made.end_version = [](CustomOp const*) { return std::numeric_limits<int>::max(); };
    made.create = create;
    made.compute = compute;
    made.destroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
    made.infer_shapes = infer_shapes;
    return made;
}

bool has_cuda(Api const* api) {
    char** names = nullptr;
    int count = 0;
    require(AvailableProviders::call(api, &names, &count));
    bool const found = std::any_of(
        names, names + count, [](char const* name) { return !std::strcmp(name, kCuda); });
    if (Status* const status = ReleaseProviders::call(api, names, count)) {
        ReleaseStatus::call<void>(api, status);
    }
    // Kernels that were built without CUDA can only refuse.
    return found && std::strstr(carafe_build_info(), "\"architectures\": \"\"") == nullptr;
}

/// The domain with all operators. It lives as long as the process, whatever sessions do.
Domain* domain(Api const* api) {
    static std::mutex mutex;
    static std::deque<Registered> all;  // addresses stay
    static Domain* made = nullptr;
    std::lock_guard<std::mutex> const lock(mutex);
    if (made != nullptr) return made;
    Domain* fresh = nullptr;
    require(CreateDomain::call(api, "carafe", &fresh));
    int const on_gpus = has_cuda(api) ? 2 : 1;
    for (Operator const& op : operators()) {
        auto const is_typed = [](std::vector<int> const& elements) {
            return std::find(elements.begin(), elements.end(), 0) != elements.end();
        };
        for (int const element : {kFloat, kHalf, kBFloat16}) {
            if (element != kFloat && !is_typed(op.inputs)) continue;
            for (int on_gpu = 0; on_gpu < on_gpus; ++on_gpu) {
                all.push_back(registered(op, element, on_gpu == 1, api));
                require(AddToDomain::call(api, fresh, &all.back()));
            }
        }
    }
    return made = fresh;
}

}  // namespace
}  // namespace carafe::ort

CARAFE_ENTRY carafe::ort::Status* RegisterCustomOps(
    carafe::ort::SessionOptions* options, carafe::ort::ApiBase const* base) {
    using namespace carafe::ort;
    Api const* const api = base->api(kVersion);
    if (api == nullptr) {  // and nothing to make a status with
        std::fprintf(
            stderr, "libcarafe_onnxruntime.so: ONNX Runtime %s is too old, 1.20 is needed\n",
            base->version());
        return nullptr;
    }
    return guarded(api, "libcarafe_onnxruntime.so", [&] {
        require(AddDomain::call(api, options, domain(api)));
    });
}
