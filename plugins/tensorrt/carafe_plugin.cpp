// Carafe and CarafeEncoded; the contract stands in plugins/README.md.
#include <new>

#include "cuda_kernels.h"
#include "plugin.h"

namespace carafe {
namespace {

enum Tensor { kFeatures, kMasks, kOut, kTensors };

class CarafePlugin final : public Plugin {
  public:
    explicit CarafePlugin(MaskSource source) : source_(source) {}

    char const* getPluginName() const noexcept override {
        return source_ == MaskSource::kEncoded ? "CarafeEncoded" : "Carafe";
    }

    Plugin* copy() const override { return new (std::nothrow) CarafePlugin(*this); }

    Attributes attributes() override {
        return {
            3,
            {attribute("kernel_size", kernel_size_), attribute("group_size", group_size_),
             attribute("scale_factor", scale_factor_)}};
    }

  protected:
    Specs specs(Shapes const& inputs) const override {
        Dim const* features = inputs.at[kFeatures].at;
        Dim const batch = features[0], channels = features[1];
        Dim const height = features[2], width = features[3];
        Dim const out_height = height * scale_factor_, out_width = width * scale_factor_;
        Dim const weights = mask_channels(params());
        TensorSpec const masks =
            source_ == MaskSource::kEncoded
                ? TensorSpec{"encoded", "[N, scale_factor**2*group_size*kernel_size**2, H, W]", Role::kMap, {4, {batch, weights, height, width}}}
                : TensorSpec{
                      "masks",
                      "[N, group_size*kernel_size**2, scale_factor*H, scale_factor*W]",
                      Role::kMap,
                      {4, {batch, weights, out_height, out_width}}};
        return {
            kTensors,
            {{"features", "[N, C, H, W]", Role::kMap, {4, {batch, channels, height, width}}},
             masks,
             {"out",
              "[N, C, scale_factor*H, scale_factor*W]",
              Role::kMap,
              {4, {batch, channels, out_height, out_width}}}}};
    }

    bool check_attributes(Message& message) const override {
        return carafe::check(params(), message);
    }

    bool check(Descriptions const& tensors, Message& message) const override {
        return carafe::check(params(tensors), message);
    }

    cudaError_t launch(
        Descriptions const& tensors, void const* const* inputs, void* const* outputs, void*,
        cudaStream_t stream) const override {
        return launch_carafe(
            params(tensors), inputs[kFeatures], inputs[kMasks], outputs[0], stream);
    }

  private:
    CarafeParams params() const {
        CarafeParams params{};
        params.source = source_;
        params.kernel_size = kernel_size_;
        params.groups = group_size_;
        params.scale = scale_factor_;
        return params;
    }

    CarafeParams params(Descriptions const& tensors) const {
        nvinfer1::PluginTensorDesc const& features = tensors.at[kFeatures];
        CarafeParams params = this->params();
        params.dtype = dtype_of(features);
        params.layout = layout_of(features);
        params.batch = size_at(features, 0);
        params.channels = size_at(features, 1);
        params.height = size_at(features, 2);
        params.width = size_at(features, 3);
        params.feature_pitch = pitch_of(features);
        params.mask_pitch = pitch_of(tensors.at[kMasks]);
        params.out_pitch = pitch_of(tensors.at[kOut]);
        return params;
    }

    MaskSource source_;
    std::int32_t kernel_size_ = 0, group_size_ = 0, scale_factor_ = 0;
};

}  // namespace

Plugin& carafe_prototype() {
    static CarafePlugin prototype(MaskSource::kNormalized);
    return prototype;
}

Plugin& carafe_encoded_prototype() {
    static CarafePlugin prototype(MaskSource::kEncoded);
    return prototype;
}

}  // namespace carafe
