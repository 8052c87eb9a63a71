// CARAFE on NCHW maps with weights in registers.
#pragma once

#include "carafe.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

/// A block works on a tile of source pixels, one thread each, and a chunk of channels. A thread
/// keeps the weights of all its outputs; the block stages the tile of a few channels with its
/// border, so that features are read once for all taps and converted once.
struct PlanesTile {
    static constexpr int kColumns = 16, kRows = 8, kThreads = kColumns * kRows;
    static constexpr int kStaged = 4;  ///< channels between two barriers
    /// Of a staged row: puts the two rows that a warp reads into different banks.
    static constexpr int kPitch = 48;
};

struct PlanesWork {
    CarafeParams p;
    std::int32_t tiles_x, tiles_y;
    std::int32_t chunk, chunks;  ///< channels of a block; chunks of a group
    std::int64_t blocks;
};

/// weights[tap][dy * S + dx] of the source pixel (y, x).
template <int K, int S, bool kEncoded, typename T>
__device__ void read_weights(
    CarafeParams const& p, T const* masks, std::int64_t image, std::int64_t group, std::int64_t y,
    std::int64_t x, float (&weights)[K * K][S * S]) {
    if constexpr (kEncoded) {
        std::int64_t const plane = std::int64_t{p.height} * p.width;
        T const* from =
            masks + (image * p.groups + group) * K * K * S * S * plane + y * p.width + x;
#pragma unroll
        for (int q = 0; q < S * S; ++q, from += plane) {
#pragma unroll
            for (int tap = 0; tap < K * K; ++tap) {
                weights[tap][q] = to_float(from[tap * S * S * plane]);
            }
            float top = weights[0][q], total = 0.0f;
#pragma unroll
            for (int tap = 1; tap < K * K; ++tap) top = fmaxf(top, weights[tap][q]);
#pragma unroll
            for (int tap = 0; tap < K * K; ++tap) {
                weights[tap][q] = expf(weights[tap][q] - top);
                total += weights[tap][q];
            }
            float const factor = 1.0f / total;
#pragma unroll
            for (int tap = 0; tap < K * K; ++tap) weights[tap][q] *= factor;
        }
    } else {
        std::int64_t const row = std::int64_t{S} * p.width, plane = S * p.height * row;
        T const* from = masks + (image * p.groups + group) * K * K * plane + y * S * row + x * S;
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap, from += plane) {
#pragma unroll
            for (int dy = 0; dy < S; ++dy) {
                auto const pack = *reinterpret_cast<Pack<T, S> const*>(from + dy * row);
#pragma unroll
                for (int dx = 0; dx < S; ++dx) {
                    weights[tap][dy * S + dx] = to_float(pack.values[dx]);
                }
            }
        }
    }
}

/// Channels [first, last) around the tile at (y, x) as [channel][row][kPitch]; zeros outside.
template <int K, typename T>
__device__ void stage(
    CarafeParams const& p, T const* planes, std::int32_t first, std::int32_t last, std::int64_t y,
    std::int64_t x, float* staged) {
    using Tile = PlanesTile;
    constexpr int kColumns = Tile::kColumns + K - 1, kRows = Tile::kRows + K - 1;
    static_assert(kColumns <= Tile::kPitch);
    std::int64_t const plane = std::int64_t{p.height} * p.width;
#pragma unroll 4
    for (int i = threadIdx.x; i < Tile::kStaged * kRows * kColumns; i += Tile::kThreads) {
        int const column = i % kColumns, row = i / kColumns % kRows, c = i / kColumns / kRows;
        std::int64_t const at_y = y + row - K / 2, at_x = x + column - K / 2;
        bool const inside =
            first + c < last && at_y >= 0 && at_y < p.height && at_x >= 0 && at_x < p.width;
        staged[(c * kRows + row) * Tile::kPitch + column] =
            inside ? to_float(planes[(first + c) * plane + at_y * p.width + at_x]) : 0.0f;
    }
}

template <typename T, int K, int S, bool kEncoded>
__global__ void __launch_bounds__(PlanesTile::kThreads, 3) carafe_planes(
    PlanesWork work, T const* __restrict__ features, T const* __restrict__ masks,
    T* __restrict__ out) {
    using Tile = PlanesTile;
    constexpr int kRows = Tile::kRows + K - 1;
    CarafeParams const& p = work.p;
    float* const staged = shared_memory<float>();  // [kStaged][kRows][kPitch]
    int const column = threadIdx.x % Tile::kColumns, row = threadIdx.x / Tile::kColumns;
    std::int64_t const width = std::int64_t{S} * p.width, plane = S * p.height * width;

    for (std::int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
        std::int64_t rest = block;
        auto const chunk = static_cast<std::int32_t>(rest % work.chunks);
        rest /= work.chunks;
        std::int64_t const x = rest % work.tiles_x * Tile::kColumns;
        rest /= work.tiles_x;
        std::int64_t const y = rest % work.tiles_y * Tile::kRows;
        rest /= work.tiles_y;
        auto const group = static_cast<std::int32_t>(rest % p.groups);
        std::int64_t const image = rest / p.groups;
        bool const inside = y + row < p.height && x + column < p.width;

        float weights[K * K][S * S];
        if (inside) {
            read_weights<K, S, kEncoded>(p, masks, image, group, y + row, x + column, weights);
        }

        std::int32_t const channels = p.channels / p.groups;
        std::int32_t const begin = group * channels + chunk * work.chunk;
        std::int32_t const end =
            chunk + 1 < work.chunks ? begin + work.chunk : (group + 1) * channels;
        T const* const planes = features + image * p.channels * p.height * p.width;
        T* to =
            out + (image * p.channels + begin) * plane + (y + row) * S * width + (x + column) * S;
        for (std::int32_t first = begin; first < end; first += Tile::kStaged) {
            __syncthreads();
            stage<K>(p, planes, first, end, y, x, staged);
            __syncthreads();
            if (!inside) continue;
            float const* source = staged + row * Tile::kPitch + column;
            for (int c = 0; c < Tile::kStaged && first + c < end; ++c) {
                float sums[S * S] = {};
#pragma unroll
                for (int tap = 0; tap < K * K; ++tap) {
                    float const value = source[tap / K * Tile::kPitch + tap % K];
#pragma unroll
                    for (int q = 0; q < S * S; ++q) sums[q] += weights[tap][q] * value;
                }
#pragma unroll
                for (int dy = 0; dy < S; ++dy) {
                    Pack<T, S> pack;
#pragma unroll
                    for (int dx = 0; dx < S; ++dx) {
                        pack.values[dx] = from_float<T>(sums[dy * S + dx]);
                    }
                    *reinterpret_cast<Pack<T, S>*>(to + dy * width) = pack;
                }
                source += kRows * Tile::kPitch;
                to += plane;
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded>
cudaError_t launch_planes(
    CarafeParams const& p, T const* features, T const* masks, T* out, cudaStream_t stream) {
    using Tile = PlanesTile;
    PlanesWork work{};
    work.p = p;
    work.tiles_x = static_cast<std::int32_t>(blocks_for(p.width, Tile::kColumns));
    work.tiles_y = static_cast<std::int32_t>(blocks_for(p.height, Tile::kRows));
    std::int64_t const tiles = std::int64_t{p.batch} * p.groups * work.tiles_x * work.tiles_y;
    work.chunk = chunk_for(p.channels / p.groups, tiles, 64, Tile::kStaged);
    work.chunks = static_cast<std::int32_t>(blocks_for(p.channels / p.groups, work.chunk));
    work.blocks = tiles * work.chunks;
    constexpr std::size_t kShared =
        sizeof(float) * Tile::kStaged * (Tile::kRows + K - 1) * Tile::kPitch;
    return launch(
        carafe_planes<T, K, S, kEncoded>, grid_of(work.blocks), dim3(Tile::kThreads), kShared,
        stream, work, features, masks, out);
}

/// Whether pointers allow the accesses of S elements.
template <typename T, int S>
bool planes_fit(CarafeParams const& p, void const* masks, void const* out) {
    bool const encoded = p.source == MaskSource::kEncoded;
    return is_aligned(out, S * sizeof(T)) && (encoded || is_aligned(masks, S * sizeof(T)));
}

}  // namespace carafe
