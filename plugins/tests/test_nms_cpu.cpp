// BatchedNms' CPU twin against results worked out by hand, its workspace and its parameters' check.
#include "nms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace carafe {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

NmsParams params_of(int labels, int candidates, int max_output, float iou) {
    NmsParams p{};
    p.batch = 1;
    p.labels = labels;
    p.candidates = candidates;
    p.max_output = max_output;
    p.iou_threshold = iou;
    return p;
}

/// The indices, without what pads them.
std::vector<std::int64_t> kept(
    NmsParams const& p, std::vector<float> const& boxes, std::vector<float> const& scores) {
    Message message;
    EXPECT_TRUE(check(p, message)) << message.text;
    std::int32_t count = -7;
    std::vector<std::int64_t> indices(static_cast<std::size_t>(p.max_output), -7);
    nms_cpu(p, boxes.data(), scores.data(), &count, indices.data(), 0);
    EXPECT_GE(count, 0);
    EXPECT_LE(count, p.max_output);
    for (std::int32_t row = count; row < p.max_output; ++row) EXPECT_EQ(indices[row], -1) << row;
    indices.resize(static_cast<std::size_t>(count));
    return indices;
}

using Indices = std::vector<std::int64_t>;

TEST(NmsCpu, ByHand) {
    // Label 0: A = 10x10 at (0, 0), B at (0, 2), C at (0, 6); label 1: D = A's box and padding.
    // IoU(A, B) = 80/120, IoU(B, C) = 60/140, IoU(A, C) = 40/160. By score: B, A, C; D.
    std::vector<float> const boxes{0, 0, 10, 10, 0, 2, 10, 12, 0, 6, 10, 16,
                                   0, 0, 10, 10, 0, 0, 0,  0,  0, 0, 0,  0};
    std::vector<float> const scores{0.8f, 0.9f, 0.7f, 0.6f, kNone, kNone};
    EXPECT_EQ(kept(params_of(2, 3, 5, 0.4f), boxes, scores), (Indices{1, 3}));
    EXPECT_EQ(kept(params_of(2, 3, 5, 0.5f), boxes, scores), (Indices{1, 2, 3}));
    EXPECT_EQ(kept(params_of(2, 3, 5, 0.7f), boxes, scores), (Indices{1, 0, 2, 3}));
    EXPECT_EQ(kept(params_of(2, 3, 2, 0.7f), boxes, scores), (Indices{1, 0}));
}

TEST(NmsCpu, EqualScoresRankByIndex) {
    std::vector<float> const boxes{0, 0, 1, 1, 5, 0, 6, 1, 9, 0, 10, 1};
    EXPECT_EQ(kept(params_of(1, 3, 3, 0.5f), boxes, {0.5f, 0.5f, 0.5f}), (Indices{0, 1, 2}));
    EXPECT_EQ(kept(params_of(3, 1, 2, 0.5f), boxes, {0.5f, 0.5f, 0.6f}), (Indices{2, 0}));
}

TEST(NmsCpu, AnIouEqualToTheThresholdIsKept) {
    std::vector<float> const boxes{0, 0, 4, 4, 0, 0, 4, 2};  // 8/16
    EXPECT_EQ(kept(params_of(1, 2, 2, 0.5f), boxes, {0.9f, 0.8f}), (Indices{0, 1}));
    EXPECT_EQ(kept(params_of(1, 2, 2, 0.4999f), boxes, {0.9f, 0.8f}), (Indices{0}));
}

TEST(NmsCpu, ScoresMustExceedTheThreshold) {
    std::vector<float> const boxes{0, 0, 1, 1, 5, 0, 6, 1, 9, 0, 10, 1, 12, 0, 13, 1};
    NmsParams p = params_of(1, 4, 4, 0.5f);
    p.score_threshold = 0.25f;
    EXPECT_EQ(kept(p, boxes, {0.25f, 0.3f, NAN, kNone}), (Indices{1}));
    p.score_threshold = kNone;
    EXPECT_EQ(kept(p, boxes, {-5.0f, 0.3f, NAN, kNone}), (Indices{1, 0}));
}

TEST(NmsCpu, NothingToDo) {
    EXPECT_EQ(kept(params_of(0, 3, 2, 0.5f), {}, {}), Indices{});
    EXPECT_EQ(kept(params_of(3, 0, 2, 0.5f), {}, {}), Indices{});
    NmsParams p = params_of(1, 1, 1, 0.5f);
    p.batch = 0;
    nms_cpu(p, nullptr, nullptr, nullptr, nullptr, 0);
}

TEST(NmsWorkspace, GrowsWithEverySize) {
    // TensorRT asks for the largest shape only.
    NmsParams const base = params_of(3, 70, 40, 0.5f);
    std::size_t const size = nms_workspace_size(base);
    for (int NmsParams::* const field :
         {&NmsParams::batch, &NmsParams::labels, &NmsParams::candidates, &NmsParams::max_output}) {
        NmsParams p = base;
        std::size_t before = size;
        for (int step = 0; step < 20; ++step) {
            p.*field += p.*field / 2 + 1;
            std::size_t const after = nms_workspace_size(p);
            EXPECT_GE(after, before);
            before = after;
        }
    }
}

void expect_refused(NmsParams const& p, std::string const& part) {
    Message message;
    EXPECT_FALSE(check(p, message));
    EXPECT_NE(std::string(message.text).find(part), std::string::npos) << message.text;
}

TEST(NmsCheck, NamesTheValueAndWhatWasExpected) {
    NmsParams const good = params_of(2, 5, 3, 0.5f);
    NmsParams p = good;
    p.max_output = 0;
    expect_refused(p, "max_output is 0, expected at least 1");
    p = good;
    p.iou_threshold = 1.5f;
    expect_refused(p, "iou_threshold is 1.5, expected a number from 0 to 1");
    p.iou_threshold = NAN;
    expect_refused(p, "iou_threshold is nan");
    p = good;
    p.score_threshold = INFINITY;
    expect_refused(p, "score_threshold is inf, expected a finite number");
    p = good;
    p.candidates = -1;
    expect_refused(p, "boxes has sizes [1, 2, -1, 4]");
    p = good;
    p.labels = p.candidates = 1 << 20;
    expect_refused(p, "exceed 2^31 - 1 candidates an image");
}

}  // namespace
}  // namespace carafe
