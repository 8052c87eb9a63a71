// CARAFE on channels-last maps with 16-byte accesses and weights in shared memory.
#pragma once

#include "carafe.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

/// A block works on a tile of source pixels and a chunk of channels; a thread on 16 bytes of
/// channels and every slots-th pixel of the tile, all outputs of a pixel together.
struct ChannelsLastTile {
    static constexpr int kColumns = 8, kMaxRows = 8, kThreads = 256;
    static constexpr int kMaxLanes = 16;  ///< threads that share a pixel
};

struct ChannelsLastWork {
    CarafeParams p;
    std::int32_t rows;  ///< of a tile
    std::int32_t tiles_x, tiles_y;
    std::int32_t lanes, chunks;  ///< threads a pixel; chunks of the widest group
    std::int64_t blocks;
};

/// Where a block is.
struct ChannelsLastBlock {
    std::int64_t image, y, x;
    std::int32_t group, rows, columns;  ///< of the tile that lie inside the map
};

/// The tile's weights as [pixel][tap][dy][dx], in the order of the encoder's output.
template <int K, int S, bool kEncoded, typename T>
__device__ void read_weights(
    CarafeParams const& p, ChannelsLastBlock const& at, T const* masks, float* weights) {
    constexpr int kWeights = K * K * S * S;
    int const count = at.rows * at.columns * kWeights;
    for (int i = threadIdx.x; i < count; i += ChannelsLastTile::kThreads) {
        int const pixel = i / kWeights;
        std::int64_t const y = at.y + pixel / at.columns, x = at.x + pixel % at.columns;
        if constexpr (kEncoded) {
            std::int64_t const from = (at.image * p.height + y) * p.width + x;
            weights[i] = to_float(masks[from * p.mask_pitch + at.group * kWeights + i % kWeights]);
        } else {  // in the order of memory, [pixel][dy][dx][tap]
            int const tap = i % (K * K), q = i / (K * K) % (S * S);
            std::int64_t const from =
                ((at.image * p.height + y) * S + q / S) * S * p.width + x * S + q % S;
            weights[pixel * kWeights + tap * S * S + q] =
                to_float(masks[from * p.mask_pitch + at.group * K * K + tap]);
        }
    }
}

/// Softmax over the taps, a thread an output.
template <int K, int S>
__device__ void normalise(int outputs, float* weights) {
    for (int i = threadIdx.x; i < outputs; i += ChannelsLastTile::kThreads) {
        float* const taps = weights + i / (S * S) * (K * K * S * S) + i % (S * S);
        float values[K * K];
        float top = taps[0], total = 0.0f;
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap) {
            values[tap] = taps[tap * S * S];
            top = fmaxf(top, values[tap]);
        }
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap) {
            values[tap] = expf(values[tap] - top);
            total += values[tap];
        }
        float const factor = 1.0f / total;
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap) taps[tap * S * S] = values[tap] * factor;
    }
}

/// The outputs of source pixel (y, x) for the channels of one Pack.
template <int K, int S, typename T, int V>
__device__ void sum_taps(
    CarafeParams const& p, T const* map, std::int64_t y, std::int64_t x, float const* weights,
    float (&sums)[S * S][V]) {
    for (int u = 0; u < K; ++u) {
        std::int64_t const row = y + u - K / 2;
        bool const row_inside = row >= 0 && row < p.height;
        T const* const from = map + row * p.width * p.feature_pitch;
#pragma unroll
        for (int v = 0; v < K; ++v, weights += S * S) {
            std::int64_t const column = x + v - K / 2;
            float values[V] = {};
            if (row_inside && column >= 0 && column < p.width) {
                auto const pack =
                    *reinterpret_cast<Pack<T, V> const*>(from + column * p.feature_pitch);
#pragma unroll
                for (int i = 0; i < V; ++i) values[i] = to_float(pack.values[i]);
            }
            auto const tap = *reinterpret_cast<Pack<float, S * S> const*>(weights);
#pragma unroll
            for (int q = 0; q < S * S; ++q) {
#pragma unroll
                for (int i = 0; i < V; ++i) sums[q][i] += tap.values[q] * values[i];
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded>
__global__ void __launch_bounds__(ChannelsLastTile::kThreads, 2) carafe_channels_last(
    ChannelsLastWork work, T const* __restrict__ features, T const* __restrict__ masks,
    T* __restrict__ out) {
    using Tile = ChannelsLastTile;
    constexpr int V = 16 / sizeof(T);
    CarafeParams const& p = work.p;
    float* const weights = shared_memory<float>();  // [pixel][tap][dy][dx]
    std::int64_t const width = std::int64_t{S} * p.width;

    for (std::int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
        ChannelsLastBlock at{};
        std::int64_t rest = block;
        auto const chunk = static_cast<std::int32_t>(rest % work.chunks);
        rest /= work.chunks;
        at.x = rest % work.tiles_x * Tile::kColumns;
        rest /= work.tiles_x;
        at.y = rest % work.tiles_y * work.rows;
        rest /= work.tiles_y;
        at.group = static_cast<std::int32_t>(rest % p.groups);
        at.image = rest / p.groups;
        at.columns = static_cast<std::int32_t>(min(std::int64_t{Tile::kColumns}, p.width - at.x));
        at.rows = static_cast<std::int32_t>(min(std::int64_t{work.rows}, p.height - at.y));

        __syncthreads();
        read_weights<K, S, kEncoded>(p, at, masks, weights);
        __syncthreads();
        if constexpr (kEncoded) {
            normalise<K, S>(at.rows * at.columns * S * S, weights);
            __syncthreads();
        }

        std::int32_t const channels = p.channels / p.groups;
        int const lane = threadIdx.x % work.lanes;
        std::int64_t const channel =
            std::int64_t{at.group} * channels + (std::int64_t{chunk} * work.lanes + lane) * V;
        // The last group also clears what pads the result.
        std::int64_t const end = at.group + 1 < p.groups ? (at.group + 1) * channels : p.out_pitch;
        if (channel >= end) continue;
        T const* const map = features + at.image * p.height * p.width * p.feature_pitch + channel;
        int const slots = Tile::kThreads / work.lanes;
        for (int pixel = threadIdx.x / work.lanes; pixel < at.rows * at.columns; pixel += slots) {
            std::int64_t const y = at.y + pixel / at.columns, x = at.x + pixel % at.columns;
            float sums[S * S][V] = {};
            if (channel < p.channels) {
                sum_taps<K, S>(p, map, y, x, weights + pixel * K * K * S * S, sums);
            }
            T* const to =
                out + ((at.image * p.height + y) * S * width + x * S) * p.out_pitch + channel;
#pragma unroll
            for (int q = 0; q < S * S; ++q) {
                Pack<T, V> pack;
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    pack.values[i] = from_float<T>(channel + i < p.channels ? sums[q][i] : 0.0f);
                }
                *reinterpret_cast<Pack<T, V>*>(to + (q / S * width + q % S) * p.out_pitch) = pack;
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded>
cudaError_t launch_channels_last(
    CarafeParams const& p, T const* features, T const* masks, T* out, cudaStream_t stream) {
    using Tile = ChannelsLastTile;
    constexpr int V = 16 / sizeof(T);
    constexpr std::int64_t kPixelBytes = sizeof(float) * K * K * S * S;
    static_assert(Tile::kColumns * Tile::kMaxRows * kPixelBytes <= 48 * 1024);
    ChannelsLastWork work{};
    work.p = p;
    std::int64_t const widest = p.channels / p.groups + p.out_pitch - p.channels;
    work.lanes = Tile::kMaxLanes;
    while (work.lanes > 1 && work.lanes / 2 * V >= widest) work.lanes /= 2;
    work.chunks = static_cast<std::int32_t>(blocks_for(widest, work.lanes * V));
    work.tiles_x = static_cast<std::int32_t>(blocks_for(p.width, Tile::kColumns));
    // Small maps take small tiles, for enough blocks.
    for (work.rows = Tile::kMaxRows;; work.rows /= 2) {
        work.tiles_y = static_cast<std::int32_t>(blocks_for(p.height, work.rows));
        work.blocks = std::int64_t{p.batch} * p.groups * work.chunks * work.tiles_x * work.tiles_y;
        if (work.blocks >= kEnoughBlocks || work.rows == 1) break;
    }
    return launch(
        carafe_channels_last<T, K, S, kEncoded>, grid_of(work.blocks), dim3(Tile::kThreads),
        static_cast<std::size_t>(Tile::kColumns * work.rows * kPixelBytes), stream, work, features,
        masks, out);
}

}  // namespace carafe
