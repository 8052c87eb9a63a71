// BatchedNms; the contract stands in plugins/README.md.
#include <new>

#include "cuda_kernels.h"
#include "plugin.h"

namespace carafe {
namespace {

enum Tensor { kBoxes, kScores, kNumDets, kIndices, kTensors };

class NmsPlugin final : public Plugin {
  public:
    char const* getPluginName() const noexcept override { return "BatchedNms"; }

    Plugin* copy() const override { return new (std::nothrow) NmsPlugin(*this); }

    Attributes attributes() override {
        return {
            3,
            {attribute("iou_threshold", iou_threshold_),
             attribute("score_threshold", score_threshold_), attribute("max_output", max_output_)}};
    }

  protected:
    std::int32_t outputs() const override { return 2; }

    Specs specs(Shapes const& inputs) const override {
        Dim const* boxes = inputs.at[kBoxes].at;
        Dim const batch = boxes[0], labels = boxes[1], candidates = boxes[2];
        return {
            kTensors,
            {{"boxes", "[B, L, M, 4]", Role::kFloat32, {4, {batch, labels, candidates, 4}}},
             {"scores", "[B, L, M]", Role::kFloat32, {3, {batch, labels, candidates}}},
             {"num_dets", "[B, 1]", Role::kInt32, {2, {batch, 1}}},
             {"indices", "[B, max_output]", Role::kInt64, {2, {batch, max_output_}}}}};
    }

    bool check_attributes(Message& message) const override {
        return carafe::check(params(), message);
    }

    bool check(Descriptions const& tensors, Message& message) const override {
        return carafe::check(params(tensors), message);
    }

    std::size_t workspace_size(Descriptions const& tensors) const override {
        return nms_workspace_size(params(tensors));
    }

    cudaError_t launch(
        Descriptions const& tensors, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) const override {
        return launch_nms(
            params(tensors), static_cast<float const*>(inputs[kBoxes]),
            static_cast<float const*>(inputs[kScores]), static_cast<std::int32_t*>(outputs[0]),
            static_cast<std::int64_t*>(outputs[1]), workspace, stream);
    }

  private:
    NmsParams params() const {
        NmsParams params{};
        params.iou_threshold = iou_threshold_;
        params.score_threshold = score_threshold_;
        params.max_output = max_output_;
        return params;
    }

    NmsParams params(Descriptions const& tensors) const {
        nvinfer1::PluginTensorDesc const& boxes = tensors.at[kBoxes];
        NmsParams params = this->params();
        params.batch = size_at(boxes, 0);
        params.labels = size_at(boxes, 1);
        params.candidates = size_at(boxes, 2);
        return params;
    }

    float iou_threshold_ = 0, score_threshold_ = 0;
    std::int32_t max_output_ = 0;
};

}  // namespace

Plugin& batched_nms_prototype() {
    static NmsPlugin prototype;
    return prototype;
}

}  // namespace carafe
