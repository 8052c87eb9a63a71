// MultilevelRoiAlign; the contract stands in plugins/README.md.
#include <algorithm>
#include <new>

#include "cuda_kernels.h"
#include "plugin.h"

namespace carafe {
namespace {

enum Tensor { kRois, kFeatures };

class RoiAlignPlugin final : public Plugin {
  public:
    char const* getPluginName() const noexcept override { return "MultilevelRoiAlign"; }

    Plugin* copy() const override { return new (std::nothrow) RoiAlignPlugin(*this); }

    Attributes attributes() override {
        return {
            4,
            {attribute("output_size", output_size_), attribute("sampling_ratio", sampling_ratio_),
             attribute("strides", strides_, levels_), attribute("finest_scale", finest_scale_)}};
    }

  protected:
    Specs specs(Shapes const& inputs) const override {
        static constexpr char const* kNames[kMaxLevels] = {
            "features0",  "features1",  "features2",  "features3", "features4",  "features5",
            "features6",  "features7",  "features8",  "features9", "features10", "features11",
            "features12", "features13", "features14", "features15"};
        Dim const batch = inputs.at[kRois].at[0], rois = inputs.at[kRois].at[1];
        Dim const channels = inputs.at[kFeatures].at[1];
        Dim const side = output_size_;
        Specs specs;
        specs.at[kRois] = {"rois", "[B, K, 4]", Role::kFloat32, {3, {batch, rois, 4}}};
        for (std::int32_t level = 0; level < levels_; ++level) {
            specs.at[kFeatures + level] = {
                kNames[level], "[B, C, H, W]", Role::kMap, {4, {batch, channels, {}, {}}}};
        }
        specs.at[kFeatures + levels_] = {
            "out",
            "[B, K, C, output_size, output_size]",
            Role::kMap,
            {5, {batch, rois, channels, side, side}}};
        specs.count = kFeatures + levels_ + 1;
        return specs;
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
        return launch_roi_align(
            params(tensors), static_cast<float const*>(inputs[kRois]), inputs + kFeatures,
            outputs[0], stream);
    }

  private:
    RoiAlignParams params() const {
        RoiAlignParams params{};
        params.levels = levels_;
        params.output_size = output_size_;
        params.sampling_ratio = sampling_ratio_;
        params.finest_scale = finest_scale_;
        std::copy_n(strides_, levels_, params.strides);
        return params;
    }

    RoiAlignParams params(Descriptions const& tensors) const {
        nvinfer1::PluginTensorDesc const& rois = tensors.at[kRois];
        nvinfer1::PluginTensorDesc const* maps = tensors.at + kFeatures;
        RoiAlignParams params = this->params();
        params.dtype = dtype_of(maps[0]);
        params.layout = layout_of(maps[0]);
        params.batch = size_at(rois, 0);
        params.rois = size_at(rois, 1);
        params.channels = size_at(maps[0], 1);
        for (std::int32_t level = 0; level < levels_; ++level) {
            params.heights[level] = size_at(maps[level], 2);
            params.widths[level] = size_at(maps[level], 3);
        }
        params.feature_pitch = pitch_of(maps[0]);
        params.out_pitch = pitch_of(maps[levels_]);
        return params;
    }

    std::int32_t output_size_ = 0, sampling_ratio_ = 0, finest_scale_ = 0;
    std::int32_t strides_[kMaxLevels] = {};
    std::int32_t levels_ = 0;
};

}  // namespace

Plugin& multilevel_roi_align_prototype() {
    static RoiAlignPlugin prototype;
    return prototype;
}

}  // namespace carafe
