// Stands in for CUDA's header of this name; conversions are those of kernels/half.h.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

struct __half {
    std::uint16_t bits;
};
using half = __half;

float __half2float(__half value);
__half __float2half_rn(float value);

inline __half __float2half(float value) {
    return __float2half_rn(value);
}

struct alignas(4) __half2 {
    __half x, y;
};
using half2 = __half2;

inline float2 __half22float2(__half2 pair) {
    return {__half2float(pair.x), __half2float(pair.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 pair) {
    return __floats2half2_rn(pair.x, pair.y);
}
