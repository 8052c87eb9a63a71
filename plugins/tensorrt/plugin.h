// What all our TensorRT plugins share. An operator's class only names its tensors and attributes
// and turns descriptions into the kernel's parameters; everything else is here.
//
// No method throws, calls CUDA before enqueue, or uses ILogger (whose vtable differs between
// TensorRT 10 and 11): errors are a line on stderr and a return code.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "fields.h"
#include "operators.h"
#include "tensors.h"

namespace carafe {

constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "carafe";

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
  public:
    /// Takes the attributes from `fields`; false after a line on stderr when they do not fit.
    bool initialize(nvinfer1::PluginFieldCollection const* fields) noexcept;

    /// The attributes and where they are kept.
    virtual Attributes attributes() = 0;

    /// Null when memory is short.
    virtual Plugin* copy() const = 0;

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    std::int32_t getNbOutputs() const noexcept override { return outputs(); }
    std::int32_t getOutputDataTypes(
        nvinfer1::DataType* outputs, std::int32_t output_count, nvinfer1::DataType const* inputs,
        std::int32_t input_count) const noexcept override;
    std::int32_t getOutputShapes(
        nvinfer1::DimsExprs const* inputs, std::int32_t input_count,
        nvinfer1::DimsExprs const* shape_inputs, std::int32_t shape_input_count,
        nvinfer1::DimsExprs* outputs, std::int32_t output_count,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(
        std::int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        std::int32_t input_count, std::int32_t output_count) noexcept override;
    std::int32_t configurePlugin(
        nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs,
        std::int32_t output_count) noexcept override;
    std::size_t getWorkspaceSize(
        nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs,
        std::int32_t output_count) const noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    std::int32_t onShapeChange(
        nvinfer1::PluginTensorDesc const* inputs, std::int32_t input_count,
        nvinfer1::PluginTensorDesc const* outputs, std::int32_t output_count) noexcept override;
    std::int32_t enqueue(
        nvinfer1::PluginTensorDesc const* input_descriptions,
        nvinfer1::PluginTensorDesc const* output_descriptions, void const* const* inputs,
        void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

  protected:
    Plugin() = default;
    Plugin(Plugin const&) = default;

    /// All tensors, with the shapes that follow from those of the inputs (unknown where not given).
    virtual Specs specs(Shapes const& inputs) const = 0;

    virtual std::int32_t outputs() const { return 1; }

    /// Whether the kernel accepts the attributes, whatever the shapes.
    virtual bool check_attributes(Message& message) const = 0;

    /// Whether the kernel accepts tensors whose shapes agree with the specification.
    virtual bool check(Descriptions const& tensors, Message& message) const = 0;

    virtual std::size_t workspace_size(Descriptions const&) const { return 0; }

    /// Enqueues the kernel; `tensors` are checked.
    virtual cudaError_t launch(
        Descriptions const& tensors, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) const = 0;

  private:
    bool check_counts(std::int32_t inputs, std::int32_t outputs, Message& message) const;
    bool check_shapes(Shapes const& shapes, Message& message) const;
    bool check_all(Descriptions const& tensors, Message& message) const;
    std::int32_t failed(Message const& message) const;

    FieldList fields_;
    char printed_[512] = {};
};

/// Makes plugins of the prototype's kind.
class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(Plugin& prototype)
        : prototype_(prototype), names_(fields_.set(prototype.attributes(), false)) {}

    nvinfer1::IPluginV3* createPlugin(
        char const* name, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return names_; }
    char const* getPluginName() const noexcept override { return prototype_.getPluginName(); }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  private:
    Plugin& prototype_;
    FieldList fields_;
    nvinfer1::PluginFieldCollection const* names_;
};

/// The plugins without attributes yet, one of each kind.
#define CARAFE_PROTOTYPE(name, plugin, stem) Plugin& name##_prototype();
CARAFE_OPERATORS(CARAFE_PROTOTYPE)
#undef CARAFE_PROTOTYPE

}  // namespace carafe
