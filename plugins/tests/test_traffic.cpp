// What the traffic counter makes of kernels that can be counted by hand.
#include <gtest/gtest.h>

#include <vector>

#include "traffic.h"
#include "traffic_kernels.h"

namespace carafe {
namespace {

using emulator::Flow;
using emulator::Traffic;
using emulator::TrafficRecorder;

/// Floats from an address that is a multiple of 128.
class Floats {
  public:
    explicit Floats(std::size_t count) : lines_((count + 31) / 32) {}
    float* data() { return lines_[0].values; }
    std::size_t bytes() const { return lines_.size() * sizeof(Line); }

  private:
    struct alignas(128) Line {
        float values[32];
    };
    std::vector<Line> lines_;
};

TEST(Traffic, CopyMovesEveryLineOnce) {
    Floats in(4 * 256), out(4 * 256);
    TrafficRecorder recorder;
    recorder.add_array("in", in.data(), in.bytes());
    recorder.add_array("out", out.data(), out.bytes());
    testing::copy_packs(in.data(), out.data(), 256);

    ASSERT_EQ(recorder.launches().size(), 1u);
    EXPECT_EQ(recorder.launches()[0].grid.x, 4u);
    EXPECT_EQ(recorder.launches()[0].block.x, 64u);
    std::vector<Traffic> const traffic = recorder.traffic();
    ASSERT_EQ(traffic.size(), 3u);
    EXPECT_EQ(traffic[0].name, "in");
    for (Flow const& flow : {traffic[0].loads, traffic[1].stores}) {
        EXPECT_EQ(flow.accesses[4], 256u);
        EXPECT_EQ(flow.bytes, 4096u);
        EXPECT_EQ(flow.requests, 8u);     // warps
        EXPECT_EQ(flow.wavefronts, 32u);  // 512 bytes a warp
        EXPECT_EQ(flow.block_sectors, 128u);
        EXPECT_EQ(flow.sectors, 128u);
    }
    EXPECT_EQ(traffic[0].stores.requests, 0u);
    EXPECT_EQ(traffic[1].loads.requests, 0u);
}

TEST(Traffic, SharedMemoryHasBanks) {
    struct {
        unsigned stride, together;
        std::uint64_t stores, loads;
    } const cases[] = {
        {1, 1, 1, 1},     // a word of each bank
        {2, 1, 2, 2},     // two of every other bank
        {32, 1, 32, 32},  // all of one bank
        {32, 8, 32, 4},   // of which four words are wanted
        {32, 32, 32, 1},  // or one
    };
    Floats out(32);
    for (auto const& [stride, together, stores, loads] : cases) {
        TrafficRecorder recorder;
        recorder.add_array("out", out.data(), out.bytes());
        testing::touch_shared(stride, together, out.data());
        Traffic const shared = recorder.traffic().back();
        EXPECT_EQ(shared.name, "shared");
        EXPECT_EQ(shared.stores.requests, 1u);
        EXPECT_EQ(shared.loads.requests, 1u);
        EXPECT_EQ(shared.stores.wavefronts, stores) << stride;
        EXPECT_EQ(shared.loads.wavefronts, loads) << stride << " " << together;
    }
}

TEST(Traffic, SectorsCountOnceABlockAndOnceInAll) {
    Floats in(32 * 8), out(32);
    TrafficRecorder recorder;
    recorder.add_array("in", in.data(), in.bytes());
    recorder.add_array("out", out.data(), out.bytes());
    testing::read_again(in.data(), 8, out.data());  // a sector each lane
    Flow const loads = recorder.traffic()[0].loads;
    EXPECT_EQ(loads.requests, 2u * 4);  // twice in a loop, and once for each caller
    EXPECT_EQ(loads.wavefronts, 2u * 4 * 8);
    EXPECT_EQ(loads.accesses[2], 2u * 32 * 3);
    EXPECT_EQ(loads.block_sectors, 2u * 32);
    EXPECT_EQ(loads.sectors, 32u);
}

TEST(Traffic, OtherMemoryDoesNotCount) {
    Floats in(4 * 64), out(4 * 64);
    TrafficRecorder recorder;
    recorder.add_array("out", out.data(), out.bytes());
    testing::copy_packs(in.data(), out.data(), 64);
    EXPECT_EQ(recorder.traffic()[0].stores.requests, 2u);
    EXPECT_EQ(recorder.traffic()[0].loads.requests, 0u);
}

}  // namespace
}  // namespace carafe
