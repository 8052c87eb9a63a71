// enqueue() really runs, the kernels on the emulator: equal to the CPU twins in every type and
// format, with the padded channels that TensorRT's formats have.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "candidates_testing.h"
#include "carafe.h"
#include "nms.h"
#include "plugin_maps.h"
#include "roi_align.h"

namespace carafe::testing {
namespace {

void expect_carafe_equals_twin(Format const& format, MaskSource source) {
    CarafeParams p{};
    p.dtype = format.dtype;
    p.layout = format.layout;
    p.source = source;
    p.batch = 2, p.channels = 6, p.height = 3, p.width = 5;
    p.kernel_size = 3, p.groups = 2, p.scale = 2;
    bool const encoded = source == MaskSource::kEncoded;
    std::int32_t const weights = static_cast<std::int32_t>(mask_channels(p));
    std::int32_t const mask_height = encoded ? 3 : 6, mask_width = encoded ? 5 : 10;
    p.feature_pitch = p.out_pitch = pitch(format, p.channels);
    p.mask_pitch = pitch(format, weights);
    Map features(format, 2, 6, 3 * 5, 1), masks(format, 2, weights, mask_height * mask_width, 2);
    Map out(format, 2, 6, 6 * 10, 3), expected(format, 2, 6, 6 * 10, 4);

    PluginHandle const plugin(encoded ? "CarafeEncoded" : "Carafe", *carafe_fields(3, 2, 2));
    nvinfer1::PluginTensorDesc const in[] = {
        tensor({2, 6, 3, 5}, format.type, format.format),
        tensor({2, weights, mask_height, mask_width}, format.type, format.format)};
    nvinfer1::PluginTensorDesc const result = tensor({2, 6, 6, 10}, format.type, format.format);
    void const* const inputs[] = {features.data(), masks.data()};
    void* const outputs[] = {out.data()};
    ASSERT_EQ(plugin.runtime->enqueue(in, &result, inputs, outputs, nullptr, nullptr), 0);
    carafe_cpu(p, features.data(), masks.data(), expected.data(), 1);
    EXPECT_LE(out.difference(expected), format.tolerance);
}

TEST(PluginEnqueue, CarafeEqualsItsTwin) {
    for (Format const& format : kFormats) {
        SCOPED_TRACE(format.name);
        expect_carafe_equals_twin(format, MaskSource::kNormalized);
        expect_carafe_equals_twin(format, MaskSource::kEncoded);
    }
}

void expect_roi_align_equals_twin(Format const& format) {
    RoiAlignParams p{};
    p.dtype = format.dtype;
    p.layout = format.layout;
    p.batch = 2, p.rois = 3, p.channels = 5, p.levels = 2;
    p.output_size = 2, p.sampling_ratio = 0, p.finest_scale = 56;
    p.heights[0] = 12, p.widths[0] = 16, p.strides[0] = 4;
    p.heights[1] = 6, p.widths[1] = 8, p.strides[1] = 8;
    p.feature_pitch = p.out_pitch = pitch(format, 5);
    Map fine(format, 2, 5, 12 * 16, 1), coarse(format, 2, 5, 6 * 8, 2);
    Map out(format, 6, 5, 4, 3), expected(format, 6, 5, 4, 4);
    std::vector<float> const rois = {0, 0, 10, 12, 3, 5, 60, 40,  -4, 1, 130, 140,
                                     8, 8, 9,  9,  0, 0, 64, 120, 20, 7, 45,  11};

    PluginHandle const plugin("MultilevelRoiAlign", *roi_align_fields({4, 8}));
    nvinfer1::PluginTensorDesc const in[] = {
        tensor({2, 3, 4}), tensor({2, 5, 12, 16}, format.type, format.format),
        tensor({2, 5, 6, 8}, format.type, format.format)};
    nvinfer1::PluginTensorDesc const result = tensor({2, 3, 5, 2, 2}, format.type, format.format);
    void const* const inputs[] = {rois.data(), fine.data(), coarse.data()};
    void* const outputs[] = {out.data()};
    ASSERT_EQ(plugin.runtime->enqueue(in, &result, inputs, outputs, nullptr, nullptr), 0);
    roi_align_cpu(p, rois.data(), inputs + 1, expected.data(), 1);
    EXPECT_LE(out.difference(expected), format.tolerance);
}

TEST(PluginEnqueue, MultilevelRoiAlignEqualsItsTwin) {
    for (Format const& format : kFormats) {
        SCOPED_TRACE(format.name);
        expect_roi_align_equals_twin(format);
    }
}

TEST(PluginEnqueue, BatchedNmsEqualsItsTwin) {
    NmsParams const p{2, 3, 40, 9, 0.5f, 0.1f};
    std::mt19937 random(5);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float> boxes, scores;
    for (int i = 0; i < 2 * 3 * 40; ++i) {
        float const x = 50 * uniform(random), y = 50 * uniform(random);
        boxes.insert(
            boxes.end(), {x, y, x + 5 + 20 * uniform(random), y + 5 + 20 * uniform(random)});
        scores.push_back(uniform(random));
    }
    std::vector<std::int32_t> counts(2, -7), expected_counts(2);
    std::vector<std::int64_t> indices(2 * 9, -7), expected_indices(2 * 9);
    // Exactly as much workspace as the plugin asks for, so that a sanitizer sees an overrun.
    PluginHandle const plugin("BatchedNms", *nms_fields(9));
    nvinfer1::PluginTensorDesc const in[] = {tensor({2, 3, 40, 4}), tensor({2, 3, 40})};
    nvinfer1::PluginTensorDesc const results[] = {
        tensor({2, 1}, DataType::kINT32), tensor({2, 9}, DataType::kINT64)};
    nvinfer1::DynamicPluginTensorDesc const largest_in[] = {
        dynamic_tensor({2, 3, 40, 4}, {2, 3, 40, 4}), dynamic_tensor({2, 3, 40}, {2, 3, 40})};
    nvinfer1::DynamicPluginTensorDesc const largest_out[] = {
        dynamic_tensor({2, 1}, {2, 1}), dynamic_tensor({2, 9}, {2, 9})};
    std::size_t const bytes = plugin.build->getWorkspaceSize(largest_in, 2, largest_out, 2);
    std::unique_ptr<void, decltype(&std::free)> const workspace(
        std::aligned_alloc(256, bytes), &std::free);
    void const* const inputs[] = {boxes.data(), scores.data()};
    void* const outputs[] = {counts.data(), indices.data()};
    ASSERT_EQ(plugin.runtime->enqueue(in, results, inputs, outputs, workspace.get(), nullptr), 0);
    nms_cpu(p, boxes.data(), scores.data(), expected_counts.data(), expected_indices.data(), 1);
    EXPECT_EQ(counts, expected_counts);
    EXPECT_EQ(indices, expected_indices);
    EXPECT_EQ(counts[0], 9);
}

TEST(PluginEnqueue, RpnCandidatesEqualsItsTwin) {
    for (Format const& format : kFormats) {
        SCOPED_TRACE(format.name);
        RpnCall call(format, 2, 2, 5, 7, 20);
        PluginHandle const plugin("RpnCandidates", *rpn_candidates_fields());
        auto const map = [&](int channels, int height, int width) {
            return tensor({2, channels, height, width}, format.type, format.format);
        };
        nvinfer1::PluginTensorDesc const in[] = {tensor({2, 2}), tensor({2, 3, 4}), tensor({2, 4}),
                                                 map(3, 5, 7),   map(3, 2, 3),      map(12, 5, 7),
                                                 map(12, 2, 3)};
        nvinfer1::PluginTensorDesc const results[] = {tensor({2, 2, 20, 4}), tensor({2, 2, 20})};
        void const* const inputs[] = {call.image_sizes.data(),   call.anchors.data(),
                                      call.normalization.data(), call.addresses[0],
                                      call.addresses[1],         call.addresses[2],
                                      call.addresses[3]};
        void* const outputs[] = {call.found.boxes.data(), call.found.scores.data()};
        ASSERT_EQ(plugin.runtime->enqueue(in, results, inputs, outputs, nullptr, nullptr), 0);
        call.run_twin();
        EXPECT_EQ(call.found.difference(), 0.0f);
        EXPECT_GT(call.found.scores[0], 0.5f);
    }
}

TEST(PluginEnqueue, BoxCandidatesEqualsItsTwin) {
    for (Format const& format : kFormats) {
        if (format.format != TensorFormat::kLINEAR) continue;
        SCOPED_TRACE(format.name);
        BoxCall call(format, 2, 40, 5);
        PluginHandle const plugin("BoxCandidates", *fields_of("BoxCandidates"));
        nvinfer1::PluginTensorDesc const in[] = {
            tensor({2, 40, 6}, format.type),
            tensor({2, 40, 20}, format.type),
            tensor({2, 40, 4}),
            tensor({2, 1}, DataType::kINT32),
            tensor({2, 2}),
            tensor({2, 4})};
        nvinfer1::PluginTensorDesc const results[] = {tensor({2, 5, 40, 4}), tensor({2, 5, 40})};
        void const* const inputs[] = {call.logits.data(),      call.deltas.data(),
                                      call.proposals.data(),   call.counts.data(),
                                      call.image_sizes.data(), call.normalization.data()};
        void* const outputs[] = {call.found.boxes.data(), call.found.scores.data()};
        ASSERT_EQ(plugin.runtime->enqueue(in, results, inputs, outputs, nullptr, nullptr), 0);
        call.run_twin();
        EXPECT_LE(call.found.difference(), 1e-6f);
        EXPECT_GT(call.found.scores[0], 0.0f);
    }
}

/// Nothing is launched on tensors that do not fit, and the reason is told.
TEST(PluginEnqueue, RefusesTensorsThatDoNotFit) {
    PluginHandle const plugin("Carafe", *carafe_fields(3, 1, 2));
    nvinfer1::PluginTensorDesc const in[] = {tensor({1, 4, 3, 5}), tensor({1, 9, 6, 11})};
    nvinfer1::PluginTensorDesc const result = tensor({1, 4, 6, 10});
    std::vector<float> features(60), masks(9 * 66), out(240, -7.0f);
    void const* const inputs[] = {features.data(), masks.data()};
    void* const outputs[] = {out.data()};
    ::testing::internal::CaptureStderr();
    EXPECT_NE(plugin.runtime->enqueue(in, &result, inputs, outputs, nullptr, nullptr), 0);
    EXPECT_EQ(
        ::testing::internal::GetCapturedStderr(),
        "carafe: Carafe: masks is [1, 9, 6, 11], expected [N, group_size*kernel_size**2, "
        "scale_factor*H, scale_factor*W] = [1, 9, 6, 10]\n");
    EXPECT_EQ(out, std::vector<float>(240, -7.0f));
}

TEST(PluginEnqueue, EmptyTensorsSucceed) {
    PluginHandle const plugin("Carafe", *carafe_fields(3, 1, 2));
    nvinfer1::PluginTensorDesc const in[] = {tensor({0, 4, 3, 5}), tensor({0, 9, 6, 10})};
    nvinfer1::PluginTensorDesc const result = tensor({0, 4, 6, 10});
    void const* const inputs[] = {nullptr, nullptr};
    void* const outputs[] = {nullptr};
    EXPECT_EQ(plugin.runtime->enqueue(in, &result, inputs, outputs, nullptr, nullptr), 0);
}

}  // namespace
}  // namespace carafe::testing
