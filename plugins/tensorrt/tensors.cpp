#include "tensors.h"

#include <algorithm>
#include <limits>

namespace carafe {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace {

/// Writes "[1, ?, 16]" for a shape that is partly unknown.
void print(Shape const& shape, char* text, std::size_t size) {
    std::size_t used = 0;
    auto const append = [&](char const* format, auto... values) {
        if (used >= size) return;
        int const written = std::snprintf(text + used, size - used, format, values...);
        if (written > 0) used += static_cast<std::size_t>(written);
    };
    append("[");
    for (std::int32_t i = 0; i < shape.rank; ++i) {
        if (i > 0) append(", ");
        if (shape.at[i].known()) {
            append("%lld", static_cast<long long>(shape.at[i].value()));
        } else {
            append("?");
        }
    }
    append("]");
}

bool contradict(Dim const& first, Dim const& second) {
    return first.known() && second.known() && first.value() != second.value();
}

bool is_channels_last(TensorFormat format) {
    return format == TensorFormat::kHWC || format == TensorFormat::kHWC8;
}

/// The formats of TensorRT's table for a map: linear, or channels-last as the type allows.
bool is_map_format(DataType type, TensorFormat format) {
    switch (type) {
        case DataType::kFLOAT:
            return format == TensorFormat::kLINEAR || format == TensorFormat::kHWC;
        case DataType::kHALF:
        case DataType::kBF16:
            return format == TensorFormat::kLINEAR || format == TensorFormat::kHWC8;
        default:
            return false;
    }
}

}  // namespace

bool follows_network(Role role) {
    return role == Role::kMap || role == Role::kRows;
}

std::int32_t first_map(Specs const& specs) {
    for (std::int32_t i = 0; i < specs.count; ++i) {
        if (follows_network(specs.at[i].role)) return i;
    }
    return 0;
}

DataType type_of(Role role) {
    switch (role) {
        case Role::kInt32:
            return DataType::kINT32;
        case Role::kInt64:
            return DataType::kINT64;
        default:
            return DataType::kFLOAT;
    }
}

Dim::Dim(IDimensionExpr const& expression, IExprBuilder& builder)
    : value_(expression.isConstant() ? expression.getConstantValue() : -1),
      expression_(&expression),
      builder_(&builder) {}

Dim Dim::operator*(std::int64_t factor) const {
    if (known()) return {value_ * factor};
    return combined(DimensionOperation::kPROD, factor);
}

Dim Dim::operator-(std::int64_t other) const {
    if (known()) return {value_ - other};
    return combined(DimensionOperation::kSUB, other);
}

Dim Dim::combined(DimensionOperation operation, std::int64_t other) const {
    if (expression_ == nullptr) return {};
    IDimensionExpr const* const number = builder_->constant(other);
    if (number == nullptr) return {};
    IDimensionExpr const* const result = builder_->operation(operation, *expression_, *number);
    return result == nullptr ? Dim() : Dim(*result, *builder_);
}

IDimensionExpr const* Dim::expression(IExprBuilder& builder) const {
    return known() ? builder.constant(value_) : expression_;
}

Shape shape_of(Dims const& dims) {
    Shape shape;
    shape.rank = dims.nbDims;
    for (std::int32_t i = 0; i < shape.rank; ++i) shape.at[i] = Dim(dims.d[i]);
    return shape;
}

Shape shape_of(DimsExprs const& dims, IExprBuilder& builder) {
    Shape shape;
    shape.rank = dims.nbDims;
    for (std::int32_t i = 0; i < shape.rank; ++i) shape.at[i] = Dim(*dims.d[i], builder);
    return shape;
}

bool check(TensorSpec const& spec, Shape const& shape, Message& message) {
    bool fits = shape.rank == spec.shape.rank;
    for (std::int32_t i = 0; fits && i < shape.rank; ++i) {
        fits = !contradict(shape.at[i], spec.shape.at[i]);
    }
    char found[96];
    if (!fits) {
        char expected[96];
        print(shape, found, sizeof found);
        print(spec.shape, expected, sizeof expected);
        return message.set("%s is %s, expected %s = %s", spec.name, found, spec.contract, expected);
    }
    for (std::int32_t i = 0; i < shape.rank; ++i) {
        if (shape.at[i].value() > std::numeric_limits<std::int32_t>::max()) {
            print(shape, found, sizeof found);
            return message.set("%s is %s, expected sizes below 2^31", spec.name, found);
        }
    }
    return true;
}

bool check(TensorSpec const& spec, DataType type, DataType first_map, Message& message) {
    if (follows_network(spec.role)) {
        if (!is_map_format(type, TensorFormat::kLINEAR)) {
            return message.set(
                "%s is %s, expected float32, float16 or bfloat16", spec.name, name_of(type));
        }
        if (type != first_map) {
            return message.set(
                "%s is %s, expected %s like the maps before it", spec.name, name_of(type),
                name_of(first_map));
        }
        return true;
    }
    if (type == type_of(spec.role)) return true;
    return message.set(
        "%s is %s, expected %s", spec.name, name_of(type), name_of(type_of(spec.role)));
}

bool supports(Specs const& specs, std::int32_t position, DynamicPluginTensorDesc const* tensors) {
    PluginTensorDesc const& tensor = tensors[position].desc;
    Role const role = specs.at[position].role;
    if (!follows_network(role)) {
        return tensor.type == type_of(role) && tensor.format == TensorFormat::kLINEAR;
    }
    PluginTensorDesc const& first = tensors[first_map(specs)].desc;
    if (role == Role::kRows) {
        return is_map_format(tensor.type, TensorFormat::kLINEAR) && tensor.type == first.type &&
               tensor.format == TensorFormat::kLINEAR;
    }
    return is_map_format(tensor.type, tensor.format) && tensor.type == first.type &&
           tensor.format == first.format;
}

DType dtype_of(PluginTensorDesc const& map) {
    switch (map.type) {
        case DataType::kHALF:
            return DType::kFloat16;
        case DataType::kBF16:
            return DType::kBFloat16;
        default:
            return DType::kFloat32;
    }
}

Layout layout_of(PluginTensorDesc const& map) {
    return is_channels_last(map.format) ? Layout::kNHWC : Layout::kNCHW;
}

std::int32_t pitch_of(PluginTensorDesc const& map) {
    std::int32_t const channels = size_at(map, map.dims.nbDims - 3);
    return map.format == TensorFormat::kHWC8 ? (channels + 7) / 8 * 8 : channels;
}

char const* name_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT:
            return "float32";
        case DataType::kHALF:
            return "float16";
        case DataType::kBF16:
            return "bfloat16";
        case DataType::kINT8:
            return "int8";
        case DataType::kINT32:
            return "int32";
        case DataType::kINT64:
            return "int64";
        case DataType::kBOOL:
            return "bool";
        case DataType::kUINT8:
            return "uint8";
        default:
            return "of another type";
    }
}

}  // namespace carafe
