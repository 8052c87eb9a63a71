// CARAFE's CPU twin against values worked out by hand, and the check of its parameters.
#include "carafe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "half.h"

namespace carafe {
namespace {

// Features 1 to 9 on a 3x3 map, k = 3, s = 2, one channel. Output (i, j) lies in a quarter of
// source pixel p, towards a vertical, a horizontal and a diagonal neighbour. Its kernel weighs p by
// 1/2, the horizontal neighbour by 1/4, the others by 1/8, so 8 * out = 4p + 2h + v + d. For
// example 8 * out(0, 0) = 4 * 1, all three neighbours being outside; 8 * out(1, 1) = 4 * 1 + 2 * 2
// + 4 + 5.
constexpr int kEighths[6][6] = {{4, 8, 10, 14, 16, 12},   {8, 17, 19, 25, 27, 18},
                                {17, 29, 31, 37, 39, 27}, {23, 41, 43, 49, 51, 33},
                                {32, 53, 55, 61, 63, 42}, {28, 44, 46, 50, 52, 36}};

/// Weight of tap (u, v) for output (i, j).
double weight(int u, int v, int i, int j) {
    bool const vertical = u == 2 * (i % 2), horizontal = v == 2 * (j % 2);
    if (u == 1 && v == 1) return 0.5;
    if (u == 1 && horizontal) return 0.25;
    return vertical && (v == 1 || horizontal) ? 0.125 : 0.0;
}

CarafeParams params_of(DType dtype, Layout layout, MaskSource source) {
    CarafeParams p{};
    p.dtype = dtype;
    p.layout = layout;
    p.source = source;
    p.batch = p.channels = p.groups = 1;
    p.height = p.width = p.kernel_size = 3;
    p.scale = 2;
    p.feature_pitch = p.out_pitch = 1;
    p.mask_pitch = static_cast<std::int32_t>(mask_channels(p));
    return p;
}

/// Where channel m of pixel (y, x) lies in a map of `channels` x 3*scale x 3*scale.
std::size_t place(Layout layout, int m, int y, int x, int channels, int side) {
    int const at =
        layout == Layout::kNCHW ? (m * side + y) * side + x : (y * side + x) * channels + m;
    return static_cast<std::size_t>(at);
}

std::vector<double> masks_by_hand(Layout layout, MaskSource source) {
    bool const encoded = source == MaskSource::kEncoded;
    std::vector<double> masks(9 * 36);
    for (int tap = 0; tap < 9; ++tap) {
        for (int i = 0; i < 6; ++i) {
            for (int j = 0; j < 6; ++j) {
                double const value = weight(tap / 3, tap % 3, i, j);
                if (encoded) {  // softmax of logarithms gives the weights back
                    int const m = tap * 4 + i % 2 * 2 + j % 2;
                    masks[place(layout, m, i / 2, j / 2, 36, 3)] = std::log(value);
                } else {
                    masks[place(layout, tap, i, j, 9, 6)] = value;
                }
            }
        }
    }
    return masks;
}

template <typename T>
struct Element {
    static T from(double value) { return from_float<T>(static_cast<float>(value)); }
    static double to(T value) { return to_float(value); }
};
template <>
struct Element<double> {
    static double from(double value) { return value; }
    static double to(double value) { return value; }
};

template <typename T>
void expect_hand_values(DType dtype, double tolerance) {
    for (Layout const layout : {Layout::kNCHW, Layout::kNHWC}) {
        for (MaskSource const source : {MaskSource::kNormalized, MaskSource::kEncoded}) {
            std::vector<T> features, masks, out(36, Element<T>::from(NAN));
            for (int value = 1; value <= 9; ++value) features.push_back(Element<T>::from(value));
            for (double const value : masks_by_hand(layout, source)) {
                masks.push_back(Element<T>::from(value));
            }
            CarafeParams const p = params_of(dtype, layout, source);
            Message message;
            ASSERT_TRUE(check(p, message)) << message.text;
            carafe_cpu(p, features.data(), masks.data(), out.data(), 1);
            for (int i = 0; i < 6; ++i) {
                for (int j = 0; j < 6; ++j) {
                    double const found = Element<T>::to(out[static_cast<std::size_t>(6 * i + j)]);
                    double const expected = kEighths[i][j] / 8.0;
                    // Weights as they are give these sums exactly; logarithms round.
                    bool const exact = source == MaskSource::kNormalized;
                    EXPECT_NEAR(found, expected, exact ? 0.0 : tolerance * expected)
                        << i << ' ' << j;
                }
            }
        }
    }
}

TEST(CarafeCpu, ByHandInFloat64) {
    expect_hand_values<double>(DType::kFloat64, 1e-14);
}

TEST(CarafeCpu, ByHandInFloat32) {
    expect_hand_values<float>(DType::kFloat32, 1e-6);
}

TEST(CarafeCpu, ByHandInFloat16) {
    expect_hand_values<Half>(DType::kFloat16, 2e-3);
}

TEST(CarafeCpu, ByHandInBFloat16) {
    expect_hand_values<BFloat16>(DType::kBFloat16, 2e-2);
}

TEST(CarafeCpu, GroupsHaveTheirOwnWeights) {
    CarafeParams p{};  // two groups of two channels on one pixel, one tap: out = feature * weight
    p.layout = Layout::kNCHW;
    p.batch = p.height = p.width = p.kernel_size = p.scale = 1;
    p.channels = 4;
    p.groups = 2;
    std::vector<float> const features{1, 2, 3, 4}, masks{10, 100};
    std::vector<float> out(4);
    carafe_cpu(p, features.data(), masks.data(), out.data(), 0);
    EXPECT_EQ(out, (std::vector<float>{10, 20, 300, 400}));
}

TEST(CarafeCpu, PaddingChannelsAreSkippedAndCleared) {
    CarafeParams p{};
    p.layout = Layout::kNHWC;
    p.batch = p.height = p.kernel_size = p.scale = p.groups = 1;
    p.width = p.channels = 2;
    p.feature_pitch = 3;
    p.mask_pitch = 2;
    p.out_pitch = 4;
    std::vector<float> const features{1, 2, NAN, 3, 4, NAN}, masks{2, NAN, 5, NAN};
    std::vector<float> out(8, NAN);
    carafe_cpu(p, features.data(), masks.data(), out.data(), 1);
    EXPECT_EQ(out, (std::vector<float>{2, 4, 0, 0, 15, 20, 0, 0}));
}

TEST(CarafeCpu, NothingToDo) {
    CarafeParams p = params_of(DType::kFloat32, Layout::kNCHW, MaskSource::kEncoded);
    p.batch = 0;
    Message message;
    EXPECT_TRUE(check(p, message));
    carafe_cpu(p, nullptr, nullptr, nullptr, 0);
}

void expect_refused(CarafeParams const& p, std::string const& expected) {
    Message message;
    EXPECT_FALSE(check(p, message));
    EXPECT_EQ(message.text, expected);
}

TEST(CarafeCheck, NamesTheValueAndWhatWasExpected) {
    CarafeParams const good = params_of(DType::kFloat32, Layout::kNHWC, MaskSource::kNormalized);
    CarafeParams p = good;
    p.kernel_size = 4;
    expect_refused(p, "kernel_size is 4, expected an odd number of at least 1");
    p = good;
    p.groups = 0;
    expect_refused(p, "group_size is 0, expected at least 1");
    p = good;
    p.scale = -1;
    expect_refused(p, "scale_factor is -1, expected at least 1");
    p = good;
    p.channels = 3;
    p.groups = 2;
    expect_refused(p, "features has 3 channels, not divisible by group_size = 2: choose a divisor");
    p = good;
    p.width = -5;
    expect_refused(p, "width of features is -5, expected at least 0");
    p = good;
    p.mask_pitch = 8;
    expect_refused(
        p, "mask_pitch is 8, expected at least the 9 channels, or 0 when they are packed");
    p = good;
    p.dtype = static_cast<DType>(7);
    expect_refused(p, "dtype is 7, expected 0 (float32), 1 (float16), 2 (bfloat16) or 3 (float64)");
    p = good;
    p.height = std::numeric_limits<std::int32_t>::max();
    Message message;
    EXPECT_FALSE(check(p, message)) << "the result's height does not fit in 32 bits";
}

}  // namespace
}  // namespace carafe
