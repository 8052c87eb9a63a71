// CARAFE for every kernel size, ratio, layout, pitch and alignment.
#pragma once

#include "carafe.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

/// Channels whose sums one thread keeps, so that it normalises a weight once for all of them.
constexpr int kAnyChannels = 8;
constexpr int kAnyThreads = 128;

/// A thread works on one output pixel, one group and every lanes-th channel from `lane` on.
struct AnyWork {
    CarafeParams p;
    Strides features, masks, out;
    std::int64_t lanes;    ///< threads that share a group of one pixel
    std::int64_t threads;  ///< in all
};

/// The weights of one group and output pixel, normalised when read.
template <typename T>
struct AnyWeights {
    T const* first;  ///< of the taps
    std::int64_t stride, taps;
    float top = 0.0f, factor = 1.0f;
    bool encoded;

    __device__ void normalise() {
        top = to_float(first[0]);
        for (std::int64_t tap = 1; tap < taps; ++tap) {
            top = fmaxf(top, to_float(first[tap * stride]));
        }
        float total = 0.0f;
        for (std::int64_t tap = 0; tap < taps; ++tap) {
            total += expf(to_float(first[tap * stride]) - top);
        }
        factor = 1.0f / total;
    }

    __device__ float operator[](std::int64_t tap) const {
        float const value = to_float(first[tap * stride]);
        return encoded ? expf(value - top) * factor : value;
    }
};

template <typename T>
__device__ void reassemble_any(
    AnyWork const& work, T const* features, T const* masks, T* out, std::int64_t image,
    std::int64_t group, std::int64_t lane, std::int64_t i, std::int64_t j) {
    CarafeParams const& p = work.p;
    std::int64_t const s = p.scale, k = p.kernel_size, y = i / s, x = j / s;
    std::int64_t const taps = k * k, channels = p.channels / p.groups;
    bool const encoded = p.source == MaskSource::kEncoded;

    AnyWeights<T> weights{};
    weights.encoded = encoded;
    weights.taps = taps;
    weights.first = masks + image * work.masks.image;
    if (encoded) {
        weights.stride = s * s * work.masks.channel;
        weights.first += (group * taps * s * s + i % s * s + j % s) * work.masks.channel +
                         y * work.masks.row + x * work.masks.column;
        weights.normalise();
    } else {
        weights.stride = work.masks.channel;
        weights.first +=
            group * taps * work.masks.channel + i * work.masks.row + j * work.masks.column;
    }

    features += image * work.features.image + group * channels * work.features.channel;
    out += image * work.out.image + group * channels * work.out.channel + i * work.out.row +
           j * work.out.column;
    for (std::int64_t first = lane; first < channels; first += kAnyChannels * work.lanes) {
        float sums[kAnyChannels] = {};
        for (std::int64_t tap = 0; tap < taps; ++tap) {
            float const weight = weights[tap];
            std::int64_t const row = y + tap / k - k / 2, column = x + tap % k - k / 2;
            bool const inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
            T const* const at = features + row * work.features.row + column * work.features.column;
            for (int c = 0; c < kAnyChannels; ++c) {
                std::int64_t const channel = first + c * work.lanes;
                bool const read = inside && channel < channels;
                sums[c] += weight * (read ? to_float(at[channel * work.features.channel]) : 0.0f);
            }
        }
        for (int c = 0; c < kAnyChannels; ++c) {
            std::int64_t const channel = first + c * work.lanes;
            if (channel < channels) out[channel * work.out.channel] = from_float<T>(sums[c]);
        }
    }
    // Channels-last: the last group's threads also clear what pads its pixel.
    if (p.layout == Layout::kNHWC && group == p.groups - 1) {
        for (std::int64_t c = channels + lane; c < work.out.column - group * channels;
             c += work.lanes) {
            out[c] = from_float<T>(0.0f);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kAnyThreads, 4)
    carafe_any(AnyWork work, T const* features, T const* masks, T* out) {
    CarafeParams const& p = work.p;
    std::int64_t const height = std::int64_t{p.scale} * p.height;
    std::int64_t const width = std::int64_t{p.scale} * p.width;
    std::int64_t const step = std::int64_t{gridDim.x} * kAnyThreads;
    for (std::int64_t thread = std::int64_t{blockIdx.x} * kAnyThreads + threadIdx.x;
         thread < work.threads; thread += step) {
        // Neighbouring threads take neighbours in memory.
        std::int64_t rest = thread, lane = 0, group = 0;
        if (p.layout == Layout::kNHWC) {
            lane = rest % work.lanes;
            rest /= work.lanes;
            group = rest % p.groups;
            rest /= p.groups;
        }
        std::int64_t const j = rest % width;
        rest /= width;
        std::int64_t const i = rest % height;
        rest /= height;
        if (p.layout == Layout::kNCHW) {
            lane = rest % work.lanes;
            rest /= work.lanes;
            group = rest % p.groups;
            rest /= p.groups;
        }
        reassemble_any(work, features, masks, out, rest, group, lane, i, j);
    }
}

template <typename T>
cudaError_t launch_any(
    CarafeParams const& p, T const* features, T const* masks, T* out, cudaStream_t stream) {
    AnyWork work{};
    work.p = p;
    std::int64_t const height = std::int64_t{p.scale} * p.height;
    std::int64_t const width = std::int64_t{p.scale} * p.width;
    bool const encoded = p.source == MaskSource::kEncoded;
    work.features = strides_of(p.layout, p.channels, p.height, p.width, p.feature_pitch);
    work.masks = strides_of(
        p.layout, mask_channels(p), encoded ? p.height : height, encoded ? p.width : width,
        p.mask_pitch);
    work.out = strides_of(p.layout, p.channels, height, width, p.out_pitch);
    std::int64_t const channels = p.channels / p.groups;
    work.lanes = channels > kAnyChannels ? blocks_for(channels, kAnyChannels) : 1;
    work.threads = p.batch * work.lanes * p.groups * height * width;
    return launch(
        carafe_any<T>, grid_of(blocks_for(work.threads, kAnyThreads)), dim3(kAnyThreads), 0, stream,
        work, features, masks, out);
}

}  // namespace carafe
