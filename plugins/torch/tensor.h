// Tensors of torch through its stable C interface, and where a call of the kernels runs.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <utility>
#include <vector>

#include "shim.h"
#include "text.h"
#include "types.h"

namespace carafe::torch_adapter {

/// ValueError in Python.
template <typename... Parts>
void require(bool fits, Parts const&... parts) {
    if (!fits) throw std::invalid_argument(Text(parts...).c_str());
}

/// Torch has done what it was asked to; else RuntimeError in Python, with torch's reason where that
/// torch gives it.
void succeeded(AOTITorchError error, char const* what);

/// Address of a function of a library of this process; null where there is none.
void* find_function(char const* library, char const* name);

/// Owns a handle.
class Tensor {
  public:
    explicit Tensor(AtenTensorHandle handle);
    Tensor(Tensor&& other) noexcept { *this = std::move(other); }
    Tensor& operator=(Tensor&& other) noexcept;
    ~Tensor();

    /// Uninitialised.
    static Tensor empty(Sizes sizes, Sizes strides, Type type, Device device);

    bool is_defined() const { return sizes_.data != nullptr; }
    std::int64_t axes() const { return sizes_.count; }
    std::int64_t size(std::int64_t axis) const { return sizes_[axis]; }
    Sizes sizes() const { return sizes_; }
    Type type() const { return type_; }
    Device device() const { return device_; }
    bool is_cuda() const { return device_.type == aoti_torch_device_type_cuda(); }
    void const* data() const;
    void* mutable_data() const;

    /// Dense in that order, as torch's is_contiguous().
    bool is_dense(Layout order) const;
    /// kNHWC for four axes that are dense in that order and no other, else kNCHW. Results take
    /// their order from here.
    Layout order() const;
    /// Itself or a copy, dense in that order.
    Tensor in_order(Layout order) const;

    /// For torch, which owns the handle.
    AtenTensorHandle share() const;
    AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  private:
    AtenTensorHandle handle_ = nullptr;
    Sizes sizes_{}, strides_{};
    Type type_{};
    Device device_{};
};

/// [N, C, H, W] and how its axes lie in memory in either order, as torch's empty() lays them out.
struct Map {
    std::int64_t sizes[4], strides[4];

    Map(Layout order, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);
};

/// One axis for every size, the last one densest.
Tensor empty_rows(std::initializer_list<std::int64_t> sizes, Type type, Device device);

/// Inside, the tensor's device is the current one; where and how a call computes.
class Place {
  public:
    explicit Place(Tensor const& tensor);
    ~Place();
    Place(Place const&) = delete;
    Place& operator=(Place const&) = delete;

    std::int32_t device() const { return device_; }
    void* stream() const { return stream_; }
    std::int32_t threads() const { return threads_; }

  private:
    DeviceGuardHandle guard_ = nullptr;
    std::int32_t device_;
    void* stream_ = nullptr;
    std::int32_t threads_ = 0;
};

}  // namespace carafe::torch_adapter
