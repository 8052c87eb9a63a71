// The CPU twins with many threads, and from several at a time: the same results as with one. Under
// ThreadSanitizer this says whether they share what they must not (`make test-sanitized`).
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "carafe.h"
#include "nms.h"
#include "roi_align.h"
#include "threads.h"

namespace carafe {
namespace {

constexpr int kCallers = 3;
constexpr int kRounds = 4;

std::vector<float> noise(std::size_t count, float low, float high) {
    static std::mt19937 random(0);
    std::uniform_real_distribution<float> values(low, high);
    std::vector<float> result(count);
    for (float& value : result) value = values(random);
    return result;
}

/// One call of each twin, large enough for several threads.
struct Work {
    CarafeParams reassemble{};
    RoiAlignParams pool{};
    NmsParams suppress{};
    std::vector<float> features = noise(64 * 32 * 32, -1.0f, 1.0f);
    std::vector<float> encoded = noise(100 * 32 * 32, -1.0f, 1.0f);
    std::vector<float> rois, boxes, scores = noise(12 * 512, 0.0f, 1.0f);

    struct Results {
        std::vector<float> reassembled = std::vector<float>(64 * 64 * 64);
        std::vector<float> pooled = std::vector<float>(60 * 64 * 49);
        std::vector<std::int64_t> indices = std::vector<std::int64_t>(200);
        std::int32_t count = 0;

        bool operator==(Results const& other) const {
            return reassembled == other.reassembled && pooled == other.pooled &&
                   indices == other.indices && count == other.count;
        }
    };

    explicit Work(Layout layout) {
        CarafeParams& p = reassemble;
        p.layout = layout;
        p.source = MaskSource::kEncoded;
        p.batch = p.groups = 1;
        p.channels = 64;
        p.height = p.width = 32;
        p.kernel_size = 5;
        p.scale = 2;
        RoiAlignParams& r = pool;
        r.layout = layout;
        r.batch = r.levels = 1;
        r.rois = 60;
        r.channels = r.feature_pitch = r.out_pitch = 64;
        r.output_size = 7;
        r.finest_scale = 56;
        r.heights[0] = r.widths[0] = 32;
        r.strides[0] = 4;
        suppress = {1, 12, 512, 200, 0.5f, 0.1f};
        rois = corners(60, 100.0f);
        boxes = corners(12 * 512, 300.0f);
    }

    Results run(int threads) const {
        Results results;
        carafe_cpu(
            reassemble, features.data(), encoded.data(), results.reassembled.data(), threads);
        void const* const maps[] = {features.data()};
        roi_align_cpu(pool, rois.data(), maps, results.pooled.data(), threads);
        nms_cpu(
            suppress, boxes.data(), scores.data(), &results.count, results.indices.data(), threads);
        return results;
    }

  private:
    static std::vector<float> corners(std::size_t count, float side) {
        std::vector<float> all = noise(count * 4, 0.0f, side);
        for (std::size_t i = 0; i < count; ++i) {
            all[4 * i + 2] = all[4 * i] + side / 8;
            all[4 * i + 3] = all[4 * i + 1] + side / 8;
        }
        return all;
    }
};

void at_the_same_time(std::function<void()> const& call) {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) callers.emplace_back(call);
    for (std::thread& caller : callers) caller.join();
}

TEST(Threads, CallsAtTheSameTimeShareNothing) {
    for (Layout const layout : {Layout::kNCHW, Layout::kNHWC}) {
        Work const work(layout);
        Work::Results const expected = work.run(1);
        EXPECT_GT(expected.count, 0);
        at_the_same_time([&] {
            for (int round = 0; round < kRounds; ++round) EXPECT_EQ(work.run(4), expected);
        });
    }
}

/// Runs each piece in a thread of its own, the last one first.
void run_backwards(
    void* counter, std::int64_t pieces, void (*work)(void* data, std::int64_t piece), void* data) {
    *static_cast<int*>(counter) += 1;
    std::vector<std::thread> others;
    for (std::int64_t piece = pieces; piece-- > 0;) others.emplace_back(work, data, piece);
    for (std::thread& other : others) other.join();
}

TEST(Threads, EachCallerHasItsOwnPool) {
    Work const work(Layout::kNCHW);
    Work::Results const expected = work.run(1);
    at_the_same_time([&] {
        int calls = 0;
        current_pool() = {run_backwards, &calls};
        EXPECT_EQ(work.run(4), expected);
        EXPECT_EQ(calls, 3) << "a call had too little work to share";
    });
    EXPECT_EQ(current_pool().run, nullptr);
}

}  // namespace
}  // namespace carafe
