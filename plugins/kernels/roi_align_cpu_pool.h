// RoIAlign's hot loops for one instruction set: a .cpp file defines CARAFE_ISA and
// CARAFE_VECTOR_BYTES and includes this once. Every value is the same sum in the same order, so all
// instruction sets and the CUDA kernels round alike.
#pragma once

#include "carafe_cpu_vector.h"
#include "roi_align_cpu_task.h"

namespace carafe::CARAFE_ISA {

namespace {

constexpr int kWidth = kLanes<float>;
using Floats = Vector<float, kWidth>;

/// Vectors of channels that are summed together.
constexpr int kBlock = 4;

/// As many elements as there are, but kWidth at most; the other lanes are zero.
template <typename T>
Floats load_some(T const* from, std::int64_t count) {
    if (count >= kWidth) return load<kWidth>(from);
    T elements[kWidth] = {};
    __builtin_memcpy(elements, from, static_cast<std::size_t>(count) * sizeof(T));
    return load<kWidth>(elements);
}

template <typename T>
void store_some(T* to, Floats const& values, std::int64_t count) {
    if (count >= kWidth) return store<kWidth>(to, values);
    T elements[kWidth];
    store<kWidth>(elements, values);
    __builtin_memcpy(to, elements, static_cast<std::size_t>(count) * sizeof(T));
}

template <typename T>
void pool_plane_of(RoiTask const& roi, T const* plane, float* scratch, T* out) {
    TapLists const &rows = roi.rows, &columns = roi.columns;
    std::int64_t const bins = std::int64_t{roi.size} * roi.size;
    T const* const end = plane + roi.height * roi.width;
    float* const sums = scratch;  // of a bin's rows, one a column
    float* const means = scratch + columns.length + kRoiLanes;
    float* mean = means;
    for (std::int32_t y = 0; y < roi.size; ++y) {
        for (std::int32_t x = 0; x < columns.length; x += kWidth) {
            Floats sum{};
            for (std::int32_t tap = rows.ends[y]; tap < rows.ends[y + 1]; ++tap) {
                // Lanes beyond the RoI's last column are not used.
                T const* const from = plane + rows.at[tap] * roi.width + columns.first + x;
                sum += rows.weights[tap] * load_some(from, end - from);
            }
            write(sums + x, sum);
        }
        std::int32_t tap = 0;
        for (std::int32_t x = 0; x < roi.size; ++x) {
            float sum = 0.0f;
            for (; tap < columns.ends[x + 1]; ++tap) {
                sum += columns.weights[tap] * sums[columns.at[tap] - columns.first];
            }
            *mean++ = sum;
        }
    }
    for (std::int64_t bin = 0; bin < bins; bin += kWidth) {
        store_some(out + bin, load_some(means + bin, bins - bin), bins - bin);
    }
}

/// `Vectors` vectors of channels of one bin, `image` and `out` at their first; `count` channels.
template <int Vectors, typename T>
void pool_channels(
    RoiTask const& roi, std::int32_t y, std::int32_t x, T const* image, T* out,
    std::int64_t count) {
    TapLists const &rows = roi.rows, &columns = roi.columns;
    Floats sums[Vectors] = {};
    for (std::int32_t i = rows.ends[y]; i < rows.ends[y + 1]; ++i) {
        for (std::int32_t j = columns.ends[x]; j < columns.ends[x + 1]; ++j) {
            T const* const pixel =
                image + (rows.at[i] * roi.width + columns.at[j]) * roi.feature_pitch;
            float const weight = rows.weights[i] * columns.weights[j];
            for (int n = 0; n < Vectors; ++n) {
                Floats const values =
                    Vectors == 1 ? load_some(pixel, count) : load<kWidth>(pixel + n * kWidth);
                sums[n] += weight * values;
            }
        }
    }
    if (Vectors == 1) return store_some(out, sums[0], count);
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
