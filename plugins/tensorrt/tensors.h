// The tensors of a plugin: their shapes as numbers or expressions, element types and formats.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "roi_align.h"
#include "types.h"

namespace carafe {

/// Most tensors a plugin has, inputs and outputs together.
constexpr std::int32_t kMaxTensors = 2 * kMaxLevels + 5;

/// One dimension: a number, unknown, or (while a network is built) an expression.
class Dim {
  public:
    Dim() = default;  ///< unknown
    Dim(std::int64_t value) : value_(value) {}
    Dim(nvinfer1::IDimensionExpr const& expression, nvinfer1::IExprBuilder& builder);

    bool known() const { return value_ >= 0; }
    std::int64_t value() const { return value_; }

    Dim operator*(std::int64_t factor) const;
    Dim operator-(std::int64_t other) const;

    /// Null when the dimension is unknown without an expression.
    nvinfer1::IDimensionExpr const* expression(nvinfer1::IExprBuilder& builder) const;

  private:
    Dim combined(nvinfer1::DimensionOperation operation, std::int64_t other) const;

    std::int64_t value_ = -1;
    nvinfer1::IDimensionExpr const* expression_ = nullptr;
    nvinfer1::IExprBuilder* builder_ = nullptr;
};

struct Shape {
    std::int32_t rank = 0;
    Dim at[nvinfer1::Dims::MAX_DIMS];
};

Shape shape_of(nvinfer1::Dims const& dims);
Shape shape_of(nvinfer1::DimsExprs const& dims, nvinfer1::IExprBuilder& builder);

/// What may stand in a tensor.
enum class Role {
    kMap,   ///< float32, float16 or bfloat16, linear or channels-last; all maps of a plugin alike
    kRows,  ///< likewise, but linear always
    kFloat32,  ///< these are linear always
    kInt32,
    kInt64,
};

/// It has the element type of the network.
bool follows_network(Role role);

/// How the operator's contract describes a tensor.
struct TensorSpec {
    char const* name;
    char const* contract;  ///< shape, in the contract's letters
    Role role;
    Shape shape;  ///< that shape in numbers, as far as it is known
};

/// Inputs, then outputs.
template <typename T>
struct TensorList {
    std::int32_t count = 0;
    T at[kMaxTensors];
};

using Descriptions = TensorList<nvinfer1::PluginTensorDesc>;
using Specs = TensorList<TensorSpec>;
using Shapes = TensorList<Shape>;

/// False, with the reason in `message`, when a shape contradicts its specification.
bool check(TensorSpec const& spec, Shape const& shape, Message& message);

/// The same for an element type; all maps and rows have the type of the first.
bool check(
    TensorSpec const& spec, nvinfer1::DataType type, nvinfer1::DataType first_map,
    Message& message);

/// Position of the first map or rows; 0 where a plugin has none.
std::int32_t first_map(Specs const& specs);

/// The type of what is neither.
nvinfer1::DataType type_of(Role role);

/// Whether TensorRT may hand over tensor `position` as described, given those before it.
bool supports(
    Specs const& specs, std::int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors);

/// The element type of a map.
DType dtype_of(nvinfer1::PluginTensorDesc const& map);

/// The memory layout of a map.
Layout layout_of(nvinfer1::PluginTensorDesc const& map);

/// Elements from one pixel of a channels-last map to the next.
std::int32_t pitch_of(nvinfer1::PluginTensorDesc const& map);

/// One of a tensor's dimensions, known to fit.
inline std::int32_t size_at(nvinfer1::PluginTensorDesc const& tensor, int axis) {
    return static_cast<std::int32_t>(tensor.dims.d[axis]);
}

char const* name_of(nvinfer1::DataType type);

}  // namespace carafe
