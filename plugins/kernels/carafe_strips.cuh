// CARAFE on channels-last maps, several source pixels of a row a thread.
#pragma once

#include <type_traits>

#include "carafe.h"
#include "carafe_grid.h"
#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {

/// A block works on a tile of source pixels and a chunk of channels; a thread on R neighbours of a
/// row and V channels, all outputs together: a pixel of features, read and converted once, serves
/// the up to R kernels of its row that hold it.
struct StripsTile {
    static constexpr int kColumns = 8, kMaxRows = 4, kThreads = 128;
    static constexpr int kLanes = 16;  ///< threads that share a strip
    /// Of a processor at once: 168 registers a thread keep all loads of a row of taps in flight.
    static constexpr int kBlocks = 3;
};

/// Elements of one access: 16 bytes, or V elements when those are fewer.
template <typename T, int V>
constexpr int kStripsPack = V * sizeof(T) < 16 ? V : int{16 / sizeof(T)};

struct StripsWork {
    CarafeParams p;
    std::int32_t rows;  ///< of a tile
    std::int32_t tiles_x, tiles_y;
    std::int32_t chunks;  ///< of the widest group
    std::int64_t blocks;
};

/// Where a block is.
struct StripsBlock {
    std::int32_t image, group, y, x;
    std::int32_t rows, columns;  ///< of the tile that lie inside the map
};

/// The tile's weights as [row][kColumns][tap][dy][dx], normalised; a thread an output.
template <int K, int S, typename T>
__device__ void encoded_weights(
    CarafeParams const& p, StripsBlock const& at, T const* masks, float* weights) {
    using Tile = StripsTile;
    constexpr int Q = S * S, kWeights = K * K * Q;
    for (int i = threadIdx.x; i < at.rows * Tile::kColumns * Q; i += blockDim.x) {
        int const q = i % Q, pixel = i / Q;
        int const row = pixel / Tile::kColumns, column = pixel % Tile::kColumns;
        if (column >= at.columns) continue;
        std::int64_t const y = std::int64_t{at.image} * p.height + at.y + row;
        std::int64_t const from = y * p.width + at.x + column;
        T const* const taps = masks + from * p.mask_pitch + at.group * kWeights + q;
        float values[K * K];
        softmax<K * K>([&](int tap) { return to_float(taps[tap * Q]); }, values);
#pragma unroll
        for (int tap = 0; tap < K * K; ++tap) weights[pixel * kWeights + tap * Q + q] = values[tap];
    }
}

/// The same of weights that are ready to use; neighbouring threads take neighbours in memory.
template <int K, int S, typename T>
__device__ void plain_weights(
    CarafeParams const& p, StripsBlock const& at, T const* masks, float* weights) {
    using Tile = StripsTile;
    constexpr int Q = S * S, kWeights = K * K * Q;
    for (int i = threadIdx.x; i < at.rows * Tile::kColumns * kWeights; i += blockDim.x) {
        int const tap = i % (K * K), q = i / (K * K) % Q, pixel = i / kWeights;
        int const row = pixel / Tile::kColumns, column = pixel % Tile::kColumns;
        if (column >= at.columns) continue;
        std::int64_t const y = (std::int64_t{at.image} * p.height + at.y + row) * S + q / S;
        std::int64_t const from = (y * p.width + at.x + column) * S + q % S;
        weights[pixel * kWeights + tap * Q + q] =
            to_float(masks[from * p.mask_pitch + at.group * K * K + tap]);
    }
}

/// Bit i: place first + i lies in [0, size). Fewer than `count` do not.
__device__ inline unsigned places_inside(std::int32_t first, int count, std::int32_t size) {
    unsigned const all = (1u << count) - 1;
    return all << max(-first, 0) & all >> max(first + count - size, 0);
}

/// Sums over the taps for R pixels from (y, x) on. `map` points at a lane's first channel,
/// `weights` at the first pixel's; packs are kStride channels apart, and `packs`, at
/// least one, exist.
template <int K, int S, int R, int V, int P, int kStride, typename T>
__device__ void sum_strip(
    CarafeParams const& p, T const* map, int packs, std::int32_t y, std::int32_t x,
    float const* weights, float (&sums)[R][S * S][V]) {
    constexpr int Q = S * S, kWindow = K + R - 1;
    unsigned const columns = places_inside(x - K / 2, kWindow, p.width);
    unsigned rows = places_inside(y - K / 2, K, p.height);
    std::int64_t const pitch = p.feature_pitch, row_pitch = p.width * pitch;
    T const* from = map + (y - K / 2) * row_pitch + (x - K / 2) * pitch;
#pragma unroll 1
    for (int u = 0; u < K; ++u, from += row_pitch, weights += K * Q, rows >>= 1) {
        unsigned const inside = (rows & 1u) != 0 ? columns : 0;
#pragma unroll
        for (int c = 0; c < kWindow; ++c) {
            float values[V];
#pragma unroll
            for (int pack = 0; pack < V / P; ++pack) {
                bool const read = (inside >> c & 1u) != 0 && (pack == 0 || pack < packs);
                load_pack<P>(from + c * pitch + pack * kStride, read, values + pack * P);
            }
#pragma unroll
            for (int r = 0; r < R; ++r) {
                int const v = c - r;
                if (v < 0 || v >= K) continue;
                float tap[Q];
                load_pack<Q>(weights + r * (K * K * Q) + v * Q, true, tap);
#pragma unroll
                for (int q = 0; q < Q; ++q) {
#pragma unroll
                    for (int i = 0; i < V; ++i) sums[r][q][i] += tap[q] * values[i];
                }
            }
        }
    }
}

/// One pack of every output of R pixels, those of `columns` of them. Of a pack's values the first
/// `count` are channels; the rest become zeros.
template <bool kWhole, int S, int P, int R, int V, typename T>
__device__ void store_strip(
    float const (&sums)[R][S * S][V], int first, std::uint32_t count, int columns,
    std::int64_t row_pitch, std::int64_t pitch, T* to) {
#pragma unroll
    for (int dy = 0; dy < S; ++dy, to += row_pitch) {
        T* at = to;
#pragma unroll
        for (int j = 0; j < R * S; ++j, at += pitch) {
            if (j / S >= columns) break;
            float const* const values = sums[j / S][dy * S + j % S] + first;
            if constexpr (kWhole) {
                store_pack<P>(values, at);
            } else {
#pragma unroll
                for (int i = 0; i < P; ++i) {
                    at[i] = from_float<T>(static_cast<unsigned>(i) < count ? values[i] : 0.0f);
                }
            }
        }
    }
}

template <typename T, int K, int S, bool kEncoded, int R, int V>
__global__ void __launch_bounds__(StripsTile::kThreads, StripsTile::kBlocks) carafe_strips(
    StripsWork work, T const* __restrict__ features, T const* __restrict__ masks,
    T* __restrict__ out) {
    using Tile = StripsTile;
    constexpr int Q = S * S, P = kStripsPack<T, V>, kStride = Tile::kLanes * P;
    CarafeParams const& p = work.p;
    float* const weights = shared_memory<float>();  // [row][kColumns][tap][dy][dx]
    std::int64_t const width = std::int64_t{S} * p.width;
    int const lane = threadIdx.x % Tile::kLanes, slots = blockDim.x / Tile::kLanes;

    for (std::int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
        StripsBlock at{};
        std::int64_t rest = block;
        auto const chunk = static_cast<std::int32_t>(rest % work.chunks);
        rest /= work.chunks;
        at.x = static_cast<std::int32_t>(rest % work.tiles_x) * Tile::kColumns;
        rest /= work.tiles_x;
        at.y = static_cast<std::int32_t>(rest % work.tiles_y) * work.rows;
        rest /= work.tiles_y;
        at.group = static_cast<std::int32_t>(rest % p.groups);
        at.image = static_cast<std::int32_t>(rest / p.groups);
        at.columns = min(Tile::kColumns, p.width - at.x);
        at.rows = min(work.rows, p.height - at.y);

        __syncthreads();
        if constexpr (kEncoded) {
            encoded_weights<K, S>(p, at, masks, weights);
        } else {
            plain_weights<K, S>(p, at, masks, weights);
        }
        __syncthreads();

        std::int32_t const channels = p.channels / p.groups;
        // Unsigned: a pitch of almost 2^31 rounded up to a chunk still fits.
        auto const channel = static_cast<std::uint32_t>(at.group * channels) +
                             static_cast<std::uint32_t>(chunk) * (Tile::kLanes * V) +
                             static_cast<unsigned>(lane) * P;
        // The last group also clears what pads the result.
        auto const end = static_cast<std::uint32_t>(
            at.group + 1 < p.groups ? (at.group + 1) * channels : p.out_pitch);
        if (channel >= end) continue;
        auto const limit = static_cast<std::uint32_t>(p.channels);
        int packs = 0;  // that hold features
#pragma unroll
        for (int pack = 0; pack < V / P; ++pack) packs += channel + pack * kStride < limit;

        std::int64_t const image = std::int64_t{at.image} * p.height;
        T const* const map = features + image * p.width * p.feature_pitch + channel;
        int const strips = (at.columns + R - 1) / R;  // of a row
        for (int strip = threadIdx.x / Tile::kLanes; strip < at.rows * strips; strip += slots) {
            int const row = strip / strips, column = strip % strips * R;
            std::int32_t const y = at.y + row, x = at.x + column;
            float sums[R][Q][V] = {};
            if (packs > 0) {
                float const* const taps = weights + (row * Tile::kColumns + column) * K * K * Q;
                sum_strip<K, S, R, V, P, kStride>(p, map, packs, y, x, taps, sums);
            }
            T* const to = out + ((image + y) * S * width + x * S) * p.out_pitch + channel;
#pragma unroll
            for (int pack = 0; pack < V / P; ++pack) {
                std::uint32_t const first = channel + pack * kStride;
                if (first >= end) break;
                std::uint32_t const count = first < limit ? limit - first : 0;
                auto const store = [&](auto whole) {
                    store_strip<whole.value, S, P>(
                        sums, pack * P, count, at.columns - column, width * p.out_pitch,
                        std::int64_t{p.out_pitch}, to + pack * kStride);
                };
                if (count >= P) {
                    store(std::true_type{});
                } else {
                    store(std::false_type{});
                }
            }
        }
    }
}

/// How a call is cut; `rows` of a tile is as large as leaves enough blocks.
template <int V>
StripsWork strips_work(CarafeParams const& p) {
    using Tile = StripsTile;
    StripsWork work{};
    work.p = p;
    std::int64_t const widest = p.channels / p.groups + p.out_pitch - p.channels;
    work.chunks = static_cast<std::int32_t>(blocks_for(widest, Tile::kLanes * V));
    work.tiles_x = static_cast<std::int32_t>(blocks_for(p.width, Tile::kColumns));
    for (work.rows = Tile::kMaxRows;; work.rows /= 2) {
        work.tiles_y = static_cast<std::int32_t>(blocks_for(p.height, work.rows));
        work.blocks = std::int64_t{p.batch} * p.groups * work.chunks * work.tiles_x * work.tiles_y;
        if (work.blocks >= kEnoughBlocks || work.rows == 1) break;
    }
    return work;
}

template <typename T, int K, int S, bool kEncoded, int R, int V>
cudaError_t launch_strips(
    CarafeParams const& p, T const* features, T const* masks, T* out, cudaStream_t stream) {
    using Tile = StripsTile;
    constexpr std::size_t kRowBytes = sizeof(float) * Tile::kColumns * K * K * S * S;
    static_assert(Tile::kMaxRows * kRowBytes <= 48 * 1024);
    StripsWork const work = strips_work<V>(p);
    static_assert(Tile::kColumns % R == 0);
    int const threads = std::min(Tile::kThreads, work.rows * Tile::kColumns / R * Tile::kLanes);
    return launch(
        carafe_strips<T, K, S, kEncoded, R, V>, grid_of(work.blocks),
        dim3(static_cast<unsigned>(threads)), work.rows * kRowBytes, stream, work, features, masks,
        out);
}

}  // namespace carafe
