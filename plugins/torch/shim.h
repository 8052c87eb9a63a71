// The part of torch's stable C interface that the operators need: the same names and types as in
// torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h of torch 2.11, which later
// releases keep. So the library is built without torch, once for all. headers.cpp compares them
// with the headers of a torch where there is one.
//
// CMake reads the functions' names: a stub of libtorch_cpu.so has them, and no other would link.
#pragma once

#include <cstddef>
#include <cstdint>

struct AtenTensorOpaque;
struct StableListOpaque;
struct DeviceGuardOpaque;
class TorchLibraryOpaque;

using AtenTensorHandle = AtenTensorOpaque*;
using StableListHandle = StableListOpaque*;
using DeviceGuardHandle = DeviceGuardOpaque*;
using TorchLibraryHandle = TorchLibraryOpaque*;
/// 0 where all went well; else torch has written why to its log.
using AOTITorchError = std::int32_t;
/// An argument or result: a number's bits, or an address that its reader owns.
using StableIValue = std::uint64_t;

namespace carafe::torch_adapter {

/// The release whose conventions the calls follow, 2.11: major, minor, patch, a byte each.
constexpr std::uint64_t kTorchVersion = (2ULL << 56) | (11ULL << 48);

}  // namespace carafe::torch_adapter

extern "C" {

std::int32_t aoti_torch_device_type_cpu();
std::int32_t aoti_torch_device_type_cuda();
std::int32_t aoti_torch_device_type_meta();
std::int32_t aoti_torch_device_type_mps();
std::int32_t aoti_torch_device_type_xpu();
std::int32_t aoti_torch_device_type_privateuse1();

std::int32_t aoti_torch_dtype_float16();
std::int32_t aoti_torch_dtype_float32();
std::int32_t aoti_torch_dtype_float64();
std::int32_t aoti_torch_dtype_bfloat16();
std::int32_t aoti_torch_dtype_float8_e5m2();
std::int32_t aoti_torch_dtype_float8_e4m3fn();
std::int32_t aoti_torch_dtype_float8_e5m2fnuz();
std::int32_t aoti_torch_dtype_float8_e4m3fnuz();
std::int32_t aoti_torch_dtype_uint8();
std::int32_t aoti_torch_dtype_uint16();
std::int32_t aoti_torch_dtype_uint32();
std::int32_t aoti_torch_dtype_uint64();
std::int32_t aoti_torch_dtype_int8();
std::int32_t aoti_torch_dtype_int16();
std::int32_t aoti_torch_dtype_int32();
std::int32_t aoti_torch_dtype_int64();
std::int32_t aoti_torch_dtype_bool();
std::int32_t aoti_torch_dtype_complex32();
std::int32_t aoti_torch_dtype_complex64();
std::int32_t aoti_torch_dtype_complex128();

std::int32_t aoti_torch_memory_format_contiguous_format();
std::int32_t aoti_torch_memory_format_channels_last();

// Tensors. Handles are owned by whoever has them; addresses of sizes and data are the tensor's.
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* same);
AOTITorchError aoti_torch_is_defined(AtenTensorHandle tensor, bool* is_defined);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t* axes);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t** sizes);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t** strides);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t* dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, std::int32_t* type);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, std::int32_t* index);
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, void const** data);
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError aoti_torch_empty_strided(
    std::int64_t axes, std::int64_t const* sizes, std::int64_t const* strides, std::int32_t dtype,
    std::int32_t device_type, std::int32_t device_index, AtenTensorHandle* made);

// Lists of arguments.
AOTITorchError torch_new_list_reserve_size(std::size_t size, StableListHandle* made);
AOTITorchError torch_list_size(StableListHandle list, std::size_t* size);
AOTITorchError torch_list_get_item(StableListHandle list, std::size_t index, StableIValue* item);
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue item);
AOTITorchError torch_delete_list(StableListHandle list);

// Where a call runs.
AOTITorchError torch_get_num_threads(std::uint32_t* threads);
AOTITorchError aoti_torch_create_device_guard(std::int32_t device_index, DeviceGuardHandle* made);
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard);

// Operators. A boxed one takes its arguments from the stack and leaves its results there.
AOTITorchError aoti_torch_library_init_fragment(
    char const* name_space, char const* file, std::uint32_t line, TorchLibraryHandle* made);
AOTITorchError aoti_torch_library_init_impl(
    char const* name_space, char const* key, char const* file, std::uint32_t line,
    TorchLibraryHandle* made);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, char const* schema);
AOTITorchError torch_library_impl(
    TorchLibraryHandle library, char const* name,
    void (*boxed)(StableIValue* stack, std::uint64_t inputs, std::uint64_t outputs),
    std::uint64_t version);
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle library);
AOTITorchError torch_call_dispatcher(
    char const* name, char const* overload, StableIValue* stack, std::uint64_t version);

}  // extern "C"

namespace carafe::torch_adapter {

/// Functions that not every torch has, so they are looked for when they are needed: of
/// libtorch_cuda.so, cudaStream_t of the current stream ...
using CurrentCudaStream = AOTITorchError (*)(std::int32_t device_index, void** stream);
constexpr char const* kCurrentCudaStream = "aoti_torch_get_current_cuda_stream";
/// ... and of libtorch_cpu.so from 2.13 on, why the last call of this thread failed.
using LastError = char const* (*)();
constexpr char const* kLastError = "torch_exception_get_what_without_backtrace";

}  // namespace carafe::torch_adapter
