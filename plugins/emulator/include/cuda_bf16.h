// Stands in for CUDA's header of this name; conversions are those of kernels/half.h.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
};

float __bfloat162float(__nv_bfloat16 value);
__nv_bfloat16 __float2bfloat16_rn(float value);

inline __nv_bfloat16 __float2bfloat16(float value) {
    return __float2bfloat16_rn(value);
}

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
    return {__bfloat162float(pair.x), __bfloat162float(pair.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) {
    return __floats2bfloat162_rn(pair.x, pair.y);
}
