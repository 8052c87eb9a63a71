#include "plugin.h"

#include <algorithm>
#include <cstdio>

namespace carafe {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IExprBuilder;
using nvinfer1::IPluginCapability;
using nvinfer1::IPluginResourceContext;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneCore;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;

namespace {

constexpr std::int32_t kSuccess = 0;
constexpr std::int32_t kFailure = 1;

Descriptions gather(
    PluginTensorDesc const* inputs, std::int32_t input_count, PluginTensorDesc const* outputs,
    std::int32_t output_count) {
    Descriptions all;
    all.count = input_count + output_count;
    std::copy_n(inputs, input_count, all.at);
    std::copy_n(outputs, output_count, all.at + input_count);
    return all;
}

/// Descriptions with the upper bounds as shapes.
Descriptions gather_maxima(
    DynamicPluginTensorDesc const* inputs, std::int32_t input_count,
    DynamicPluginTensorDesc const* outputs, std::int32_t output_count) {
    Descriptions all;
    for (std::int32_t i = 0; i < input_count + output_count; ++i) {
        DynamicPluginTensorDesc const& tensor =
            i < input_count ? inputs[i] : outputs[i - input_count];
        all.at[i] = tensor.desc;
        all.at[i].dims = tensor.max;
    }
    all.count = input_count + output_count;
    return all;
}

Shapes shapes_of(Descriptions const& tensors) {
    Shapes shapes;
    shapes.count = tensors.count;
    for (std::int32_t i = 0; i < tensors.count; ++i) {
        shapes.at[i] = shape_of(tensors.at[i].dims);
    }
    return shapes;
}

void report(char const* plugin, Message const& message) {
    std::fprintf(stderr, "carafe: %s: %s\n", plugin, message.text);
}

}  // namespace

std::int32_t Plugin::failed(Message const& message) const {
    report(getPluginName(), message);
    return kFailure;
}

bool Plugin::initialize(PluginFieldCollection const* fields) noexcept {
    Message message;
    if (read(fields, attributes(), message) && check_attributes(message)) return true;
    report(getPluginName(), message);
    return false;
}

bool Plugin::check_counts(std::int32_t inputs, std::int32_t outputs, Message& message) const {
    std::int32_t const expected = specs({}).count - this->outputs();
    if (inputs == expected && outputs == this->outputs()) return true;
    return message.set(
        "%d inputs and %d outputs, expected %d and %d", inputs, outputs, expected, this->outputs());
}

bool Plugin::check_shapes(Shapes const& shapes, Message& message) const {
    Specs const expected = specs(shapes);
    for (std::int32_t i = 0; i < shapes.count; ++i) {
        if (!carafe::check(expected.at[i], shapes.at[i], message)) return false;
    }
    return true;
}

bool Plugin::check_all(Descriptions const& tensors, Message& message) const {
    return check_shapes(shapes_of(tensors), message) && check(tensors, message);
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE:
            return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD:
            return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME:
            return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
    return copy();
}

std::int32_t Plugin::getOutputDataTypes(
    DataType* outputs, std::int32_t output_count, DataType const* inputs,
    std::int32_t input_count) const noexcept {
    Message message;
    if (!check_counts(input_count, output_count, message)) return failed(message);
    Specs const all = specs({});
    std::int32_t const first = first_map(all);
    for (std::int32_t i = 0; i < input_count; ++i) {
        if (!carafe::check(all.at[i], inputs[i], inputs[first], message)) return failed(message);
    }
    for (std::int32_t i = 0; i < output_count; ++i) {
        Role const role = all.at[input_count + i].role;
        outputs[i] = follows_network(role) ? inputs[first] : type_of(role);
    }
    return kSuccess;
}

std::int32_t Plugin::getOutputShapes(
    DimsExprs const* inputs, std::int32_t input_count, DimsExprs const*, std::int32_t,
    DimsExprs* outputs, std::int32_t output_count, IExprBuilder& builder) noexcept {
    Message message;
    if (!check_counts(input_count, output_count, message)) return failed(message);
    Shapes shapes;
    shapes.count = input_count;
    for (std::int32_t i = 0; i < input_count; ++i) shapes.at[i] = shape_of(inputs[i], builder);
    if (!check_shapes(shapes, message)) return failed(message);
    Specs const all = specs(shapes);
    for (std::int32_t i = 0; i < output_count; ++i) {
        Shape const& shape = all.at[input_count + i].shape;
        outputs[i].nbDims = shape.rank;
        for (std::int32_t axis = 0; axis < shape.rank; ++axis) {
            outputs[i].d[axis] = shape.at[axis].expression(builder);
        }
    }
    return kSuccess;
}

bool Plugin::supportsFormatCombination(
    std::int32_t position, DynamicPluginTensorDesc const* tensors, std::int32_t input_count,
    std::int32_t output_count) noexcept {
    Message message;
    if (!check_counts(input_count, output_count, message)) return failed(message) == kSuccess;
    return supports(specs({}), position, tensors);
}

std::int32_t Plugin::configurePlugin(
    DynamicPluginTensorDesc const* inputs, std::int32_t input_count,
    DynamicPluginTensorDesc const* outputs, std::int32_t output_count) noexcept {
    Message message;
    if (!check_counts(input_count, output_count, message)) return failed(message);
    Shapes shapes;
    shapes.count = input_count + output_count;
    for (std::int32_t i = 0; i < shapes.count; ++i) {
        shapes.at[i] = shape_of((i < input_count ? inputs[i] : outputs[i - input_count]).desc.dims);
    }
    // Bounds of different tensors need not belong together, so shapes are compared where they are
    // fixed, and the kernel's own limits are held against the largest.
    Descriptions const largest = gather_maxima(inputs, input_count, outputs, output_count);
    if (!check_shapes(shapes, message) || !check(largest, message)) return failed(message);
    return kSuccess;
}

std::size_t Plugin::getWorkspaceSize(
    DynamicPluginTensorDesc const* inputs, std::int32_t input_count,
    DynamicPluginTensorDesc const* outputs, std::int32_t output_count) const noexcept {
    return workspace_size(gather_maxima(inputs, input_count, outputs, output_count));
}

char const* Plugin::getTimingCacheID() noexcept {
    return getMetadataString();
}

char const* Plugin::getMetadataString() noexcept {
    print(attributes(), printed_, sizeof printed_);
    return printed_;
}

std::int32_t Plugin::onShapeChange(
    PluginTensorDesc const* inputs, std::int32_t input_count, PluginTensorDesc const* outputs,
    std::int32_t output_count) noexcept {
    Message message;
    if (!check_counts(input_count, output_count, message)) return failed(message);
    Descriptions const all = gather(inputs, input_count, outputs, output_count);
    return check_all(all, message) ? kSuccess : failed(message);
}

std::int32_t Plugin::enqueue(
    PluginTensorDesc const* input_descriptions, PluginTensorDesc const* output_descriptions,
    void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) noexcept {
    Message message;
    std::int32_t const input_count = specs({}).count - this->outputs();
    Descriptions const all =
        gather(input_descriptions, input_count, output_descriptions, this->outputs());
    if (!check_all(all, message)) return failed(message);
    cudaError_t const error = launch(all, inputs, outputs, workspace, stream);
    if (error == cudaSuccess) return kSuccess;
    message.set("enqueue: %s", cudaGetErrorString(error));
    return failed(message);
}

IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept {
    return copy();
}

PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    return fields_.set(attributes(), true);
}

IPluginV3* Creator::createPlugin(
    char const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept {
    Plugin* const plugin = prototype_.copy();
    if (plugin == nullptr || plugin->initialize(fields)) return plugin;
    delete plugin;
    return nullptr;
}

}  // namespace carafe
