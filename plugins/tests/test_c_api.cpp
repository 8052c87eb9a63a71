// Corners of the C interface: what no call can have is a code and a message, never a signal.
#include "c_api.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace carafe {
namespace {

constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

CarafeParams one_pixel() {
    CarafeParams p{};
    p.batch = p.channels = p.height = p.width = p.kernel_size = p.groups = p.scale = 1;
    return p;
}

RoiAlignParams one_roi() {
    RoiAlignParams p{};
    p.batch = p.rois = p.channels = p.levels = p.output_size = p.finest_scale = 1;
    p.heights[0] = p.widths[0] = p.strides[0] = 1;
    p.feature_pitch = p.out_pitch = 1;
    return p;
}

NmsParams one_box() {
    NmsParams p{};
    p.batch = p.labels = p.candidates = p.max_output = 1;
    return p;
}

std::int32_t forward(
    CarafeParams const* p, void const* features, void const* masks, void* out, int threads = 1) {
    return carafe_forward(p, CARAFE_CPU, features, masks, out, nullptr, threads);
}

std::int32_t pool(RoiAlignParams const& p, float const* rois, void const* const* maps, void* out) {
    return carafe_multilevel_roi_align(&p, CARAFE_CPU, rois, maps, out, nullptr, 1);
}

std::int32_t suppress(
    NmsParams const& p, float const* boxes, float const* scores, std::int32_t* count,
    std::int64_t* indices) {
    return carafe_batched_nms(
        &p, CARAFE_CPU, boxes, scores, count, indices, nullptr, nullptr, kMax);
}

void expect_invalid(std::int32_t status, std::string const& part) {
    EXPECT_EQ(status, CARAFE_INVALID);
    EXPECT_NE(std::string(carafe_last_error()).find(part), std::string::npos)
        << carafe_last_error();
}

TEST(CApi, SizesWhoseProductsOverflowAreRefused) {
    std::vector<float> const ones(64, 1.0f);
    std::vector<float> out(64);
    CarafeParams p = one_pixel();
    p.scale = 1 << 29;
    expect_invalid(forward(&p, ones.data(), ones.data(), out.data()), "too many weights");
    p.kernel_size = 3;
    expect_invalid(forward(&p, ones.data(), ones.data(), out.data()), "too many weights");
    p = one_pixel();
    p.batch = p.channels = p.height = p.width = kMax;
    expect_invalid(forward(&p, ones.data(), ones.data(), out.data()), "more than 2^48 elements");
    RoiAlignParams roi = one_roi();
    roi.batch = roi.channels = kMax;
    void const* const maps[] = {ones.data()};
    expect_invalid(pool(roi, ones.data(), maps, out.data()), "more than 2^48 elements");
}

TEST(CApi, MapsWithoutChannelsAreAllPadding) {
    for (Layout const layout : {Layout::kNHWC, Layout::kNCHW}) {
        for (std::int32_t const scale : {1, 2}) {
            CarafeParams p = one_pixel();
            p.layout = layout;
            p.channels = 0;
            p.scale = scale;
            p.feature_pitch = p.out_pitch = 3;
            std::vector<float> out(12, 7.0f);
            EXPECT_EQ(forward(&p, nullptr, nullptr, out.data()), CARAFE_OK);
            std::size_t const cleared =
                layout == Layout::kNHWC ? static_cast<std::size_t>(3 * scale * scale) : 0;
            for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i < cleared ? 0 : 7);
        }
    }
}

TEST(CApi, NmsWithoutBoxesReservesNothing) {
    NmsParams p = one_box();
    p.max_output = p.candidates = kMax;
    p.batch = 0;
    EXPECT_EQ(suppress(p, nullptr, nullptr, nullptr, nullptr), CARAFE_OK);
    p.batch = 2;
    p.labels = 0;
    p.max_output = 3;
    std::int32_t counts[] = {7, 7};
    std::vector<std::int64_t> indices(6, 7);
    EXPECT_EQ(suppress(p, nullptr, nullptr, counts, indices.data()), CARAFE_OK);
    EXPECT_EQ(counts[0] + counts[1], 0);
    EXPECT_EQ(indices, std::vector<std::int64_t>(6, -1));
    p.labels = kMax / 2;
    p.candidates = 0;
    EXPECT_EQ(suppress(p, nullptr, nullptr, counts, indices.data()), CARAFE_OK);
}

TEST(CApi, NullWhereSomethingIsReadOrWrittenIsNamed) {
    float value = 1.0f;
    void const* const maps[] = {&value};
    void const* const none[] = {nullptr};
    std::int32_t count = 0;
    std::int64_t index = 0;
    CarafeParams const p = one_pixel();
    expect_invalid(forward(nullptr, &value, &value, &value), "params is null");
    expect_invalid(forward(&p, nullptr, &value, &value), "features is null");
    expect_invalid(forward(&p, &value, nullptr, &value), "masks is null");
    expect_invalid(forward(&p, &value, &value, nullptr), "out is null, expected the address of 1");
    RoiAlignParams const roi = one_roi();
    expect_invalid(pool(roi, nullptr, maps, &value), "rois is null");
    expect_invalid(pool(roi, &value, nullptr, &value), "features is null");
    expect_invalid(pool(roi, &value, none, &value), "a feature map is null");
    expect_invalid(pool(roi, &value, maps, nullptr), "out is null");
    NmsParams const nms = one_box();
    expect_invalid(suppress(nms, nullptr, &value, &count, &index), "boxes is null");
    expect_invalid(suppress(nms, &value, nullptr, &count, &index), "scores is null");
    expect_invalid(suppress(nms, &value, &value, nullptr, &index), "num_dets is null");
    expect_invalid(suppress(nms, &value, &value, &count, nullptr), "indices is null");
    EXPECT_EQ(carafe_batched_nms_workspace(nullptr), -1);
}

TEST(CApi, CandidatesNameWhatIsNull) {
    std::vector<float> const some(64, 0.5f);
    std::vector<float> out(64);
    RpnCandidatesParams rpn{};
    rpn.batch = rpn.levels = rpn.anchors = rpn.candidates = 1;
    rpn.heights[0] = rpn.widths[0] = rpn.strides[0] = 1;
    auto const propose = [&](float const* anchors, void const* const* maps, float* boxes) {
        return carafe_rpn_candidates(
            &rpn, CARAFE_CPU, some.data(), anchors, some.data(), maps, boxes, out.data(), nullptr,
            1);
    };
    void const* const maps[] = {some.data(), some.data()};
    void const* const half[] = {some.data(), nullptr};
    EXPECT_EQ(propose(some.data(), maps, out.data()), CARAFE_OK);
    expect_invalid(propose(nullptr, maps, out.data()), "anchors is null");
    expect_invalid(propose(some.data(), nullptr, out.data()), "maps is null");
    expect_invalid(propose(some.data(), half, out.data()), "a map of deltas is null");
    expect_invalid(propose(some.data(), maps, nullptr), "boxes is null");
    rpn.batch = 0;
    EXPECT_EQ(propose(nullptr, nullptr, nullptr), CARAFE_OK);

    BoxCandidatesParams box{};
    box.batch = box.proposals = box.classes = 1;
    std::int32_t const one = 1;
    auto const classify = [&](void const* logits, std::int32_t const* count, float* boxes) {
        return carafe_box_candidates(
            &box, CARAFE_CPU, logits, some.data(), some.data(), count, some.data(), some.data(),
            boxes, out.data(), nullptr, 1);
    };
    EXPECT_EQ(classify(some.data(), &one, out.data() + 32), CARAFE_OK);
    expect_invalid(classify(nullptr, &one, out.data()), "logits is null");
    expect_invalid(classify(some.data(), nullptr, out.data()), "num_proposals is null");
    expect_invalid(classify(some.data(), &one, nullptr), "boxes is null");
    box.proposals = 0;
    EXPECT_EQ(classify(nullptr, nullptr, nullptr), CARAFE_OK);
}

TEST(CApi, NullIsRightForWhatIsEmpty) {
    CarafeParams p = one_pixel();
    p.width = 0;
    EXPECT_EQ(forward(&p, nullptr, nullptr, nullptr), CARAFE_OK);
    RoiAlignParams roi = one_roi();
    roi.rois = 0;
    EXPECT_EQ(pool(roi, nullptr, nullptr, nullptr), CARAFE_OK);
    roi = one_roi();
    roi.heights[0] = 0;  // a level without pixels: zeros, and no map to read
    float const box[] = {0, 0, 1, 1};
    float out = 7.0f;
    void const* const none[] = {nullptr};
    EXPECT_EQ(pool(roi, box, none, &out), CARAFE_OK);
    EXPECT_EQ(out, 0.0f);
}

TEST(CApi, EncodingsThatDoNotFitTellTheirSize) {
    std::vector<float> const ones(8, 1.0f);
    float const boxes[] = {0, 0, 4, 4, 1, 1, 3, 3};
    PasteParams const p{2, 2, 4, 4, 0.5};
    auto const paste = [&](char* text, std::int64_t capacity, std::int64_t* offsets) {
        return carafe_paste_masks(&p, ones.data(), boxes, text, capacity, offsets);
    };
    std::int64_t offsets[3] = {7, 7, 7};
    EXPECT_EQ(paste(nullptr, 0, offsets), CARAFE_OK);
    EXPECT_EQ(offsets[0], 0);
    ASSERT_GT(offsets[2], offsets[1]);
    for (std::int64_t capacity = 0; capacity <= offsets[2] + 1; ++capacity) {
        std::vector<char> text(static_cast<std::size_t>(capacity) + 1, '!');
        std::int64_t again[3] = {};
        EXPECT_EQ(paste(text.data(), capacity, again), CARAFE_OK);
        EXPECT_EQ(again[2], offsets[2]);
        EXPECT_EQ(text.back(), '!');
    }
}

TEST(CApi, MasksThatNoCallCanHaveAreNamed) {
    std::vector<float> const some(16, 0.5f);
    std::int64_t offsets[2] = {};
    char text[8] = {};
    PasteParams const one{1, 2, 4, 4, 0.5};
    auto const paste = [&](PasteParams const& p) {
        return carafe_paste_masks(&p, some.data(), some.data(), text, 8, offsets);
    };
    EXPECT_EQ(paste(one), CARAFE_OK);
    double const nan = std::numeric_limits<double>::quiet_NaN();
    expect_invalid(paste({-1, 2, 4, 4, 0.5}), "masks is -1");
    expect_invalid(paste({1, 0, 4, 4, 0.5}), "cells is 0");
    expect_invalid(paste({1, 2, -4, 4, 0.5}), "height -4");
    expect_invalid(paste({1, 2, kMax, kMax, 0.5}), "more than 2^32 - 1 pixels");
    expect_invalid(paste({kMax, kMax, 4, 4, 0.5}), "more than 2^48 elements");
    expect_invalid(paste({1, 2, 4, 4, 0}), "threshold is 0");
    expect_invalid(paste({1, 2, 4, 4, nan}), "threshold is");
    float const* const in = some.data();
    expect_invalid(carafe_paste_masks(nullptr, in, in, text, 8, offsets), "params is null");
    expect_invalid(carafe_paste_masks(&one, nullptr, in, text, 8, offsets), "probabilities is");
    expect_invalid(carafe_paste_masks(&one, in, nullptr, text, 8, offsets), "boxes is null");
    expect_invalid(carafe_paste_masks(&one, in, in, nullptr, 8, offsets), "text is null");
    expect_invalid(carafe_paste_masks(&one, in, in, text, -8, offsets), "capacity is -8");
    expect_invalid(carafe_paste_masks(&one, in, in, text, 8, nullptr), "offsets is null");
    PasteParams const none{0, 2, 4, 4, 0.5};
    EXPECT_EQ(carafe_paste_masks(&none, nullptr, nullptr, nullptr, 0, offsets), CARAFE_OK);
}

TEST(CApi, BoxesOfAnySizeStayWithinTheImage) {
    float const large = std::numeric_limits<float>::max();
    float const infinity = std::numeric_limits<float>::infinity();
    float const nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> const corners{-infinity, -large, -1e9f, -3,       0,
                                     2.5f,      1e9f,   large, infinity, nan};
    std::vector<float> const values{0, 0.5f, nan, infinity};
    for (float const low : corners) {
        for (float const high : corners) {
            for (double const threshold : {1e-300, 0.5, 1e300}) {
                PasteParams const p{1, 2, 5, 7, threshold};
                float const box[] = {low, -3, high, 9};
                float const turned[] = {-3, low, 9, high};
                std::vector<char> text(999);
                std::int64_t offsets[2] = {};
                for (float const* const each : {box, turned}) {
                    EXPECT_EQ(
                        carafe_paste_masks(&p, values.data(), each, text.data(), 999, offsets),
                        CARAFE_OK);
                    EXPECT_GT(offsets[1], 0);
                    EXPECT_LT(offsets[1], 999);
                }
            }
        }
    }
}

TEST(CApi, MoreThreadsThanThereAreChangeNothing) {
    CarafeParams p = one_pixel();
    p.height = 9;
    std::vector<float> const ones(9, 1.0f);
    std::vector<float> out(9);
    EXPECT_EQ(forward(&p, ones.data(), ones.data(), out.data(), kMax), CARAFE_OK);
    EXPECT_EQ(out, ones);
}

}  // namespace
}  // namespace carafe
