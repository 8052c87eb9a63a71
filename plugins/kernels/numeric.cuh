// Element types on the device: every kernel computes in float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

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

/// values = softmax over read(0) ... read(N - 1). Exponents are at most 0, where __expf is off by
/// less than 2^-21 of the largest weight.
template <int N, typename Read>
__device__ void softmax(Read const& read, float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = read(i);
    float top = values[0], total = 0.0f;
#pragma unroll
    for (int i = 1; i < N; ++i) top = fmaxf(top, values[i]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        values[i] = __expf(values[i] - top);
        total += values[i];
    }
    float const factor = 1.0f / total;
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= factor;
}

/// What one access of N elements moves.
template <typename T, int N>
struct Access;
template <typename T>
struct Access<T, 2> {
    using Bits = unsigned;
};
template <typename T>
struct Access<T, 4> {
    using Bits = uint2;
};
template <typename T>
struct Access<T, 8> {
    using Bits = uint4;
};
template <>
struct Access<float, 2> {
    using Bits = float2;
};
template <>
struct Access<float, 4> {
    using Bits = float4;
};

/// N elements from an address that is a multiple of their size, by one access; zeros if not `read`.
template <int N, typename T>
__device__ void load_pack(T const* from, bool read, float* values) {
    using Bits = typename Access<T, N>::Bits;
    Bits bits{};
    if (read) bits = *reinterpret_cast<Bits const*>(from);
    T elements[N];
    memcpy(elements, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(elements[i]);
}

/// N elements to such an address, by one access: the compiler splits some stores of structures.
template <int N, typename T>
__device__ void store_pack(float const* values, T* to) {
    using Bits = typename Access<T, N>::Bits;
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; ++i) elements[i] = from_float<T>(values[i]);
    Bits bits;
    memcpy(&bits, elements, sizeof bits);
    *reinterpret_cast<Bits*>(to) = bits;
}

/// N elements that move as one access of N * sizeof(T) bytes; addresses are multiples of that.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

}  // namespace carafe
