#include "tensor.h"

#include <dlfcn.h>

#include <algorithm>

#include "c_api.h"

namespace carafe::torch_adapter {

void* find_function(char const* library, char const* name) {
    // Python opens torch's libraries for itself alone, so asking the process is not enough.
    void* const handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
    void* const found = dlsym(handle == nullptr ? RTLD_DEFAULT : handle, name);
    if (handle != nullptr) dlclose(handle);
    return found;
}

void succeeded(AOTITorchError error, char const* what) {
    if (error == 0) return;
    static auto const reason =
        reinterpret_cast<LastError>(find_function("libtorch_cpu.so", kLastError));
    if (reason != nullptr) throw std::runtime_error(reason());
    throw std::runtime_error(Text(what, " failed, see torch's message above").c_str());
}

// --- tensors -------------------------------------------------------------------------------------

Tensor::Tensor(AtenTensorHandle handle) : handle_(handle) {
    bool is_there = false;
    aoti_torch_is_defined(handle, &is_there);
    if (!is_there) return;
    std::int64_t* sizes = nullptr;
    std::int64_t* strides = nullptr;
    aoti_torch_get_dim(handle, &sizes_.count);
    aoti_torch_get_sizes(handle, &sizes);
    aoti_torch_get_strides(handle, &strides);
    aoti_torch_get_dtype(handle, &type_.number);
    aoti_torch_get_device_type(handle, &device_.type);
    aoti_torch_get_device_index(handle, &device_.index);
    sizes_.data = sizes;
    strides_ = {strides, sizes_.count};
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    sizes_ = other.sizes_;
    strides_ = other.strides_;
    type_ = other.type_;
    device_ = other.device_;
    return *this;
}

Tensor::~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

Tensor Tensor::empty(Sizes sizes, Sizes strides, Type type, Device device) {
    AtenTensorHandle made = nullptr;
    succeeded(
        aoti_torch_empty_strided(
            sizes.count, sizes.data, strides.data, type.number, device.type, device.index, &made),
        "aoti_torch_empty_strided");
    return Tensor(made);
}

void const* Tensor::data() const {
    void const* data = nullptr;
    succeeded(torch_get_const_data_ptr(handle_, &data), "torch_get_const_data_ptr");
    return data;
}

void* Tensor::mutable_data() const {
    void* data = nullptr;
    succeeded(torch_get_mutable_data_ptr(handle_, &data), "torch_get_mutable_data_ptr");
    return data;
}

bool Tensor::is_dense(Layout order) const {
    constexpr std::int64_t kChannelsLast[] = {1, 3, 2, 0};
    bool const last = order == Layout::kNHWC;
    if (last && axes() != 4) return false;
    bool const is_empty = std::count(sizes_.data, sizes_.data + axes(), 0) > 0;
    if (is_empty && !last) return true;
    std::int64_t expected = 1;
    for (std::int64_t i = 0; i < axes(); ++i) {
        std::int64_t const axis = last ? kChannelsLast[i] : axes() - 1 - i;
        if (size(axis) == 1) continue;
        if (strides_[axis] != expected) return false;
        expected *= size(axis);
    }
    return true;
}

Layout Tensor::order() const {
    bool const last = !is_dense(Layout::kNCHW) && is_dense(Layout::kNHWC);
    return last ? Layout::kNHWC : Layout::kNCHW;
}

Tensor Tensor::in_order(Layout order) const {
    if (is_dense(order)) return Tensor(share());
    std::int32_t const format = order == Layout::kNHWC
                                    ? aoti_torch_memory_format_channels_last()
                                    : aoti_torch_memory_format_contiguous_format();
    StableIValue stack[] = {
        reinterpret_cast<StableIValue>(share()), static_cast<std::uint32_t>(format)};
    succeeded(
        torch_call_dispatcher("aten::contiguous", "", stack, kTorchVersion), "aten::contiguous");
    return Tensor(reinterpret_cast<AtenTensorHandle>(stack[0]));
}

AtenTensorHandle Tensor::share() const {
    AtenTensorHandle same = nullptr;
    succeeded(aoti_torch_new_tensor_handle(handle_, &same), "aoti_torch_new_tensor_handle");
    return same;
}

Map::Map(Layout order, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w)
    : sizes{n, c, h, w}, strides{} {
    if (order == Layout::kNHWC) {
        strides[1] = 1;
        strides[3] = c;
        strides[2] = w * strides[3];
        strides[0] = h * strides[2];
        return;
    }
    strides[3] = 1;
    for (int axis = 2; axis >= 0; --axis) {
        strides[axis] = strides[axis + 1] * std::max<std::int64_t>(sizes[axis + 1], 1);
    }
}

Tensor empty_rows(std::initializer_list<std::int64_t> sizes, Type type, Device device) {
    auto const axes = static_cast<std::int64_t>(sizes.size());
    std::vector<std::int64_t> strides(sizes.size(), 1);
    for (std::size_t axis = sizes.size() - 1; axis > 0; --axis) {
        strides[axis - 1] = strides[axis] * std::max<std::int64_t>(sizes.begin()[axis], 1);
    }
    return Tensor::empty({sizes.begin(), axes}, {strides.data(), axes}, type, device);
}

// --- where a call runs ---------------------------------------------------------------------------

Place::Place(Tensor const& tensor) : device_(tensor.is_cuda() ? CARAFE_CUDA : CARAFE_CPU) {
    if (device_ == CARAFE_CPU) {
        std::uint32_t threads = 0;
        succeeded(torch_get_num_threads(&threads), "torch_get_num_threads");
        threads_ = static_cast<std::int32_t>(threads);
        return;
    }
    static auto const current_stream =
        reinterpret_cast<CurrentCudaStream>(find_function("libtorch_cuda.so", kCurrentCudaStream));
    if (current_stream == nullptr) {
        throw std::runtime_error(
            Text("libtorch_cuda.so of this process has no ", kCurrentCudaStream).c_str());
    }
    succeeded(
        aoti_torch_create_device_guard(tensor.device().index, &guard_),
        "aoti_torch_create_device_guard");
    AOTITorchError const error = current_stream(tensor.device().index, &stream_);
    if (error != 0) aoti_torch_delete_device_guard(std::exchange(guard_, nullptr));
    succeeded(error, kCurrentCudaStream);
}

Place::~Place() {
    if (guard_ != nullptr) aoti_torch_delete_device_guard(guard_);
}

}  // namespace carafe::torch_adapter
