// Element types on the device: every kernel computes in float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace carafe {

__device__ inline float to_float(float value) {
    return value;
}
__device__ inline float to_float(__half value) {
    return __half2float(value);
}
__device__ inline float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

/// Rounds to nearest even.
template <typename T>
__device__ T from_float(float value);

template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

/// N elements that move as one access of N * sizeof(T) bytes; addresses are multiples of that.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

}  // namespace carafe
