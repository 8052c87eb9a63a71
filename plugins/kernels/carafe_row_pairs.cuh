// CARAFE on planes (NCHW, or one channel of any layout), two source pixels and one row of their
// results a thread.
#pragma once

#include "carafe.h"
#include "carafe_grid.h"
#include "carafe_strides.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

/// A block works on a tile of source pixels and a chunk of channels. A thread keeps the weights of
/// the 2 S outputs that two neighbours have in one row of the result; the block stages the tile of
/// a few channels with its border. The S threads of a pair read the same features, so a warp's
/// 8-byte load of shared memory moves 128 bytes.
struct RowPairsTile {
    static constexpr int kColumns = 16, kRows = 8, kThreads = 128;
    static constexpr int kStaged = 4;  ///< channels between two barriers
    /// Of a staged row: puts the two rows that a warp reads into different banks.
    static constexpr int kPitch = 48;
};

struct RowPairsWork {
    CarafeParams p;
    Strides masks;
    std::int32_t tiles_x, tiles_y;
    std::int32_t chunk, chunks;  ///< channels of a block; chunks of a group
    bool wide;                   ///< the 2 S outputs of a thread move as one access
    bool packed_masks;           ///< the encoder's output of two neighbours moves as one access
    std::int64_t blocks;
};

/// weights[r][tap][dx] of the outputs (y * S + dy, (x + r) * S + dx); unused for a pixel outside.
template <int K, int S, bool kEncoded, typename T>
__device__ void row_weights(
    RowPairsWork const& work, T const* masks, std::int64_t image, std::int64_t group,
    std::int64_t y, std::int64_t x, int dy, float (&weights)[2][K * K][S]) {
    constexpr int kTaps = K * K, Q = S * S;
    std::int64_t const channel = work.masks.channel, column = work.masks.column;
    std::int64_t const step = kEncoded ? Q * channel : channel;  // from one tap to the next
    masks += image * work.masks.image + group * kTaps * step;
    masks += kEncoded ? dy * S * channel + y * work.masks.row + x * column
                      : (y * S + dy) * work.masks.row + x * S * column;
#pragma unroll
    for (int dx = 0; dx < S; ++dx) {
        std::int64_t const at = kEncoded ? dx * channel : dx * column;
        float values[2][kTaps] = {};
        if (kEncoded && work.packed_masks) {
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                float pair[2];
                load_pack<2>(masks + at + tap * step, true, pair);
                values[0][tap] = pair[0];
                values[1][tap] = pair[1];
            }
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (x + r >= work.p.width) continue;
                T const* const from = masks + at + r * (kEncoded ? column : S * column);
#pragma unroll
                for (int tap = 0; tap < kTaps; ++tap) values[r][tap] = to_float(from[tap * step]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if constexpr (kEncoded) {
                softmax<kTaps>([&](int tap) { return values[r][tap]; }, values[r]);
            }
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) weights[r][tap][dx] = values[r][tap];
        }
    }
}

/// Where a thread's part of a staged channel lies: the same for every channel.
template <int K>
struct RowPairsStage {
    using Tile = RowPairsTile;
    static constexpr int kColumns = Tile::kColumns + K - 1, kRows = Tile::kRows + K - 1;
    static constexpr int kParts = (kColumns * kRows + Tile::kThreads - 1) / Tile::kThreads;
    static constexpr int kFloats = kRows * Tile::kPitch;  ///< of a channel
    static_assert(kColumns <= Tile::kPitch);

    std::int64_t from[kParts];  ///< element of a plane, negative outside the map

    __device__ RowPairsStage(CarafeParams const& p, std::int64_t y, std::int64_t x) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            int const i = threadIdx.x + part * Tile::kThreads;
            int const row = i / kColumns, column = i % kColumns;
            std::int64_t const at_y = y + row - K / 2, at_x = x + column - K / 2;
            bool const inside = at_y >= 0 && at_y < p.height && at_x >= 0 && at_x < p.width;
            from[part] = inside ? at_y * p.width + at_x : -1;
        }
    }

    /// `count` channels from `planes` on, as [channel][row][kPitch]; zeros outside the map.
    template <typename T>
    __device__ void stage(T const* planes, std::int64_t plane, int count, float* staged) const {
#pragma unroll 2
        for (int c = 0; c < count; ++c) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
                int const i = threadIdx.x + part * Tile::kThreads;
                if (i >= kColumns * kRows) continue;
                float const value = from[part] < 0 ? 0.0f : to_float(planes[from[part]]);
                staged[c * kFloats + i / kColumns * Tile::kPitch + i % kColumns] = value;
            }
            planes += plane;
        }
    }
};

/// The thread's outputs of one channel; `source` points at the pair's first tap.
template <int K, int S>
__device__ void sum_pair(
    float const* source, float const (&weights)[2][K * K][S], float (&sums)[2 * S]) {
    static_assert(K % 2 == 1);
#pragma unroll
    for (int u = 0; u < K; ++u) {
        float window[K + 1];
#pragma unroll
        for (int c = 0; c < K + 1; c += 2) {
            load_pack<2>(source + u * RowPairsTile::kPitch + c, true, window + c);
        }
#pragma unroll
        for (int v = 0; v < K; ++v) {
#pragma unroll
            for (int i = 0; i < 2 * S; ++i) {
                sums[i] += weights[i / S][u * K + v][i % S] * window[v + i / S];
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded>
__global__ void __launch_bounds__(RowPairsTile::kThreads, 3) carafe_row_pairs(
    RowPairsWork work, T const* __restrict__ features, T const* __restrict__ masks,
    T* __restrict__ out) {
    using Tile = RowPairsTile;
    using Stage = RowPairsStage<K>;
    static_assert(Tile::kThreads == Tile::kColumns / 2 * S * Tile::kRows);
    CarafeParams const& p = work.p;
    float* const staged = shared_memory<float>();  // [kStaged][kRows][kPitch]
    int const dy = threadIdx.x % S, column = threadIdx.x / S % (Tile::kColumns / 2) * 2;
    int const row = threadIdx.x / (S * Tile::kColumns / 2);
    std::int64_t const width = std::int64_t{S} * p.width, plane = S * p.height * width;
    std::int64_t const source_plane = std::int64_t{p.height} * p.width;

    for (std::int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
        std::int64_t rest = block;
        auto const chunk = static_cast<std::int32_t>(rest % work.chunks);
        rest /= work.chunks;
        std::int64_t const tile_x = rest % work.tiles_x * Tile::kColumns, x = tile_x + column;
        rest /= work.tiles_x;
        std::int64_t const tile_y = rest % work.tiles_y * Tile::kRows, y = tile_y + row;
        rest /= work.tiles_y;
        auto const group = static_cast<std::int32_t>(rest % p.groups);
        std::int64_t const image = rest / p.groups;
        bool const inside = y < p.height && x < p.width, both = x + 1 < p.width;

        float weights[2][K * K][S];
        if (inside) row_weights<K, S, kEncoded>(work, masks, image, group, y, x, dy, weights);

        std::int32_t const channels = p.channels / p.groups;
        std::int32_t const begin = group * channels + chunk * work.chunk;
        std::int32_t const end =
            chunk + 1 < work.chunks ? begin + work.chunk : (group + 1) * channels;
        Stage const stage(p, tile_y, tile_x);
        T const* planes = features + (image * p.channels + begin) * source_plane;
        T* to = out + (image * p.channels + begin) * plane + (y * S + dy) * width + x * S;
        for (std::int32_t first = begin; first < end; first += Tile::kStaged) {
            int const count = min(end - first, Tile::kStaged);
            __syncthreads();
            stage.stage(planes, source_plane, count, staged);
            planes += Tile::kStaged * source_plane;
            __syncthreads();
            if (!inside) continue;
            float const* source = staged + row * Tile::kPitch + column;
#pragma unroll 1
            for (int c = 0; c < count; ++c, source += Stage::kFloats, to += plane) {
                float sums[2 * S] = {};
                sum_pair<K, S>(source, weights, sums);
                if (work.wide) {
                    store_pack<2 * S>(sums, to);
                } else {
                    store_pack<S>(sums, to);
                    if (both) store_pack<S>(sums + S, to + S);
                }
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded>
cudaError_t launch_row_pairs(
    CarafeParams const& p, T const* features, T const* masks, T* out, cudaStream_t stream) {
    using Tile = RowPairsTile;
    RowPairsWork work{};
    work.p = p;
    int const zoom = kEncoded ? 1 : S;
    work.masks = strides_of(
        p.layout, mask_channels(p), std::int64_t{zoom} * p.height, std::int64_t{zoom} * p.width,
        p.mask_pitch);
    work.tiles_x = static_cast<std::int32_t>(blocks_for(p.width, Tile::kColumns));
    work.tiles_y = static_cast<std::int32_t>(blocks_for(p.height, Tile::kRows));
    std::int64_t const tiles = std::int64_t{p.batch} * p.groups * work.tiles_x * work.tiles_y;
    // Half as many blocks as elsewhere: each reads and normalises the weights of its chunk.
    work.chunk = chunk_for(p.channels / p.groups, 2 * tiles, 64, Tile::kStaged);
    work.chunks = static_cast<std::int32_t>(blocks_for(p.channels / p.groups, work.chunk));
    work.packed_masks =
        p.layout == Layout::kNCHW && p.width % 2 == 0 && is_aligned(masks, 2 * sizeof(T));
    work.wide = p.width % 2 == 0 && is_aligned(out, 2 * S * sizeof(T));
    work.blocks = tiles * work.chunks;
    constexpr std::size_t kShared = sizeof(float) * Tile::kStaged * RowPairsStage<K>::kFloats;
    return launch(
        carafe_row_pairs<T, K, S, kEncoded>, grid_of(work.blocks), dim3(Tile::kThreads), kShared,
        stream, work, features, masks, out);
}

/// Whether the maps are planes without padding, and the pointer allows accesses of S elements.
template <typename T, int S>
bool row_pairs_fit(CarafeParams const& p, void const* out) {
    bool const planes =
        p.layout == Layout::kNCHW || (p.channels == 1 && p.feature_pitch == 1 && p.out_pitch == 1);
    return planes && is_aligned(out, S * sizeof(T));
}

}  // namespace carafe
