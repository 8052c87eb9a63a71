// Preprocessing on CUDA: one kernel an image.
//
// A block takes 32 x 32 pixels of the result. Where their rows and columns fall in the source takes
// double precision, so it is found once, by 64 of the threads; all else is integers and a look-up.
// Threads of a warp take pixels next to each other: reads of the source and writes of each plane
// are of whole lines. Not measured yet. An image of 800x1216 from 480x640: 0.9 MB read, 11.7 MB
// written in float32.
#include <algorithm>
#include <type_traits>

#include "cuda_kernels.h"
#include "launch.cuh"
#include "numeric.cuh"
#include "preprocess_geometry.h"

namespace carafe {

namespace {

constexpr std::int32_t kTile = 32;
constexpr std::int32_t kThreads = 256;

/// Shared memory of a block.
struct Taps {
    Tap rows[kTile], columns[kTile];
};

struct Raw {
    using Element = std::uint8_t;

    __device__ std::uint8_t operator()(int, std::uint8_t byte) const { return byte; }
};

template <typename T>
struct Normalised {
    using Element = T;

    __device__ T operator()(int channel, std::uint8_t byte) const {
        return from_float<T>(table[256 * channel + byte]);
    }

    float const* table;
};

/// What is the same for all blocks.
struct Plan {
    double row_scale, column_scale;
    std::int64_t across, tiles;  ///< tiles side by side, and of the whole result
};

template <typename Convert>
__global__ void __launch_bounds__(kThreads) preprocess(
    PreprocessParams p, Plan plan, std::uint8_t const* source, Convert convert, void* out) {
    using T = typename Convert::Element;
    Taps& taps = *shared_memory<Taps>();
    auto const thread = static_cast<std::int32_t>(threadIdx.x);
    for (std::int64_t tile = blockIdx.x; tile < plan.tiles; tile += gridDim.x) {
        auto const top = static_cast<std::int32_t>(tile / plan.across * kTile);
        auto const left = static_cast<std::int32_t>(tile % plan.across * kTile);
        if (thread < kTile) {
            std::int32_t const row = top + thread;
            if (row < p.height)
                taps.rows[thread] = tap_of<false>(row, plan.row_scale, p.source_height);
        } else if (thread < 2 * kTile) {
            std::int32_t const at = thread - kTile;
            if (left + at < p.width) {
                taps.columns[at] = tap_of<true>(left + at, plan.column_scale, p.source_width);
            }
        }
        __syncthreads();
        std::int32_t const column = left + thread % kTile;
        for (std::int32_t at = thread / kTile; at < kTile; at += kThreads / kTile) {
            std::int32_t const row = top + at;
            if (row >= p.padded_height || column >= p.padded_width) continue;
            T values[3] = {};
            if (row < p.height && column < p.width) {
                Tap const row_tap = taps.rows[at], column_tap = taps.columns[column - left];
                std::uint8_t const* const upper = row_of(p, source, row_tap.first);
                std::uint8_t const* const lower = row_of(p, source, row_tap.second);
#pragma unroll
                for (int channel = 0; channel < 3; ++channel) {
                    int const from = p.reversed != 0 ? 2 - channel : channel;
                    values[channel] =
                        convert(channel, resized(upper + from, lower + from, row_tap, column_tap));
                }
            }
            Place const place = place_of(p, row, column);
            T* const to = static_cast<T*>(out) + place.first;
#pragma unroll
            for (int channel = 0; channel < 3; ++channel)
                to[channel * place.step] = values[channel];
        }
        __syncthreads();
    }
}

}  // namespace

cudaError_t launch_preprocess(
    PreprocessParams const& p, std::uint8_t const* source, float const* table, void* out,
    cudaStream_t stream) {
    std::int64_t const across = blocks_for(p.padded_width, kTile);
    Plan const plan{
        scale_of(p.source_height, p.height), scale_of(p.source_width, p.width), across,
        across * blocks_for(p.padded_height, kTile)};
    dim3 const grid(static_cast<unsigned>(std::min(plan.tiles, kMostBlocksX)));
    auto const run = [&](auto const& convert) {
        return launch(
            &preprocess<std::decay_t<decltype(convert)>>, grid, dim3(kThreads), sizeof(Taps),
            stream, p, plan, source, convert, out);
    };
    if (p.raw != 0) return run(Raw{});
    switch (p.dtype) {
        case DType::kFloat32:
            return run(Normalised<float>{table});
        case DType::kFloat16:
            return run(Normalised<__half>{table});
        case DType::kBFloat16:
            return run(Normalised<__nv_bfloat16>{table});
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace carafe
