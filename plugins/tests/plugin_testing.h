// Plays TensorRT's part towards the plugins: fields, tensor descriptions, dimension expressions.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

/// The library's entry point: linked into tests, looked up by the harness.
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);

namespace carafe::testing {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

/// Fields for createPlugin, with their values.
class Fields {
  public:
    Fields& add(char const* name, std::vector<std::int32_t> values) {
        integers_.push_back(std::move(values));
        return add(
            name, integers_.back().data(), PluginFieldType::kINT32,
            static_cast<std::int32_t>(integers_.back().size()));
    }

    Fields& add(char const* name, float value) {
        floats_.push_back(value);
        return add(name, &floats_.back(), PluginFieldType::kFLOAT32, 1);
    }

    Fields& add(char const* name, void const* data, PluginFieldType type, std::int32_t length) {
        fields_.emplace_back(name, data, type, length);
        return *this;
    }

    Fields& remove(std::string const& name) {
        std::vector<nvinfer1::PluginField> others;
        for (nvinfer1::PluginField const& field : fields_) {
            if (field.name != name) others.push_back(field);
        }
        fields_ = others;
        return *this;
    }

    nvinfer1::PluginFieldCollection collection() const {
        return {static_cast<std::int32_t>(fields_.size()), fields_.data()};
    }

  private:
    std::deque<std::vector<std::int32_t>> integers_;
    std::deque<float> floats_;
    std::vector<nvinfer1::PluginField> fields_;
};

inline std::unique_ptr<Fields> carafe_fields(int kernel_size = 3, int groups = 1, int scale = 2) {
    auto fields = std::make_unique<Fields>();
    fields->add("kernel_size", std::vector<std::int32_t>{kernel_size})
        .add("group_size", std::vector<std::int32_t>{groups})
        .add("scale_factor", std::vector<std::int32_t>{scale});
    return fields;
}

inline std::unique_ptr<Fields> roi_align_fields(std::vector<std::int32_t> strides = {4, 8}) {
    auto fields = std::make_unique<Fields>();
    fields->add("output_size", std::vector<std::int32_t>{2})
        .add("sampling_ratio", std::vector<std::int32_t>{0})
        .add("strides", std::move(strides))
        .add("finest_scale", std::vector<std::int32_t>{56});
    return fields;
}

inline std::unique_ptr<Fields> nms_fields(std::int32_t max_output = 4) {
    auto fields = std::make_unique<Fields>();
    fields->add("iou_threshold", 0.5f)
        .add("score_threshold", 0.1f)
        .add("max_output", std::vector<std::int32_t>{max_output});
    return fields;
}

inline std::unique_ptr<Fields> rpn_candidates_fields(
    std::int32_t candidates = 20, std::vector<std::int32_t> strides = {4, 8}) {
    auto fields = std::make_unique<Fields>();
    fields->add("num_candidates", std::vector<std::int32_t>{candidates})
        .add("min_size", 0.0f)
        .add("strides", std::move(strides));
    return fields;
}

inline std::unique_ptr<Fields> fields_of(std::string const& plugin) {
    if (plugin == "MultilevelRoiAlign") return roi_align_fields();
    if (plugin == "BatchedNms") return nms_fields();
    if (plugin == "RpnCandidates") return rpn_candidates_fields();
    if (plugin == "BoxCandidates") return std::make_unique<Fields>();
    return carafe_fields();
}

inline nvinfer1::IPluginCreatorV3One& creator(std::string const& name) {
    std::int32_t count = 0;
    auto* const* creators = getCreators(count);
    for (std::int32_t i = 0; i < count; ++i) {
        auto* const found = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (found->getPluginName() == name) return *found;
    }
    throw std::out_of_range("no creator " + name);
}

/// A plugin with its three capabilities; null when the creator refused.
class PluginHandle {
  public:
    PluginHandle(std::string const& name, Fields const& fields) {
        nvinfer1::PluginFieldCollection const collection = fields.collection();
        reset(creator(name).createPlugin("test", &collection, nvinfer1::TensorRTPhase::kBUILD));
    }

    explicit PluginHandle(nvinfer1::IPluginV3* plugin) { reset(plugin); }

    explicit operator bool() const { return plugin_ != nullptr; }
    nvinfer1::IPluginV3& operator*() const { return *plugin_; }

    nvinfer1::IPluginV3OneCore* core = nullptr;
    nvinfer1::IPluginV3OneBuild* build = nullptr;
    nvinfer1::IPluginV3OneRuntime* runtime = nullptr;

  private:
    void reset(nvinfer1::IPluginV3* plugin) {
        plugin_.reset(plugin);
        if (plugin == nullptr) return;
        using Type = nvinfer1::PluginCapabilityType;
        core =
            static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(Type::kCORE));
        build =
            static_cast<nvinfer1::IPluginV3OneBuild*>(plugin->getCapabilityInterface(Type::kBUILD));
        runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
            plugin->getCapabilityInterface(Type::kRUNTIME));
    }

    std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

using Sizes = std::vector<std::int64_t>;

inline nvinfer1::Dims dims(Sizes const& sizes) {
    nvinfer1::Dims dims{static_cast<std::int32_t>(sizes.size()), {}};
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

inline nvinfer1::PluginTensorDesc tensor(
    Sizes const& sizes, DataType type = DataType::kFLOAT,
    TensorFormat format = TensorFormat::kLINEAR) {
    return {dims(sizes), type, format, 1.0f};
}

/// `sizes` with -1 for what is dynamic.
inline nvinfer1::DynamicPluginTensorDesc dynamic_tensor(
    Sizes const& sizes, Sizes const& largest, DataType type = DataType::kFLOAT,
    TensorFormat format = TensorFormat::kLINEAR) {
    return {tensor(sizes, type, format), dims(largest), dims(largest), dims(largest)};
}

/// An expression, remembered as text.
class Expression : public nvinfer1::IDimensionExpr, private nvinfer1::apiv::VDimensionExpr {
  public:
    Expression(std::string written, std::int64_t value) : text(std::move(written)), value_(value) {
        mImpl = this;
    }

    std::string const text;

  private:
    bool isConstant() const override { return value_ >= 0; }
    std::int64_t getConstantValue() const override {
        return value_ >= 0 ? value_ : std::numeric_limits<std::int64_t>::min();
    }
    bool isSizeTensor() const override { return false; }

    std::int64_t value_;
};

/// Builds such expressions.
class Builder : public nvinfer1::IExprBuilder, private nvinfer1::apiv::VExprBuilder {
  public:
    Builder() { mImpl = this; }

    nvinfer1::IDimensionExpr const* variable(std::string const& name) { return keep(name, -1); }

    nvinfer1::IDimensionExpr const* constant(std::int64_t value) override {
        return keep(std::to_string(value), value);
    }

  private:
    nvinfer1::IDimensionExpr const* operation(
        nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
        nvinfer1::IDimensionExpr const& second) override {
        if (op != nvinfer1::DimensionOperation::kPROD) return nullptr;
        return keep(text_of(first) + "*" + text_of(second), -1);
    }

    nvinfer1::IDimensionExpr const* declareSizeTensor(
        std::int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override {
        return nullptr;
    }

    static std::string text_of(nvinfer1::IDimensionExpr const& expression) {
        return static_cast<Expression const&>(expression).text;
    }

    nvinfer1::IDimensionExpr const* keep(std::string const& text, std::int64_t value) {
        expressions_.push_back(std::make_unique<Expression>(text, value));
        return expressions_.back().get();
    }

    std::deque<std::unique_ptr<Expression>> expressions_;
};

/// Shapes as text, "N 4 2*H W": numbers are constants, names are unknown.
using ShapeText = std::string;

/// The output shapes that a plugin infers; empty when it refuses.
inline std::vector<ShapeText> infer_shapes(
    PluginHandle const& plugin, std::vector<ShapeText> const& inputs) {
    Builder builder;
    std::vector<nvinfer1::DimsExprs> shapes;
    for (ShapeText const& input : inputs) {
        nvinfer1::DimsExprs shape{};
        std::istringstream words(input);
        for (std::string word; words >> word;) {
            bool const number = word.find_first_not_of("0123456789") == std::string::npos;
            shape.d[shape.nbDims++] =
                number ? builder.constant(std::stoll(word)) : builder.variable(word);
        }
        shapes.push_back(shape);
    }
    std::int32_t const count = plugin.build->getNbOutputs();
    std::vector<nvinfer1::DimsExprs> outputs(static_cast<std::size_t>(count));
    if (plugin.build->getOutputShapes(
            shapes.data(), static_cast<std::int32_t>(shapes.size()), nullptr, 0, outputs.data(),
            count, builder) != 0) {
        return {};
    }
    std::vector<ShapeText> texts;
    for (nvinfer1::DimsExprs const& output : outputs) {
        ShapeText text;
        for (std::int32_t axis = 0; axis < output.nbDims; ++axis) {
            text += (axis > 0 ? " " : "") + static_cast<Expression const*>(output.d[axis])->text;
        }
        texts.push_back(text);
    }
    return texts;
}

}  // namespace carafe::testing
