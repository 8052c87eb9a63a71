// Memory of the maps that plugins take and give, in every type and format they support.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "half.h"
#include "plugin_testing.h"
#include "types.h"

namespace carafe::testing {

struct Format {
    char const* name;
    DataType type;
    TensorFormat format;
    DType dtype;
    Layout layout;
    float tolerance;  ///< relative, of a sum of at most a hundred terms
};

inline constexpr Format kFormats[] = {
    {"float32 linear", DataType::kFLOAT, TensorFormat::kLINEAR, DType::kFloat32, Layout::kNCHW,
     1e-5f},
    {"float32 HWC", DataType::kFLOAT, TensorFormat::kHWC, DType::kFloat32, Layout::kNHWC, 1e-5f},
    {"float16 linear", DataType::kHALF, TensorFormat::kLINEAR, DType::kFloat16, Layout::kNCHW,
     2e-3f},
    {"float16 HWC8", DataType::kHALF, TensorFormat::kHWC8, DType::kFloat16, Layout::kNHWC, 2e-3f},
    {"bfloat16 linear", DataType::kBF16, TensorFormat::kLINEAR, DType::kBFloat16, Layout::kNCHW,
     1.6e-2f},
    {"bfloat16 HWC8", DataType::kBF16, TensorFormat::kHWC8, DType::kBFloat16, Layout::kNHWC,
     1.6e-2f},
};

inline std::int32_t pitch(Format const& format, std::int32_t channels) {
    return format.format == TensorFormat::kHWC8 ? (channels + 7) / 8 * 8 : channels;
}

inline float load(std::vector<std::byte> const& bytes, DType dtype, std::size_t index) {
    auto const at = [&](auto value) {
        std::memcpy(&value, bytes.data() + index * sizeof value, sizeof value);
        return to_float(value);
    };
    if (dtype == DType::kFloat16) return at(Half{});
    if (dtype == DType::kBFloat16) return at(BFloat16{});
    return at(0.0f);
}

inline void store(std::vector<std::byte>& bytes, DType dtype, std::size_t index, float value) {
    auto const put = [&](auto rounded) {
        std::memcpy(bytes.data() + index * sizeof rounded, &rounded, sizeof rounded);
    };
    if (dtype == DType::kFloat16) {
        put(from_float<Half>(value));
    } else if (dtype == DType::kBFloat16) {
        put(from_float<BFloat16>(value));
    } else {
        put(value);
    }
}

/// The memory of a map [images, channels, height, width], padding included, with values in [0, 1).
class Map {
  public:
    Map(Format const& format, std::int64_t images, std::int32_t channels, std::int64_t pixels,
        unsigned seed)
        : dtype_(format.dtype),
          count_(static_cast<std::size_t>(images * pitch(format, channels) * pixels)),
          bytes_(count_ * size_of(format.dtype)) {
        std::mt19937 random(seed);
        std::uniform_real_distribution<float> value(0.0f, 1.0f);
        for (std::size_t i = 0; i < count_; ++i) store(bytes_, dtype_, i, value(random));
    }

    void* data() { return bytes_.data(); }

    std::size_t bytes() const { return bytes_.size(); }

    /// Largest |difference| / (1 + |expected|); infinite where only one of the two is a number.
    float difference(Map const& expected) const {
        float worst = 0;
        for (std::size_t i = 0; i < count_; ++i) {
            float const right = load(expected.bytes_, dtype_, i);
            float const off = std::abs(load(bytes_, dtype_, i) - right) / (1 + std::abs(right));
            worst = std::isnan(off) ? std::numeric_limits<float>::infinity() : std::max(worst, off);
        }
        return worst;
    }

  private:
    DType dtype_;
    std::size_t count_;
    std::vector<std::byte> bytes_;
};

}  // namespace carafe::testing
