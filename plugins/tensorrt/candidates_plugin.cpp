// RpnCandidates and BoxCandidates; the contract stands in plugins/README.md.
#include <algorithm>
#include <new>

#include "candidates.h"
#include "cuda_kernels.h"
#include "plugin.h"

namespace carafe {
namespace {

class RpnCandidatesPlugin final : public Plugin {
  public:
    char const* getPluginName() const noexcept override { return "RpnCandidates"; }

    Plugin* copy() const override { return new (std::nothrow) RpnCandidatesPlugin(*this); }

    Attributes attributes() override {
        return {
            3,
            {attribute("num_candidates", candidates_), attribute("min_size", min_size_),
             attribute("strides", strides_, levels_)}};
    }

  protected:
    std::int32_t outputs() const override { return 2; }

    Specs specs(Shapes const& inputs) const override {
        static constexpr char const* kNames[2 * kMaxLevels] = {
            "maps0",  "maps1",  "maps2",  "maps3",  "maps4",  "maps5",  "maps6",  "maps7",
            "maps8",  "maps9",  "maps10", "maps11", "maps12", "maps13", "maps14", "maps15",
            "maps16", "maps17", "maps18", "maps19", "maps20", "maps21", "maps22", "maps23",
            "maps24", "maps25", "maps26", "maps27", "maps28", "maps29", "maps30", "maps31"};
        Dim const batch = inputs.at[kImageSizes].at[0], anchors = inputs.at[kAnchors].at[1];
        Dim const levels = levels_, candidates = candidates_;
        Specs specs;
        specs.at[kImageSizes] = {"image_sizes", "[B, 2]", Role::kFloat32, {2, {batch, 2}}};
        specs.at[kAnchors] = {
            "anchors", "[levels, A, 4]", Role::kFloat32, {3, {levels, anchors, 4}}};
        specs.at[kNormalization] = {"normalization", "[2, 4]", Role::kFloat32, {2, {2, 4}}};
        for (std::int32_t level = 0; level < levels_; ++level) {
            Dim const* const logits = inputs.at[kMaps + level].at;
            specs.at[kMaps + level] = {
                kNames[level], "[B, A, H, W]", Role::kMap, {4, {batch, anchors, {}, {}}}};
            specs.at[kMaps + levels_ + level] = {
                kNames[levels_ + level],
                "[B, 4*A, H, W]",
                Role::kMap,
                {4, {batch, anchors * 4, logits[2], logits[3]}}};
        }
        std::int32_t const first = kMaps + 2 * levels_;
        specs.at[first] = {
            "boxes",
            "[B, levels, num_candidates, 4]",
            Role::kFloat32,
            {4, {batch, levels, candidates, 4}}};
        specs.at[first + 1] = {
            "scores",
            "[B, levels, num_candidates]",
            Role::kFloat32,
            {3, {batch, levels, candidates}}};
        specs.count = first + 2;
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
        return launch_rpn_candidates(
            params(tensors), static_cast<float const*>(inputs[kImageSizes]),
            static_cast<float const*>(inputs[kAnchors]),
            static_cast<float const*>(inputs[kNormalization]), inputs + kMaps,
            static_cast<float*>(outputs[0]), static_cast<float*>(outputs[1]), stream);
    }

  private:
    enum Tensor { kImageSizes, kAnchors, kNormalization, kMaps };

    RpnCandidatesParams params() const {
        RpnCandidatesParams params{};
        params.levels = levels_;
        params.candidates = candidates_;
        params.min_size = min_size_;
        std::copy_n(strides_, levels_, params.strides);
        return params;
    }

    RpnCandidatesParams params(Descriptions const& tensors) const {
        nvinfer1::PluginTensorDesc const* const maps = tensors.at + kMaps;
        RpnCandidatesParams params = this->params();
        params.dtype = dtype_of(maps[0]);
        params.layout = layout_of(maps[0]);
        params.batch = size_at(maps[0], 0);
        params.anchors = size_at(maps[0], 1);
        for (std::int32_t level = 0; level < levels_; ++level) {
            params.heights[level] = size_at(maps[level], 2);
            params.widths[level] = size_at(maps[level], 3);
        }
        params.logit_pitch = pitch_of(maps[0]);
        params.delta_pitch = pitch_of(maps[levels_]);
        return params;
    }

    std::int32_t candidates_ = 0;
    float min_size_ = 0;
    std::int32_t strides_[kMaxLevels] = {};
    std::int32_t levels_ = 0;
};

class BoxCandidatesPlugin final : public Plugin {
  public:
    char const* getPluginName() const noexcept override { return "BoxCandidates"; }

    Plugin* copy() const override { return new (std::nothrow) BoxCandidatesPlugin(*this); }

    Attributes attributes() override { return {}; }

  protected:
    std::int32_t outputs() const override { return 2; }

    Specs specs(Shapes const& inputs) const override {
        Dim const* const logits = inputs.at[kLogits].at;
        Dim const batch = logits[0], proposals = logits[1], classes = logits[2] - 1;
        return {
            kTensors,
            {{"logits", "[B, P, C+1]", Role::kRows, {3, {batch, proposals, logits[2]}}},
             {"deltas", "[B, P, 4*C]", Role::kRows, {3, {batch, proposals, classes * 4}}},
             {"proposals", "[B, P, 4]", Role::kFloat32, {3, {batch, proposals, 4}}},
             {"num_proposals", "[B, 1]", Role::kInt32, {2, {batch, 1}}},
             {"image_sizes", "[B, 2]", Role::kFloat32, {2, {batch, 2}}},
             {"normalization", "[2, 4]", Role::kFloat32, {2, {2, 4}}},
             {"boxes", "[B, C, P, 4]", Role::kFloat32, {4, {batch, classes, proposals, 4}}},
             {"scores", "[B, C, P]", Role::kFloat32, {3, {batch, classes, proposals}}}}};
    }

    bool check_attributes(Message&) const override { return true; }

    bool check(Descriptions const& tensors, Message& message) const override {
        return carafe::check(params(tensors), message);
    }

    cudaError_t launch(
        Descriptions const& tensors, void const* const* inputs, void* const* outputs, void*,
        cudaStream_t stream) const override {
        return launch_box_candidates(
            params(tensors), inputs[kLogits], inputs[kDeltas],
            static_cast<float const*>(inputs[kProposals]),
            static_cast<std::int32_t const*>(inputs[kNumProposals]),
            static_cast<float const*>(inputs[kImageSizes]),
            static_cast<float const*>(inputs[kNormalization]), static_cast<float*>(outputs[0]),
            static_cast<float*>(outputs[1]), stream);
    }

  private:
    enum Tensor {
        kLogits,
        kDeltas,
        kProposals,
        kNumProposals,
        kImageSizes,
        kNormalization,
        kBoxes,
        kScores,
        kTensors
    };

    BoxCandidatesParams params(Descriptions const& tensors) const {
        nvinfer1::PluginTensorDesc const& logits = tensors.at[kLogits];
        return {dtype_of(logits), size_at(logits, 0), size_at(logits, 1), size_at(logits, 2) - 1};
    }
};

}  // namespace

Plugin& rpn_candidates_prototype() {
    static RpnCandidatesPlugin prototype;
    return prototype;
}

Plugin& box_candidates_prototype() {
    static BoxCandidatesPlugin prototype;
    return prototype;
}

}  // namespace carafe
