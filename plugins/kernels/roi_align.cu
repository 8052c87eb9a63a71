// RoIAlign over a pyramid, level assignment included.
//
// A row of blocks works on one RoI, whose geometry every thread derives from its four coordinates:
// no second kernel, no workspace. NCHW: a thread makes one value. Channels-last: a thread makes
// neighbouring channels of one bin, 16 bytes where addresses allow, so that a warp reads whole
// lines of a pixel. Samples are summed one by one in float.
//
// Registers (CUDA 13.0, sm_75 / sm_120): NCHW 59 / 60, channels-last 59 / 64, with 16 bytes 80 /
// 80; no spills. Speed: not measured yet.
#include "cuda_kernels.h"
#include "launch.cuh"
#include "numeric.cuh"
#include "roi_align_geometry.h"

namespace carafe {

namespace {

constexpr std::uint32_t kThreads = 256;

/// All of a kernel's arguments but its element type's: one parameter, which is indexed by level
/// where it lies, while an array of pointers of its own would be copied to each thread's stack.
struct Arguments {
    RoiAlignParams params;
    float const* rois;
    void const* maps[kMaxLevels];
    void* out;
};

/// A RoI on its level.
struct PlacedRoi {
    RoiAxis rows, columns;
    std::int32_t level;
    bool sampled;
};

__device__ PlacedRoi place(float const* corners, RoiAlignParams const& p) {
    float const roi[4] = {corners[0], corners[1], corners[2], corners[3]};
    std::int32_t const level = level_of(roi, p);
    RoiAxis const columns = axis_of(roi[0], roi[2], p.strides[level], p.widths[level], p);
    RoiAxis const rows = axis_of(roi[1], roi[3], p.strides[level], p.heights[level], p);
    return {rows, columns, level, has_samples(rows) && has_samples(columns)};
}

/// Mean over a bin's samples of N values each; `map` points to the first at pixel (0, 0), and
/// `pixel_pitch` elements lie between pixels.
template <typename T, int N>
__device__ void mean_of_bin(
    PlacedRoi const& roi, std::int32_t y, std::int32_t x, T const* map, std::int64_t pixel_pitch,
    float (&sums)[N]) {
    SampleRange const rows = samples_of(roi.rows, y);
    SampleRange const columns = samples_of(roi.columns, x);
    std::int64_t const row_pitch = roi.columns.side * pixel_pitch;
    for (std::int32_t i = rows.first; i < rows.last; ++i) {
        Sample const row = sample_at(roi.rows, y, i);
        if (!row.inside) continue;
        T const* const top = map + row.low * row_pitch;
        T const* const bottom = map + row.high * row_pitch;
        for (std::int32_t j = columns.first; j < columns.last; ++j) {
            Sample const column = sample_at(roi.columns, x, j);
            if (!column.inside) continue;
            std::int64_t const left = column.low * pixel_pitch;
            std::int64_t const right = column.high * pixel_pitch;
            using Values = Pack<T, N>;
            Values const a = *reinterpret_cast<Values const*>(top + left);
            Values const b = *reinterpret_cast<Values const*>(top + right);
            Values const c = *reinterpret_cast<Values const*>(bottom + left);
            Values const d = *reinterpret_cast<Values const*>(bottom + right);
            float const up = 1.0f - row.share;
            float const near = 1.0f - column.share;
            for (int n = 0; n < N; ++n) {
                sums[n] += up * near * to_float(a.values[n]) +
                           up * column.share * to_float(b.values[n]) +
                           row.share * near * to_float(c.values[n]) +
                           row.share * column.share * to_float(d.values[n]);
            }
        }
    }
    float const count = roi.rows.samples * roi.columns.samples;
    for (int n = 0; n < N; ++n) sums[n] /= count;
}

/// Result [B*K, C, S, S]; block (x, y) works on RoI x.
template <typename T>
__global__ void __launch_bounds__(kThreads) roi_align_nchw(Arguments arguments) {
    RoiAlignParams const& p = arguments.params;
    std::int64_t const index = blockIdx.x;
    PlacedRoi const roi = place(arguments.rois + index * 4, p);
    auto const size = static_cast<std::uint32_t>(p.output_size);
    auto const values = static_cast<std::uint32_t>(p.channels) * size * size;
    std::int64_t const area = std::int64_t{roi.rows.side} * roi.columns.side;
    T const* const image =
        static_cast<T const*>(arguments.maps[roi.level]) + index / p.rois * p.channels * area;
    T* const out = static_cast<T*>(arguments.out) + index * values;
    for (std::uint32_t at = blockIdx.y * kThreads + threadIdx.x; at < values;
         at += gridDim.y * kThreads) {
        float sums[1] = {0.0f};
        if (roi.sampled) {
            auto const x = static_cast<std::int32_t>(at % size);
            auto const y = static_cast<std::int32_t>(at / size % size);
            mean_of_bin(roi, y, x, image + at / (size * size) * area, 1, sums);
        }
        out[at] = from_float<T>(sums[0]);
    }
}

/// Result [B*K, S, S, out_pitch]; block (x, y) works on RoI x, N channels a thread.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) roi_align_nhwc(Arguments arguments) {
    RoiAlignParams const& p = arguments.params;
    std::int64_t const index = blockIdx.x;
    PlacedRoi const roi = place(arguments.rois + index * 4, p);
    auto const size = static_cast<std::uint32_t>(p.output_size);
    auto const packs = static_cast<std::uint32_t>(p.out_pitch) / N;
    std::uint32_t const items = size * size * packs;
    std::int64_t const area = std::int64_t{roi.rows.side} * roi.columns.side;
    T const* const image =
        static_cast<T const*>(arguments.maps[roi.level]) + index / p.rois * area * p.feature_pitch;
    T* const out = static_cast<T*>(arguments.out) + index * items * N;
    for (std::uint32_t at = blockIdx.y * kThreads + threadIdx.x; at < items;
         at += gridDim.y * kThreads) {
        auto const channel = static_cast<std::int32_t>(at % packs * N);
        float sums[N] = {};
        if (roi.sampled && channel < p.channels) {
            auto const x = static_cast<std::int32_t>(at / packs % size);
            auto const y = static_cast<std::int32_t>(at / packs / size);
            mean_of_bin(roi, y, x, image + channel, p.feature_pitch, sums);
        }
        Pack<T, N> pack;
        for (int n = 0; n < N; ++n) {
            // Features beyond the last channel are padding of any content.
            pack.values[n] = from_float<T>(channel + n < p.channels ? sums[n] : 0.0f);
        }
        *reinterpret_cast<Pack<T, N>*>(out + std::int64_t{at} * N) = pack;
    }
}

bool is_aligned(void const* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

/// Whether all pixels of all maps and of the result start at multiples of 16 bytes.
bool pixels_aligned(Arguments const& arguments) {
    RoiAlignParams const& p = arguments.params;
    std::size_t const size = size_of(p.dtype);
    bool aligned = is_aligned(arguments.out) && p.out_pitch * size % 16 == 0 &&
                   p.feature_pitch * size % 16 == 0;
    for (std::int32_t level = 0; level < p.levels; ++level) {
        aligned = aligned && is_aligned(arguments.maps[level]);
    }
    return aligned;
}

template <typename T>
cudaError_t enqueue(Arguments const& arguments, cudaStream_t stream) {
    constexpr int kPack = 16 / sizeof(T);
    RoiAlignParams const& p = arguments.params;
    std::int64_t depth = p.channels;
    auto* kernel = roi_align_nchw<T>;
    if (p.layout == Layout::kNHWC) {
        bool const packed = pixels_aligned(arguments);
        depth = packed ? p.out_pitch / kPack : p.out_pitch;
        kernel = packed ? roi_align_nhwc<T, kPack> : roi_align_nhwc<T, 1>;
    }
    std::int64_t const blocks = blocks_for(depth * p.output_size * p.output_size, kThreads);
    dim3 const grid(
        static_cast<std::uint32_t>(p.batch) * static_cast<std::uint32_t>(p.rois),
        static_cast<std::uint32_t>(blocks < kMostBlocksY ? blocks : kMostBlocksY));
    if (grid.x == 0 || grid.y == 0) return cudaSuccess;
    return launch(kernel, grid, dim3(kThreads), std::size_t{0}, stream, arguments);
}

}  // namespace

cudaError_t launch_roi_align(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    cudaStream_t stream) {
    Arguments arguments{p, rois, {}, out};
    for (std::int32_t level = 0; level < p.levels; ++level) arguments.maps[level] = features[level];
    switch (p.dtype) {
        case DType::kFloat32:
            return enqueue<float>(arguments, stream);
        case DType::kFloat16:
            return enqueue<__half>(arguments, stream);
        case DType::kBFloat16:
            return enqueue<__nv_bfloat16>(arguments, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace carafe
