// Half types: every value there and back, and rounding of what lies between two.
#include "half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace carafe {
namespace {

template <typename T>
class Halves : public ::testing::Test {};

using Types = ::testing::Types<Half, BFloat16>;
TYPED_TEST_SUITE(Halves, Types);

TYPED_TEST(Halves, EveryValueComesBack) {
    for (std::uint32_t bits = 0; bits <= 0xffffu; ++bits) {
        TypeParam const value{static_cast<std::uint16_t>(bits)};
        float const wide = to_float(value);
        std::uint16_t const back = from_float<TypeParam>(wide).bits;
        if (std::isnan(wide)) {
            EXPECT_TRUE(std::isnan(to_float(TypeParam{back}))) << std::hex << bits;
        } else {
            EXPECT_EQ(back, bits) << std::hex << bits;
        }
    }
}

TYPED_TEST(Halves, RoundsToNearestAndTiesToEven) {
    // Neighbours of one sign; the last pair's upper one is infinity.
    std::uint16_t const infinity = from_float<TypeParam>(INFINITY).bits;
    for (std::uint16_t low = 0; low + 1 < infinity; ++low) {
        auto const high = static_cast<std::uint16_t>(low + 1);
        float const a = to_float(TypeParam{low}), b = to_float(TypeParam{high});
        float const middle = a + (b - a) / 2;
        std::uint16_t const even = low % 2 == 0 ? low : high;
        EXPECT_EQ(from_float<TypeParam>(middle).bits, even) << low;
        EXPECT_EQ(from_float<TypeParam>(std::nextafter(middle, a)).bits, low) << low;
        EXPECT_EQ(from_float<TypeParam>(std::nextafter(middle, b)).bits, high) << low;
        EXPECT_EQ(from_float<TypeParam>(-middle).bits, even | 0x8000u) << low;
    }
}

TEST(Half, KnownValues) {
    EXPECT_EQ(from_float<Half>(1.0f).bits, 0x3c00u);
    EXPECT_EQ(from_float<Half>(-2.0f).bits, 0xc000u);
    EXPECT_EQ(from_float<Half>(65504.0f).bits, 0x7bffu);
    EXPECT_EQ(from_float<Half>(65519.9f).bits, 0x7bffu);
    EXPECT_EQ(from_float<Half>(65520.0f).bits, 0x7c00u);
    EXPECT_EQ(from_float<Half>(1e30f).bits, 0x7c00u);
    EXPECT_EQ(from_float<Half>(0x1p-24f).bits, 0x0001u);
    EXPECT_EQ(from_float<Half>(0x1p-25f).bits, 0x0000u);
    EXPECT_EQ(from_float<Half>(0x1.8p-25f).bits, 0x0001u);
    EXPECT_EQ(from_float<Half>(-0.0f).bits, 0x8000u);
    EXPECT_EQ(to_float(Half{0x0001}), 0x1p-24f);
    EXPECT_EQ(to_float(Half{0x03ff}), 0x3ffp-24f);
    EXPECT_EQ(to_float(Half{0x7c00}), INFINITY);
}

TEST(BFloat16, KnownValues) {
    EXPECT_EQ(from_float<BFloat16>(1.0f).bits, 0x3f80u);
    EXPECT_EQ(from_float<BFloat16>(-2.0f).bits, 0xc000u);
    EXPECT_EQ(from_float<BFloat16>(3.4028235e38f).bits, 0x7f80u);
    EXPECT_EQ(from_float<BFloat16>(-INFINITY).bits, 0xff80u);
    EXPECT_TRUE(
        std::isnan(
            to_float(from_float<BFloat16>(detail::bit_cast<float>(std::uint32_t{0x7f800001u})))));
    EXPECT_EQ(to_float(BFloat16{0x4049}), 3.140625f);
}

}  // namespace
}  // namespace carafe
