// What a kernel sees of a session: inputs, results, memory and threads. Errors are exceptions in
// here; library.cpp turns them into statuses.
#pragma once

#include <array>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_api.h"
#include "ort.h"

namespace carafe::ort {

/// A status that ONNX Runtime made; whoever catches it hands it on.
struct Failed {
    Status* status;
};

inline void require(Status* status) {
    if (status != nullptr) throw Failed{status};
}

/// An argument that does not fit.
struct Invalid : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Sizes and numbers of axes are checked by the operators' own rules; this is about 32 bits.
inline std::int32_t narrow(char const* name, std::int64_t value) {
    if (value < 0 || value > std::numeric_limits<std::int32_t>::max()) {
        throw Invalid(
            std::string(name) + " is " + std::to_string(value) +
            ", expected a number from 0 to 2^31 - 1");
    }
    return static_cast<std::int32_t>(value);
}

using Shape = std::vector<std::int64_t>;

struct Tensor {
    Shape shape;
    int element;
    void* data;
};

/// Attributes of one node.
class Attributes {
  public:
    Attributes(Api const* api, KernelInfo const* info) : api_(api), info_(info) {}

    std::int32_t number(char const* name) const {
        std::int64_t value = 0;
        require(IntAttribute::call(api_, info_, name, &value));
        return narrow(name, value);
    }
    float real(char const* name) const {
        float value = 0;
        require(FloatAttribute::call(api_, info_, name, &value));
        return value;
    }
    std::vector<std::int32_t> numbers(char const* name) const;

  private:
    Api const* api_;
    KernelInfo const* info_;
};

/// One run of one node.
class Run {
  public:
    Run(Api const* api, KernelContext* context, bool on_gpu)
        : api_(api), context_(context), on_gpu_(on_gpu) {}

    std::size_t input_count() const;
    Tensor input(std::size_t index) const;
    void* output(std::size_t index, Shape const& shape) const;

    std::int32_t device() const { return on_gpu_ ? CARAFE_CUDA : CARAFE_CPU; }
    /// A cudaStream_t; null on the CPU.
    void* stream() const;
    /// Memory of the first input's device until the node has run.
    void* scratch(std::size_t bytes) const;

    /// Calls a function of c_api.h on the session's threads; the code it returns must be CARAFE_OK.
    template <typename Call>
    void call(Call const& function) const {
        carafe_use_pool(on_gpu_ ? nullptr : &Run::parallel_for, const_cast<Run*>(this));
        std::int32_t const code = function();
        carafe_use_pool(nullptr, nullptr);
        if (code == CARAFE_INVALID) throw Invalid(carafe_last_error());
        if (code != CARAFE_OK) throw std::runtime_error(carafe_last_error());
    }

  private:
    static void parallel_for(
        void* run, std::int64_t pieces, void (*work)(void*, std::int64_t), void* data);

    Api const* api_;
    KernelContext* context_;
    bool on_gpu_;
};

/// One node of a session, with its attributes read.
class Kernel {
  public:
    virtual ~Kernel() = default;
    virtual void compute(Run const& run) const = 0;
};

/// A size before the node runs: a number, or -1 and a symbol, which is empty where there is none.
struct Size {
    std::int64_t number;
    std::string symbol;

    Size(std::int64_t value) : number(value) {}
    Size(std::int64_t value, char const* name) : number(value), symbol(name) {}
    Size times(std::int64_t factor) const {
        return factor == 1 ? *this : number < 0 ? -1 : number * factor;
    }
};

/// Shapes of one node before it runs.
class ShapeRun {
  public:
    ShapeRun(Api const* api, ShapeContext* context) : api_(api), context_(context) {}

    /// False where even the number of axes is not known, or is not `axes`.
    bool input(std::size_t index, std::size_t axes, std::vector<Size>& shape, int& element) const;
    std::int64_t number(char const* name) const;
    void output(std::size_t index, std::vector<Size> const& shape, int element) const;

  private:
    Api const* api_;
    ShapeContext* context_;
};

/// An operator as ONNX Runtime is told of it.
struct Operator {
    char const* name;
    /// Element of each input and output; 0 stands for the operator's type, "T".
    std::vector<int> inputs, outputs;
    bool last_is_variadic;
    Kernel* (*create)(Attributes const&);
    void (*infer)(ShapeRun const&);
};

/// All of them.
std::vector<Operator> const& operators();

}  // namespace carafe::ort
