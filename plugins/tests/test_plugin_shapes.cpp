// Inference of shapes and types, supported formats, and refusal of tensors that do not fit.
#include <gtest/gtest.h>

#include "nms.h"
#include "plugin_testing.h"

namespace carafe::testing {
namespace {

constexpr TensorFormat kLinear = TensorFormat::kLINEAR;
constexpr TensorFormat kHwc = TensorFormat::kHWC;
constexpr TensorFormat kHwc8 = TensorFormat::kHWC8;

std::string stderr_of(
    std::vector<ShapeText>& outputs, PluginHandle const& plugin,
    std::vector<ShapeText> const& inputs) {
    ::testing::internal::CaptureStderr();
    outputs = infer_shapes(plugin, inputs);
    return ::testing::internal::GetCapturedStderr();
}

/// The line with which a plugin refuses input shapes.
std::string refusal(PluginHandle const& plugin, std::vector<ShapeText> const& inputs) {
    std::vector<ShapeText> outputs;
    std::string const text = stderr_of(outputs, plugin, inputs);
    return outputs.empty() ? text : "not refused";
}

TEST(PluginShapes, Carafe) {
    PluginHandle const plugin("Carafe", *carafe_fields(3, 2, 4));
    EXPECT_EQ(infer_shapes(plugin, {"1 8 5 6", "1 18 20 24"}), std::vector<ShapeText>{"1 8 20 24"});
    EXPECT_EQ(infer_shapes(plugin, {"n 8 h w", "n 18 H W"}), std::vector<ShapeText>{"n 8 h*4 w*4"});
    EXPECT_EQ(infer_shapes(plugin, {"0 8 5 0", "0 18 20 0"}), std::vector<ShapeText>{"0 8 20 0"});
}

TEST(PluginShapes, CarafeEncoded) {
    PluginHandle const plugin("CarafeEncoded", *carafe_fields(3, 1, 2));
    EXPECT_EQ(infer_shapes(plugin, {"n 8 h w", "n 36 h w"}), std::vector<ShapeText>{"n 8 h*2 w*2"});
    EXPECT_EQ(infer_shapes(plugin, {"2 8 5 6", "2 36 5 6"}), std::vector<ShapeText>{"2 8 10 12"});
}

TEST(PluginShapes, MultilevelRoiAlign) {
    PluginHandle const plugin("MultilevelRoiAlign", *roi_align_fields({4, 8}));
    EXPECT_EQ(
        infer_shapes(plugin, {"b k 4", "b 16 h0 w0", "b 16 h1 w1"}),
        std::vector<ShapeText>{"b k 16 2 2"});
    EXPECT_EQ(
        infer_shapes(plugin, {"1 100 4", "1 16 8 8", "1 16 4 4"}),
        std::vector<ShapeText>{"1 100 16 2 2"});
}

TEST(PluginShapes, BatchedNms) {
    PluginHandle const plugin("BatchedNms", *nms_fields(9));
    EXPECT_EQ(infer_shapes(plugin, {"b l m 4", "b l m"}), (std::vector<ShapeText>{"b 1", "b 9"}));
    EXPECT_EQ(infer_shapes(plugin, {"2 3 50 4", "2 3 50"}), (std::vector<ShapeText>{"2 1", "2 9"}));
}

TEST(PluginShapes, RpnCandidates) {
    PluginHandle const plugin("RpnCandidates", *rpn_candidates_fields(50, {4, 8}));
    std::vector<ShapeText> const outputs{"b 2 50 4", "b 2 50"};
    EXPECT_EQ(
        infer_shapes(
            plugin, {"b 2", "2 3 4", "2 4", "b 3 h0 w0", "b 3 h1 w1", "b 12 h0 w0", "b 12 h1 w1"}),
        outputs);
    EXPECT_NE(
        refusal(plugin, {"b 2", "2 3 4", "2 4", "b 3 8 9", "b 3 4 5", "b 12 8 9", "b 12 5 5"})
            .find("maps3 is [?, 12, 5, 5], expected [B, 4*A, H, W] = [?, 12, 4, 5]"),
        std::string::npos);
    EXPECT_NE(
        refusal(plugin, {"b 2", "3 3 4", "2 4", "b 3 8 9", "b 3 4 5", "b 12 8 9", "b 12 4 5"})
            .find("anchors is [3, 3, 4], expected [levels, A, 4] = [2, 3, 4]"),
        std::string::npos);
}

TEST(PluginShapes, BoxCandidates) {
    PluginHandle const plugin("BoxCandidates", *fields_of("BoxCandidates"));
    EXPECT_EQ(
        infer_shapes(plugin, {"b p 81", "b p 320", "b p 4", "b 1", "b 2", "2 4"}),
        (std::vector<ShapeText>{"b 80 p 4", "b 80 p"}));
    EXPECT_NE(
        refusal(plugin, {"1 50 81", "1 50 324", "1 50 4", "1 1", "1 2", "2 4"})
            .find("deltas is [1, 50, 324], expected [B, P, 4*C] = [1, 50, 320]"),
        std::string::npos);
}

TEST(PluginShapes, ContradictionsAreNamed) {
    PluginHandle const carafe("Carafe", *carafe_fields(5, 1, 2));
    EXPECT_EQ(
        refusal(carafe, {"n 8 4 w", "n 24 8 W"}),
        "carafe: Carafe: masks is [?, 24, 8, ?], expected [N, group_size*kernel_size**2, "
        "scale_factor*H, scale_factor*W] = [?, 25, 8, ?]\n");
    EXPECT_NE(refusal(carafe, {"n 8 4 4", "n 25 8 9"}).find("= [?, 25, 8, 8]"), std::string::npos);
    EXPECT_NE(
        refusal(carafe, {"8 4 4", "25 8 8"}).find("features is [8, 4, 4]"), std::string::npos);
    EXPECT_NE(refusal(carafe, {"n 8 4 4"}).find("1 inputs"), std::string::npos);
    PluginHandle const roi_align("MultilevelRoiAlign", *roi_align_fields({4, 8}));
    EXPECT_NE(
        refusal(roi_align, {"b k 5", "b 16 8 8", "b 16 4 4"}).find("rois is [?, ?, 5]"),
        std::string::npos);
    EXPECT_NE(
        refusal(roi_align, {"b k 4", "b 16 8 8", "b 17 4 4"}).find("features1 is [?, 17, 4, 4]"),
        std::string::npos);
    EXPECT_NE(
        refusal(roi_align, {"b k 4", "b 16 8 8"}).find("2 inputs and 1 outputs, expected 3 and 1"),
        std::string::npos);
    PluginHandle const nms("BatchedNms", *nms_fields());
    EXPECT_NE(
        refusal(nms, {"1 2 50 4", "1 2 49"}).find("scores is [1, 2, 49], expected [B, L, M]"),
        std::string::npos);
    EXPECT_NE(
        refusal(nms, {"1 2 3000000000 4", "1 2 3000000000"}).find("expected sizes below 2^31"),
        std::string::npos);
}

std::vector<DataType> infer_types(PluginHandle const& plugin, std::vector<DataType> const& inputs) {
    std::vector<DataType> outputs(static_cast<std::size_t>(plugin.build->getNbOutputs()));
    ::testing::internal::CaptureStderr();
    std::int32_t const status = plugin.build->getOutputDataTypes(
        outputs.data(), static_cast<std::int32_t>(outputs.size()), inputs.data(),
        static_cast<std::int32_t>(inputs.size()));
    bool const silent = ::testing::internal::GetCapturedStderr().empty();
    EXPECT_EQ(silent, status == 0);
    if (status != 0) outputs.clear();
    return outputs;
}

TEST(PluginTypes, MapsKeepTheirsAndTheRestIsFixed) {
    PluginHandle const carafe("CarafeEncoded", *carafe_fields());
    PluginHandle const roi_align("MultilevelRoiAlign", *roi_align_fields());
    for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        EXPECT_EQ(infer_types(carafe, {type, type}), std::vector<DataType>{type});
        EXPECT_EQ(
            infer_types(roi_align, {DataType::kFLOAT, type, type}), std::vector<DataType>{type});
    }
    PluginHandle const nms("BatchedNms", *nms_fields());
    EXPECT_EQ(
        infer_types(nms, {DataType::kFLOAT, DataType::kFLOAT}),
        (std::vector<DataType>{DataType::kINT32, DataType::kINT64}));
}

TEST(PluginTypes, CandidatesAreFloat32) {
    PluginHandle const box("BoxCandidates", *fields_of("BoxCandidates"));
    auto const real = DataType::kFLOAT, count = DataType::kINT32;
    for (DataType const type : {real, DataType::kHALF, DataType::kBF16}) {
        EXPECT_EQ(
            infer_types(box, {type, type, real, count, real, real}),
            (std::vector<DataType>{real, real}));
    }
    EXPECT_TRUE(infer_types(box, {DataType::kHALF, real, real, count, real, real}).empty());
    EXPECT_TRUE(infer_types(box, {real, real, real, real, real, real}).empty());
}

TEST(PluginTypes, OthersAreRefused) {
    PluginHandle const carafe("Carafe", *carafe_fields());
    EXPECT_TRUE(infer_types(carafe, {DataType::kHALF, DataType::kFLOAT}).empty());
    EXPECT_TRUE(infer_types(carafe, {DataType::kINT8, DataType::kINT8}).empty());
    PluginHandle const roi_align("MultilevelRoiAlign", *roi_align_fields());
    EXPECT_TRUE(
        infer_types(roi_align, {DataType::kHALF, DataType::kHALF, DataType::kHALF}).empty());
    PluginHandle const nms("BatchedNms", *nms_fields());
    EXPECT_TRUE(infer_types(nms, {DataType::kHALF, DataType::kHALF}).empty());
}

struct TypeAndFormat {
    DataType type;
    TensorFormat format;
};

/// Whether every position is accepted, asked in TensorRT's order.
bool supported(PluginHandle const& plugin, std::vector<TypeAndFormat> const& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    for (auto const& [type, format] : tensors) {
        all.push_back({tensor({}, type, format), {}, {}, {}});
    }
    std::int32_t const outputs = plugin.build->getNbOutputs();
    auto const count = static_cast<std::int32_t>(all.size());
    for (std::int32_t i = 0; i < count; ++i) {
        if (!plugin.build->supportsFormatCombination(i, all.data(), count - outputs, outputs)) {
            return false;
        }
    }
    return true;
}

/// The whole table: each type with each format, as the format of all maps.
TEST(PluginFormats, MapsAreLinearOrChannelsLastAsTheTypeAllows) {
    PluginHandle const carafe("Carafe", *carafe_fields());
    PluginHandle const roi_align("MultilevelRoiAlign", *roi_align_fields());
    TypeAndFormat const rois{DataType::kFLOAT, kLinear};
    for (std::int32_t t = 0; t <= static_cast<std::int32_t>(DataType::kFP4); ++t) {
        for (std::int32_t f = 0; f <= static_cast<std::int32_t>(TensorFormat::kDHWC); ++f) {
            TypeAndFormat const map{static_cast<DataType>(t), static_cast<TensorFormat>(f)};
            bool const real = map.type == DataType::kFLOAT;
            bool const half = map.type == DataType::kHALF || map.type == DataType::kBF16;
            bool const expected = ((real || half) && map.format == kLinear) ||
                                  (real && map.format == kHwc) || (half && map.format == kHwc8);
            EXPECT_EQ(supported(carafe, {map, map, map}), expected) << t << ' ' << f;
            EXPECT_EQ(supported(roi_align, {rois, map, map, map}), expected) << t << ' ' << f;
        }
    }
}

TEST(PluginFormats, MapsOfOnePluginAgree) {
    PluginHandle const carafe("Carafe", *carafe_fields());
    TypeAndFormat const linear{DataType::kHALF, kLinear}, last{DataType::kHALF, kHwc8};
    TypeAndFormat const other{DataType::kBF16, kHwc8};
    EXPECT_FALSE(supported(carafe, {last, linear, last}));
    EXPECT_FALSE(supported(carafe, {last, last, linear}));
    EXPECT_FALSE(supported(carafe, {last, other, last}));
}

TEST(PluginFormats, RowsAreLinearInAnyType) {
    PluginHandle const box("BoxCandidates", *fields_of("BoxCandidates"));
    TypeAndFormat const real{DataType::kFLOAT, kLinear}, count{DataType::kINT32, kLinear};
    for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        TypeAndFormat const row{type, kLinear};
        EXPECT_TRUE(supported(box, {row, row, real, count, real, real, real, real}));
        TypeAndFormat const last{type, type == DataType::kFLOAT ? kHwc : kHwc8};
        EXPECT_FALSE(supported(box, {last, last, real, count, real, real, real, real}));
        EXPECT_FALSE(supported(box, {row, last, real, count, real, real, real, real}));
    }
    TypeAndFormat const half{DataType::kHALF, kLinear};
    EXPECT_FALSE(supported(box, {half, real, real, count, real, real, real, real}));
}

TEST(PluginFormats, RoisBoxesAndScoresAreLinearFloat32) {
    PluginHandle const roi_align("MultilevelRoiAlign", *roi_align_fields());
    TypeAndFormat const map{DataType::kHALF, kHwc8};
    EXPECT_FALSE(supported(roi_align, {map, map, map, map}));
    EXPECT_FALSE(supported(roi_align, {{DataType::kFLOAT, kHwc}, map, map, map}));
    PluginHandle const nms("BatchedNms", *nms_fields());
    TypeAndFormat const real{DataType::kFLOAT, kLinear}, count{DataType::kINT32, kLinear};
    TypeAndFormat const index{DataType::kINT64, kLinear}, half{DataType::kHALF, kLinear};
    EXPECT_TRUE(supported(nms, {real, real, count, index}));
    EXPECT_FALSE(supported(nms, {half, half, count, index}));
    EXPECT_FALSE(supported(nms, {real, {DataType::kFLOAT, kHwc}, count, index}));
    EXPECT_FALSE(supported(nms, {real, real, index, index}));
    EXPECT_FALSE(supported(nms, {real, real, count, count}));
}

TEST(PluginConfiguration, ChecksWhatIsFixedAndTheLargestSizes) {
    PluginHandle const plugin("Carafe", *carafe_fields(5, 2, 2));
    auto const configure = [&](std::int64_t channels, std::int64_t weights, std::int64_t height) {
        nvinfer1::DynamicPluginTensorDesc const inputs[] = {
            dynamic_tensor({-1, channels, -1, -1}, {4, channels, height, 8}),
            dynamic_tensor({-1, weights, -1, -1}, {4, weights, height, 16})};
        nvinfer1::DynamicPluginTensorDesc const output =
            dynamic_tensor({-1, channels, -1, -1}, {4, channels, height, 16});
        ::testing::internal::CaptureStderr();
        std::int32_t const status = plugin.build->configurePlugin(inputs, 2, &output, 1);
        std::string const text = ::testing::internal::GetCapturedStderr();
        EXPECT_EQ(text.empty(), status == 0);
        return text;
    };
    EXPECT_EQ(configure(8, 50, 8), "");
    EXPECT_NE(configure(8, 25, 8).find("masks is [?, 25, ?, ?]"), std::string::npos);
    EXPECT_NE(configure(9, 50, 8).find("9 channels"), std::string::npos);
    EXPECT_NE(configure(8, 50, 2000000000).find("too large"), std::string::npos);
}

TEST(PluginConfiguration, ShapeChangesAreChecked) {
    PluginHandle const plugin("CarafeEncoded", *carafe_fields(3, 1, 2));
    auto const status = [&](Sizes const& encoded, Sizes const& out) {
        nvinfer1::PluginTensorDesc const inputs[] = {tensor({1, 4, 3, 5}), tensor(encoded)};
        nvinfer1::PluginTensorDesc const output = tensor(out);
        ::testing::internal::CaptureStderr();
        std::int32_t const result = plugin.runtime->onShapeChange(inputs, 2, &output, 1);
        EXPECT_EQ(::testing::internal::GetCapturedStderr().empty(), result == 0);
        return result;
    };
    EXPECT_EQ(status({1, 36, 3, 5}, {1, 4, 6, 10}), 0);
    EXPECT_NE(status({1, 36, 3, 6}, {1, 4, 6, 10}), 0);
    EXPECT_NE(status({1, 36, 3, 5}, {1, 4, 6, 11}), 0);
}

/// Workspace is that of the largest shape, whatever the shape in use.
TEST(PluginWorkspace, CoversTheLargestShape) {
    PluginHandle const nms("BatchedNms", *nms_fields(100));
    nvinfer1::DynamicPluginTensorDesc const inputs[] = {
        dynamic_tensor({-1, 80, -1, 4}, {4, 80, 3000, 4}),
        dynamic_tensor({-1, 80, -1}, {4, 80, 3000})};
    nvinfer1::DynamicPluginTensorDesc const outputs[] = {
        dynamic_tensor({-1, 1}, {4, 1}, DataType::kINT32),
        dynamic_tensor({-1, 100}, {4, 100}, DataType::kINT64)};
    std::size_t const bytes = nms.build->getWorkspaceSize(inputs, 2, outputs, 2);
    EXPECT_EQ(bytes, nms_workspace_size({4, 80, 3000, 100, 0.5f, 0.1f}));
    EXPECT_GT(bytes, nms_workspace_size({1, 80, 1000, 100, 0.5f, 0.1f}));
    PluginHandle const carafe("Carafe", *carafe_fields());
    nvinfer1::DynamicPluginTensorDesc const maps[] = {
        dynamic_tensor({1, 8, 4, 4}, {1, 8, 4, 4}), dynamic_tensor({1, 9, 8, 8}, {1, 9, 8, 8}),
        dynamic_tensor({1, 8, 8, 8}, {1, 8, 8, 8})};
    EXPECT_EQ(carafe.build->getWorkspaceSize(maps, 2, maps + 2, 1), 0u);
}

}  // namespace
}  // namespace carafe::testing
