// RoIAlign's hot loops for one instruction set: a .cpp file defines CARAFE_ISA and
// CARAFE_VECTOR_BYTES and includes this once. Every value is the same sum in the same order, so all
// instruction sets and the CUDA kernels round alike.
#pragma once

#include "carafe_cpu_vector.h"
#include "roi_align_cpu_task.h"

namespace carafe::CARAFE_ISA {

namespace {

constexpr int kWidth = kLanes<float>;

/// Vectors of channels that are summed together.
constexpr int kBlock = 4;

/// As many elements as there are, but N at most; the other lanes are zero.
template <int N, typename T>
Vector<float, N> load_some(T const* from, std::int64_t count) {
    if (count >= N) return load<N>(from);
    T elements[N] = {};
    __builtin_memcpy(elements, from, static_cast<std::size_t>(count) * sizeof(T));
    return load<N>(elements);
}

template <int N, typename T>
void store_some(T* to, Vector<float, N> const& values, std::int64_t count) {
    if (count >= N) return store<N>(to, values);
    T elements[N];
    store<N>(elements, values);
    __builtin_memcpy(to, elements, static_cast<std::size_t>(count) * sizeof(T));
}

// --- a plane -------------------------------------------------------------------------------------

/// Bins along y, and columns, that are worked on together.
constexpr int kSide = kWidth < kRoiBlock ? kWidth : kRoiBlock;
using Side = Vector<float, kSide>;

/// a0 b0 a1 b1 ..., first and second half.
template <int N>
void interleave(
    Vector<float, N> const& a, Vector<float, N> const& b, Vector<float, N>& first,
    Vector<float, N>& second) {
    static_assert(N == 4 || N == 8);
#if defined(__clang__)
    if constexpr (N == 4) {
        first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else {
        first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
#else
    using Lanes = Vector<std::int32_t, N>;
    if constexpr (N == 4) {
        first = __builtin_shuffle(a, b, Lanes{0, 4, 1, 5});
        second = __builtin_shuffle(a, b, Lanes{2, 6, 3, 7});
    } else {
        first = __builtin_shuffle(a, b, Lanes{0, 8, 1, 9, 2, 10, 3, 11});
        second = __builtin_shuffle(a, b, Lanes{4, 12, 5, 13, 6, 14, 7, 15});
    }
#endif
}

inline void transpose(Side (&rows)[kSide]) {
    for (int step = 1; step < kSide; step *= 2) {
        Side next[kSide];
        for (int i = 0; i < kSide / 2; ++i) {
            interleave<kSide>(rows[i], rows[i + kSide / 2], next[2 * i], next[2 * i + 1]);
        }
        for (int i = 0; i < kSide; ++i) rows[i] = next[i];
    }
}

/// Bins [y, y + kSide) by all of x: sums over rows, column by column, then over columns, so that
/// vectors lie along y and the bins' different numbers of columns do not matter.
template <typename T>
void pool_plane_of(RoiTask const& roi, T const* plane, float* scratch, T* out) {
    TapLists const &rows = roi.rows, &columns = roi.columns;
    std::int32_t const size = roi.size;
    std::int64_t const bins = std::int64_t{size} * size;
    std::int64_t const pitch = (size + kSide - 1) / kSide * kSide;
    T const* const end = plane + roi.height * roi.width;
    float* const means = scratch;               // [kSide, pitch]
    float* const sums = means + kSide * pitch;  // a bin's rows summed, [column, kSide]
    for (std::int32_t y = 0; y < size; y += kSide) {
        std::int32_t const last = size - y < kSide ? size - y : kSide;
        for (std::int32_t x = 0; x < columns.length; x += kSide) {
            Side block[kSide] = {};
            for (std::int32_t i = 0; i < last; ++i) {
                for (std::int32_t tap = rows.ends[y + i]; tap < rows.ends[y + i + 1]; ++tap) {
                    // Lanes beyond the RoI's last column are not used.
                    T const* const from = plane + rows.at[tap] * roi.width + columns.first + x;
                    block[i] += rows.weights[tap] * load_some<kSide>(from, end - from);
                }
            }
            transpose(block);
            for (int i = 0; i < kSide; ++i) write(sums + (x + i) * kSide, block[i]);
        }
        for (std::int32_t x = 0; x < size; x += kSide) {
            Side block[kSide] = {};
            for (std::int32_t i = 0; i < kSide && x + i < size; ++i) {
                for (std::int32_t tap = columns.ends[x + i]; tap < columns.ends[x + i + 1]; ++tap) {
                    block[i] += columns.weights[tap] *
                                read<Side>(sums + (columns.at[tap] - columns.first) * kSide);
                }
            }
            transpose(block);
            for (int i = 0; i < kSide; ++i) write(means + i * pitch + x, block[i]);
        }
        for (std::int32_t i = 0; i < last; ++i) {
            for (std::int32_t x = 0; x < size; x += kSide) {
                // Lanes beyond the row's last bin are written again with the next row.
                std::int64_t const at = std::int64_t{y + i} * size + x;
                store_some<kSide>(out + at, read<Side>(means + i * pitch + x), bins - at);
            }
        }
    }
}

// --- pixels --------------------------------------------------------------------------------------

/// `Vectors` vectors of channels of one bin, `image` and `out` at their first; `count` channels.
template <int Vectors, typename T>
void pool_channels(
    RoiTask const& roi, std::int32_t y, std::int32_t x, T const* image, T* out,
    std::int64_t count) {
    TapLists const &rows = roi.rows, &columns = roi.columns;
    using Floats = Vector<float, kWidth>;
    Floats sums[Vectors] = {};
    for (std::int32_t i = rows.ends[y]; i < rows.ends[y + 1]; ++i) {
        for (std::int32_t j = columns.ends[x]; j < columns.ends[x + 1]; ++j) {
            T const* const pixel =
                image + (rows.at[i] * roi.width + columns.at[j]) * roi.feature_pitch;
            float const weight = rows.weights[i] * columns.weights[j];
            for (int n = 0; n < Vectors; ++n) {
                Floats const values = Vectors == 1 ? load_some<kWidth>(pixel, count)
                                                   : load<kWidth>(pixel + n * kWidth);
                sums[n] += weight * values;
            }
        }
    }
    if (Vectors == 1) return store_some<kWidth>(out, sums[0], count);
    for (int n = 0; n < Vectors; ++n) store<kWidth>(out + n * kWidth, sums[n]);
}

template <typename T>
void pool_pixels_of(RoiTask const& roi, T const* image, T* out) {
    for (std::int32_t y = 0; y < roi.size; ++y) {
        for (std::int32_t x = 0; x < roi.size; ++x, out += roi.out_pitch) {
            std::int64_t c = 0;
            for (; roi.channels - c >= kBlock * kWidth; c += kBlock * kWidth) {
                pool_channels<kBlock>(roi, y, x, image + c, out + c, kBlock * kWidth);
            }
            for (; c < roi.channels; c += kWidth) {
                pool_channels<1>(roi, y, x, image + c, out + c, roi.channels - c);
            }
            if (roi.out_pitch > roi.channels) {
                __builtin_memset(
                    static_cast<void*>(out + roi.channels), 0,
                    static_cast<std::size_t>(roi.out_pitch - roi.channels) * sizeof(T));
            }
        }
    }
}

}  // namespace

void pool_plane(RoiTask const& roi, void const* plane, float* scratch, void* out) {
    switch (roi.dtype) {
        case DType::kFloat16:
            return pool_plane_of(
                roi, static_cast<Half const*>(plane), scratch, static_cast<Half*>(out));
        case DType::kBFloat16:
            return pool_plane_of(
                roi, static_cast<BFloat16 const*>(plane), scratch, static_cast<BFloat16*>(out));
        default:
            return pool_plane_of(
                roi, static_cast<float const*>(plane), scratch, static_cast<float*>(out));
    }
}

void pool_pixels(RoiTask const& roi, void const* image, void* out) {
    switch (roi.dtype) {
        case DType::kFloat16:
            return pool_pixels_of(roi, static_cast<Half const*>(image), static_cast<Half*>(out));
        case DType::kBFloat16:
            return pool_pixels_of(
                roi, static_cast<BFloat16 const*>(image), static_cast<BFloat16*>(out));
        default:
            return pool_pixels_of(roi, static_cast<float const*>(image), static_cast<float*>(out));
    }
}

}  // namespace carafe::CARAFE_ISA
