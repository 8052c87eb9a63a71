// MultilevelRoiAlign's CPU twin against values worked out by hand, and its parameters' check.
#include "roi_align.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace carafe {
namespace {

RoiAlignParams params_of(int rois, int output_size) {
    RoiAlignParams p{};
    p.layout = Layout::kNCHW;
    p.batch = p.channels = p.levels = p.strides[0] = 1;
    p.rois = rois;
    p.heights[0] = p.widths[0] = 4;
    p.output_size = output_size;
    p.finest_scale = 56;
    return p;
}

std::vector<float> pooled(
    RoiAlignParams const& p, std::vector<float> const& rois,
    std::vector<std::vector<float>> const& maps) {
    Message message;
    EXPECT_TRUE(check(p, message)) << message.text;
    std::vector<void const*> pointers;
    for (std::vector<float> const& map : maps) pointers.push_back(map.data());
    std::vector<float> out(
        static_cast<std::size_t>(p.batch * p.rois * p.channels * p.output_size * p.output_size),
        NAN);
    roi_align_cpu(p, rois.data(), pointers.data(), out.data(), 0);
    return out;
}

/// f(y, x) = 10 * y + x on 4x4.
std::vector<float> slope() {
    std::vector<float> map;
    for (int y = 0; y < 4; ++y) {
        for (int x = 0; x < 4; ++x) map.push_back(static_cast<float>(10 * y + x));
    }
    return map;
}

TEST(RoiAlignCpu, ByHand) {
    // Coordinates shift by half a pixel. RoI 0 covers 0.5 to 2.5: two bins a side, ceil(2 / 2) = 1
    // sample each, at the centres 1 and 2. RoI 1 covers x -0.5 to 3.5, y -0.5 to 1.5: two samples a
    // bin along x at 0, 1 and 2, 3, one along y at 0 and 1. RoI 2 covers x -4.5 to -0.5: samples at
    // -4, -3 and -2, -1; beyond -1 they are zero, at -1 they clamp to column 0.
    std::vector<float> const out =
        pooled(params_of(3, 2), {1, 1, 3, 3, 0, 0, 4, 2, -4, 1, 0, 3}, {slope()});
    std::vector<float> const expected{11, 12, 21, 22, 0.5f, 2.5f, 10.5f, 12.5f, 0, 5, 0, 10};
    EXPECT_EQ(out, expected);
}

TEST(RoiAlignCpu, RoisWithoutSamplesAreZero) {
    std::vector<float> const rois{0, 0, 0, 2, 3, 3, 1, 1, NAN, 0, 2, 2, 0, 0, INFINITY, 2};
    EXPECT_EQ(pooled(params_of(4, 1), rois, {slope()}), std::vector<float>(4, 0.0f));
}

TEST(RoiAlignCpu, EachRoiGoesToTheLevelOfItsSize) {
    // Below sides of 2, 4 times finest_scale a RoI goes to level 0, 1. Maps are constant.
    RoiAlignParams p = params_of(5, 1);
    p.levels = 3;
    p.finest_scale = 8;
    std::vector<std::vector<float>> maps;
    for (int level = 0; level < 3; ++level) {
        p.heights[level] = p.widths[level] = 64 >> level;
        p.strides[level] = 1 << level;
        maps.emplace_back(
            static_cast<std::size_t>(64 * 64 >> 2 * level), 1.0f + static_cast<float>(level));
    }
    std::vector<float> rois;
    for (float const side : {4.0f, 15.9f, 16.0f, 31.9f, 32.0f}) {
        rois.insert(rois.end(), {1, 1, 1 + side, 1 + side});
    }
    EXPECT_EQ(pooled(p, rois, maps), (std::vector<float>{1, 1, 2, 2, 3}));
}

TEST(RoiAlignCpu, ChannelsLastSkipsAndClearsPadding) {
    RoiAlignParams p = params_of(1, 1);
    p.layout = Layout::kNHWC;
    p.heights[0] = p.widths[0] = 1;
    p.channels = p.feature_pitch = 2;
    p.out_pitch = 3;
    std::vector<float> const map{5, 7};
    std::vector<float> out(3, NAN);
    std::vector<float> const roi{0, 0, 1, 1};
    void const* const maps[] = {map.data()};
    roi_align_cpu(p, roi.data(), maps, out.data(), 1);
    EXPECT_EQ(out, (std::vector<float>{5, 7, 0}));
}

void expect_refused(RoiAlignParams const& p, std::string const& part) {
    Message message;
    EXPECT_FALSE(check(p, message));
    EXPECT_NE(std::string(message.text).find(part), std::string::npos) << message.text;
}

TEST(RoiAlignCheck, NamesTheValueAndWhatWasExpected) {
    RoiAlignParams const good = params_of(3, 7);
    RoiAlignParams p = good;
    p.dtype = DType::kFloat64;
    expect_refused(p, "float64 (3), expected float32, float16 or bfloat16");
    p = good;
    p.levels = 17;
    expect_refused(p, "17 feature maps, expected 1 to 16 levels");
    p = good;
    p.strides[0] = 0;
    expect_refused(p, "stride of level 0 is 0, expected at least 1");
    p = good;
    p.output_size = 0;
    expect_refused(p, "output_size is 0");
    p = good;
    p.sampling_ratio = -1;
    expect_refused(p, "sampling_ratio -1");
    p = good;
    p.heights[0] = -3;
    expect_refused(p, "feature map 0 has height -3");
    p = good;
    p.rois = -2;
    expect_refused(p, "rois -2");
}

}  // namespace
}  // namespace carafe
