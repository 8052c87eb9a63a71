// Stands in for CUDA's header of this name: what the language and its runtime give to a kernel.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"
#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// --- the thread's place --------------------------------------------------------------------------

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// --- vectors -------------------------------------------------------------------------------------

#define CARAFE_VECTORS(type, name)                                     \
    struct alignas(2 * sizeof(type)) name##2 {                         \
        type x, y;                                                     \
    };                                                                 \
    struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { \
        type x, y, z, w;                                               \
    };                                                                 \
    inline name##2 make_##name##2(type x, type y) {                    \
        return {x, y};                                                 \
    }                                                                  \
    inline name##4 make_##name##4(type x, type y, type z, type w) {    \
        return {x, y, z, w};                                           \
    }
CARAFE_VECTORS(float, float)
CARAFE_VECTORS(int, int)
CARAFE_VECTORS(unsigned, uint)
CARAFE_VECTORS(unsigned short, ushort)
CARAFE_VECTORS(long long, longlong)
CARAFE_VECTORS(unsigned long long, ulonglong)
#undef CARAFE_VECTORS

// --- barriers ------------------------------------------------------------------------------------

inline void __syncthreads() {
    carafe::emulator::detail::wait_for_block(carafe::emulator::detail::Barrier::kSync, 0);
}
inline int __syncthreads_count(int predicate) {
    return carafe::emulator::detail::wait_for_block(
        carafe::emulator::detail::Barrier::kCount, predicate);
}
inline int __syncthreads_and(int predicate) {
    return carafe::emulator::detail::wait_for_block(
        carafe::emulator::detail::Barrier::kAnd, predicate);
}
inline int __syncthreads_or(int predicate) {
    return carafe::emulator::detail::wait_for_block(
        carafe::emulator::detail::Barrier::kOr, predicate);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    carafe::emulator::detail::wait_for_warp(
        carafe::emulator::detail::WarpFunction::kSync, mask, 0, 0);
}
// Threads run one at a time, so all see memory alike.
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- warp-wide functions -------------------------------------------------------------------------

namespace carafe::emulator::detail {

inline unsigned lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = wait_for_warp(WarpFunction::kShuffle, mask, bits, source);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace carafe::emulator::detail

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned const lane = carafe::emulator::detail::lane();
    unsigned const segment = lane & ~(static_cast<unsigned>(width) - 1);
    return carafe::emulator::detail::shuffle(
        mask, value,
        segment | (static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned const lane = carafe::emulator::detail::lane();
    bool const inside = lane % static_cast<unsigned>(width) >= delta;
    return carafe::emulator::detail::shuffle(mask, value, inside ? lane - delta : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned const lane = carafe::emulator::detail::lane();
    bool const inside = lane % static_cast<unsigned>(width) + delta < static_cast<unsigned>(width);
    return carafe::emulator::detail::shuffle(mask, value, inside ? lane + delta : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    unsigned const lane = carafe::emulator::detail::lane();
    unsigned const source = lane ^ static_cast<unsigned>(lane_mask);
    // A lane may read from a lower segment of `width` lanes, not from a higher one.
    bool const inside = source < (lane | (static_cast<unsigned>(width) - 1)) + 1;
    return carafe::emulator::detail::shuffle(mask, value, inside ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return static_cast<unsigned>(carafe::emulator::detail::wait_for_warp(
        carafe::emulator::detail::WarpFunction::kBallot, mask, predicate != 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}

// --- atomics: threads run one at a time ----------------------------------------------------------

template <typename T>
T atomicExch(T* address, T value) {
    std::swap(*address, value);
    return value;
}
template <typename T>
T atomicAdd(T* address, T value) {
    return atomicExch(address, static_cast<T>(*address + value));
}
template <typename T>
T atomicSub(T* address, T value) {
    return atomicExch(address, static_cast<T>(*address - value));
}
template <typename T>
T atomicMax(T* address, T value) {
    return atomicExch(address, std::max(*address, value));
}
template <typename T>
T atomicMin(T* address, T value) {
    return atomicExch(address, std::min(*address, value));
}
template <typename T>
T atomicOr(T* address, T value) {
    return atomicExch(address, static_cast<T>(*address | value));
}
template <typename T>
T atomicAnd(T* address, T value) {
    return atomicExch(address, static_cast<T>(*address & value));
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
    return *address == compare ? atomicExch(address, value) : *address;
}

// --- loads and stores with hints -----------------------------------------------------------------

template <typename T>
T __ldg(T const* address) {
    return *address;
}
template <typename T>
T __ldcs(T const* address) {
    return *address;
}
template <typename T>
void __stcs(T* address, T value) {
    *address = value;
}

// --- bits ----------------------------------------------------------------------------------------

inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value) {
    return __builtin_popcountll(value);
}
inline int __clz(int value) {
    return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
    return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) {
    return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
    return __builtin_ffsll(value);
}

namespace carafe::emulator::detail {

template <typename To, typename From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace carafe::emulator::detail

inline unsigned __float_as_uint(float value) {
    return carafe::emulator::detail::bits_as<unsigned>(value);
}
inline int __float_as_int(float value) {
    return carafe::emulator::detail::bits_as<int>(value);
}
inline float __uint_as_float(unsigned value) {
    return carafe::emulator::detail::bits_as<float>(value);
}
inline float __int_as_float(int value) {
    return carafe::emulator::detail::bits_as<float>(value);
}

// --- arithmetic ----------------------------------------------------------------------------------

#define CARAFE_MIN_MAX(type)          \
    inline type min(type a, type b) { \
        return b < a ? b : a;         \
    }                                 \
    inline type max(type a, type b) { \
        return a < b ? b : a;         \
    }
CARAFE_MIN_MAX(int)
CARAFE_MIN_MAX(unsigned)
CARAFE_MIN_MAX(long)
CARAFE_MIN_MAX(unsigned long)
CARAFE_MIN_MAX(long long)
CARAFE_MIN_MAX(unsigned long long)
#undef CARAFE_MIN_MAX
// As on the device, NaN loses against a number.
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}

inline float rsqrtf(float value) {
    return 1.0f / sqrtf(value);
}
inline float __expf(float value) {
    return expf(value);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
// Rounded as written: never contracted into a multiply-add, which the build also rules out.
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float value) {
    return sqrtf(value);
}
