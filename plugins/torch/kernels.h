// What the operators have in common: when the kernels serve, and what their errors become.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace carafe::torch_adapter {

/// The kernels compute in this type on this device. Where not, PyTorch does if Python is there to
/// tell it how; else the call is refused.
bool serves(Type type, Device device, bool float64_on_cpu = false);

/// Python has registered what computes in PyTorch, from now on.
void offer_pytorch();
bool can_ask_pytorch();
/// PyTorch computes all operators of this thread from now on, or no longer does.
void prefer_pytorch(bool wanted);

/// The kernels' name of a type that they serve.
DType dtype_of(Type type);

/// ValueError in Python where `value` needs more than 32 bits.
std::int32_t narrow(char const* name, std::int64_t value);

/// A call of c_api.h went well; else an exception with its message.
void computed(std::int32_t status);

}  // namespace carafe::torch_adapter
