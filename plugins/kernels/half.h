// float16 and bfloat16 on the CPU, with round to nearest even; no compiler support is assumed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace carafe {

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

namespace detail {

template <typename To, typename From>
To bit_cast(From const& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace detail

inline float to_float(float value) {
    return value;
}

inline float to_float(BFloat16 value) {
    return detail::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

inline float to_float(Half value) {
    std::uint32_t const sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    std::uint32_t const magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity and NaN
        return detail::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    if (magnitude >= 0x0400u) {  // the exponents' biases differ by 112
        return detail::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
    }
    float const subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(subnormal));
}

template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
    return value;
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
    std::uint32_t const bits = detail::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
    std::uint32_t const bits = detail::bit_cast<std::uint32_t>(value);
    auto const sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    std::uint32_t const magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // >= 65520
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at 2^-24
        float const shifted = detail::bit_cast<float>(magnitude) + 0.5f;
        std::uint32_t const rounded = detail::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
        return {static_cast<std::uint16_t>(sign | rounded)};
    }
    std::uint32_t const rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23);
    return {static_cast<std::uint16_t>(sign | rounded >> 13)};
}

}  // namespace carafe
