// Vectors of the sums' type, loaded from and stored to every element type. For one instruction
// set: see carafe_cpu_rows.h, which includes this once.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace carafe::CARAFE_ISA {

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

/// N lanes of T; GCC and Clang compute on them with the usual operators.
template <typename T, int N>
struct VectorOf {
    typedef T Type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N>
using Vector = typename VectorOf<T, N>::Type;

template <typename T>
constexpr int kLanes = CARAFE_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename To, typename From>
inline To bits_of(From const& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

template <typename V>
inline V read(void const* from) {
    V vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename V>
inline void write(void* to, V const& vector) {
    __builtin_memcpy(to, &vector, sizeof vector);
}

/// Keeps the compiler from loading an operand again at each of its uses.
template <typename V>
inline void hold(V& vector) {
    if constexpr (sizeof(V) >= 16) {  // shorter ones may live in other registers
#if defined(__x86_64__)
        asm("" : "+x"(vector));
#elif defined(__aarch64__)
        asm("" : "+w"(vector));
#endif
    }
}

#if defined(__GNUC__) && !defined(__clang__)
/// Lanes of a followed by those of b; lane i of the result is number place(i) of them.
template <int N, typename V, typename Place>
inline V choose_lanes(V const& a, V const& b, Place const& place) {
    using Number = decltype(a < b);
    Number numbers{};
    for (int i = 0; i < N; ++i) numbers[i] = place(i);
    return __builtin_shuffle(a, b, numbers);
}
#else
template <int N, typename V, typename Place>
inline V choose_lanes(V const& a, V const& b, Place const& place) {
    V chosen{};
    for (int i = 0; i < N; ++i) chosen[i] = place(i) < N ? a[place(i)] : b[place(i) - N];
    return chosen;
}
#endif

/// The first (kHalf 0) or second half of a0 b0 a1 b1 ...
template <int N, int kHalf, typename V>
inline V in_turn(V const& a, V const& b) {
    return choose_lanes<N>(a, b, [](int i) {
        int const at = i + kHalf * N;
        return at / 2 + at % 2 * N;
    });
}

/// Every second lane of a and b, from lane kFirst on.
template <int N, int kFirst, typename V>
inline V every_second(V const& a, V const& b) {
    return choose_lanes<N>(a, b, [](int i) { return 2 * i + kFirst; });
}

template <int N>
inline Vector<float, N> widen(Vector<std::uint32_t, N> half) {
    using Bits = Vector<std::uint32_t, N>;
    Bits const magnitude = half & 0x7fffu;
    // Subnormals are multiples of 2^-24; the exponents' biases differ by 112.
    auto const subnormal =
        bits_of<Bits>(__builtin_convertvector(magnitude, Vector<float, N>) * 0x1p-24f);
    Bits const normal = (magnitude << 13) + (112u << 23);
    Bits const special = (magnitude << 13) | 0x7f800000u;
    Bits const number = magnitude < 0x0400u ? subnormal : normal;
    Bits const bits = magnitude < 0x7c00u ? number : special;
    return bits_of<Vector<float, N>>(bits | (half & 0x8000u) << 16);
}

template <int N>
inline Vector<std::uint32_t, N> narrow(Vector<float, N> value) {
    using Bits = Vector<std::uint32_t, N>;
    Bits const bits = bits_of<Bits>(value);
    Bits const magnitude = bits & 0x7fffffffu;
    // Adding 0.5 to a value below 2^-14 rounds it to even at 2^-24, the subnormals' step.
    Bits const subnormal = bits_of<Bits>(bits_of<Vector<float, N>>(magnitude) + 0.5f) - 0x3f000000u;
    Bits const normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    Bits const finite = magnitude < 0x38800000u ? subnormal : normal;
    Bits const infinite = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : Bits{} + 0x7c00u;
    return (bits >> 16 & 0x8000u) | (magnitude < 0x477ff000u ? finite : infinite);  // < 65520
}

/// N consecutive elements, converted.
template <int N>
inline Vector<float, N> load(float const* from) {
    return read<Vector<float, N>>(from);
}
template <int N>
inline Vector<double, N> load(double const* from) {
    return read<Vector<double, N>>(from);
}
template <int N>
inline Vector<float, N> load(BFloat16 const* from) {
    // Compilers widen a whole vector in several steps.
#if defined(__AVX512F__)
    if constexpr (N == 16) {
        __m512i const wide = _mm512_maskz_cvtepu16_epi32(0xffff, read<__m256i>(from));
        return bits_of<Vector<float, N>>(bits_of<Vector<std::uint32_t, N>>(wide) << 16);
    }
#endif
#if defined(__AVX2__)
    if constexpr (N == 8) {
        __m256i const wide = _mm256_cvtepu16_epi32(read<__m128i>(from));
        return bits_of<Vector<float, N>>(bits_of<Vector<std::uint32_t, N>>(wide) << 16);
    }
#endif
    auto const bits = read<Vector<std::uint16_t, N>>(from);
    return bits_of<Vector<float, N>>(__builtin_convertvector(bits, Vector<std::uint32_t, N>) << 16);
}
template <int N>
inline Vector<float, N> load(Half const* from) {
#if defined(__AVX512F__)
    if constexpr (N == 16) {
        return bits_of<Vector<float, N>>(_mm512_maskz_cvtph_ps(0xffff, read<__m256i>(from)));
    }
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return bits_of<Vector<float, N>>(_mm256_cvtph_ps(read<__m128i>(from)));
    if constexpr (N == 4) {
        __m128i const low = _mm_loadl_epi64(reinterpret_cast<__m128i const*>(from));
        return bits_of<Vector<float, N>>(_mm_cvtph_ps(low));
    }
    if constexpr (N == 1) return Vector<float, N>{_cvtsh_ss(from->bits)};
#endif
    auto const bits = read<Vector<std::uint16_t, N>>(from);
    return widen<N>(__builtin_convertvector(bits, Vector<std::uint32_t, N>));
}

/// Rounds to nearest even.
template <int N>
inline void store(float* to, Vector<float, N> value) {
    write(to, value);
}
template <int N>
inline void store(double* to, Vector<double, N> value) {
    write(to, value);
}
template <int N>
inline void store(BFloat16* to, Vector<float, N> value) {
    using Bits = Vector<std::uint32_t, N>;
    Bits const bits = bits_of<Bits>(value);
    Bits const rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    Bits const number = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded;
    write(to, __builtin_convertvector(number, Vector<std::uint16_t, N>));
}
template <int N>
inline void store(Half* to, Vector<float, N> value) {
#if defined(__AVX512F__)
    if constexpr (N == 16) {
        return write(
            to, _mm512_maskz_cvtps_ph(0xffff, bits_of<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if defined(__F16C__)
    if constexpr (N == 8) {
        return write(to, _mm256_cvtps_ph(bits_of<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    write(to, __builtin_convertvector(narrow<N>(value), Vector<std::uint16_t, N>));
}

/// e^x for x <= 0 or NaN, within 2 units in the last place.
template <int N>
inline Vector<float, N> exponential(Vector<float, N> x) {
    using Bits = Vector<std::uint32_t, N>;
    using Floats = Vector<float, N>;
    constexpr float kLog2E = 1.44269504f;
    constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2
    constexpr float kRound = 0x1.8p23f;       // added and subtracted, rounds to an integer
    x = x < -110.0f ? Floats{} - 110.0f : x;  // zero below; NaN stays
    Floats const shifted = x * kLog2E + kRound;
    Floats const whole = shifted - kRound;
    Floats const rest = (x - whole * kLn2High) - whole * kLn2Low;  // at most half of ln 2
    Floats sum = Floats{} + 1.0f / 5040.0f;                        // the series of e^rest
    sum = sum * rest + 1.0f / 720.0f;
    sum = sum * rest + 1.0f / 120.0f;
    sum = sum * rest + 1.0f / 24.0f;
    sum = sum * rest + 1.0f / 6.0f;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    // Two factors, since 2^whole itself may be below the normal numbers.
    Bits const exponent = bits_of<Bits>(shifted) - bits_of<Bits>(Floats{} + kRound) + 254u;
    Bits const first = exponent >> 1, second = exponent - first;
    return sum * bits_of<Floats>(first << 23) * bits_of<Floats>(second << 23);
}
template <int N>
inline Vector<double, N> exponential(Vector<double, N> x) {
    for (int lane = 0; lane < N; ++lane) x[lane] = __builtin_exp(x[lane]);
    return x;
}

}  // namespace carafe::CARAFE_ISA
