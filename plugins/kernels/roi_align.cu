// RoIAlign over a pyramid, level assignment included.
//
// One block, or a few when RoIs are few, works on one RoI: no second kernel, no workspace. Threads
// first put the rows and columns that each bin takes from the map into shared memory, with their
// weights, each pixel once however many samples use it; a RoI so large that they do not fit is
// walked by every thread for itself, with the same result. NCHW: a thread makes a bin of four
// channels; the bin's rows are summed first. Channels-last: a thread makes neighbouring channels of
// one bin, 16 bytes where addresses allow, and neighbouring threads the channels of one pixel, so
// that a warp reads whole lines and shares the bin's weights. Sums are those of the CPU twin, to
// the bit.
//
// Versions; a value is one channel of one bin. RoIs are those of `carafe-deploy bench --op
// roi_align`: box head 1,000, 7x7, 8.4 samples a bin; mask head 100, 14x14, 2.9 samples.
//                                            v1: samples one by one    v2 (this file)
//   geometry                                 every thread, a division  once a block, by one thread
//                                            a sample and axis         a bin and axis
//   pixels loaded a value, box / mask head   33.5 / 11.4               12.7 / 6.2
//   instructions of the loops a value, box head (SASS of sm_90)
//     channels-last float32 / float16        212 / 173                 63 / 60
//     NCHW float32 / float16                 695 / 729                 117 / 149
//   loads in flight a thread                 4                         4
//   loaded from L1 and L2, box head float32  1.7 GB                    0.64 GB (halves: 0.32)
//   from and to memory, box head float32     145 MB                    145 MB (halves: 73)
//   registers sm_75, sm_90, sm_120
//     channels-last, 16 bytes                80, 80, 80                71, 64, 72
//     channels-last, single / NCHW           59, 61, 64 / 59, 55, 60   58, 58, 62 / 62, 62, 61
//   threads an SM, channels-last / NCHW      768 / 1,024               768 to 1,024 / 1,024
//   barriers, shared memory                  none                      2, 5.2 KB
// No local memory, no spills in v2 (v1: 16 bytes of stack on sm_90).
//
// Microseconds on an H100 in a CUDA graph (benchmarks/results/h100/peer.json), and torchvision's
// operator, float32, by events (operators_gpu.json beside it):
//                                    NCHW    channels-last    torchvision, NCHW
//   box head, float32 / float16   330 / 234      134 / 100              1,059
//   mask head, float32 / float16    54 / 50        38 / 24                713
// Channels-last waits for its loads (ncu.json beside it; box head, float16): memory 19 %, L1 23 %,
// issue 37 % busy, 38 % of the warps there are. NCHW keeps the L1 61 to 68 % busy.
#include <algorithm>

#include "cuda_kernels.h"
#include "launch.cuh"
#include "numeric.cuh"
#include "roi_align_geometry.h"

namespace carafe {

namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kWarp = 32;
/// Channels that a thread of the NCHW kernel makes together.
constexpr std::uint32_t kPlanes = 4;
/// Of one axis in shared memory. A bin of S gets kMostTaps / S of them: RoIs of up to about 250
/// pixels of their level fit, whatever S is.
constexpr std::int32_t kMostTaps = 256;
/// Most bins along an axis: two axes take one thread each.
constexpr std::int32_t kMostBins = kThreads / 2;

/// All of a kernel's arguments but its element type's: one parameter, which is indexed by level
/// where it lies, while an array of pointers of its own would be copied to each thread's stack.
struct Arguments {
    RoiAlignParams params;
    float const* rois;
    void const* maps[kMaxLevels];
    void* out;
};

/// Of the axes of a RoI and of what is made of them.
enum Axis : std::int32_t { kRows = 0, kColumns = 1 };

/// A RoI on its level. Its axes are an array, so that a thread which takes one of them indexes:
/// nvcc 13.0, up to sm_90, copies a structure from an address that a condition chose as if it were
/// aligned as the first of the two.
struct PlacedRoi {
    RoiAxis axes[2];
    std::int32_t level;
    bool sampled;
};

__device__ PlacedRoi place(float const* corners, RoiAlignParams const& p) {
    float const roi[4] = {corners[0], corners[1], corners[2], corners[3]};
    std::int32_t const level = level_of(roi, p);
    RoiAxis const columns = axis_of(roi[0], roi[2], p.strides[level], p.widths[level], p);
    RoiAxis const rows = axis_of(roi[1], roi[3], p.strides[level], p.heights[level], p);
    return {{rows, columns}, level, has_samples(rows) && has_samples(columns)};
}

/// Shared memory: the RoI, and the taps of all bins, as many for each as fit.
struct SharedRoi {
    PlacedRoi roi;
    Tap taps[2][kMostTaps];  ///< of an Axis
    std::int32_t counts[2][kMostBins];
};

/// Fills `shared`, with `room` taps a bin; false if that is too little for one of them, or the RoI
/// has no samples. All threads of the block call it.
__device__ bool share_taps(
    SharedRoi& shared, float const* corners, RoiAlignParams const& p, std::int32_t room) {
    auto const thread = static_cast<std::int32_t>(threadIdx.x);
    if (thread == 0) shared.roi = place(corners, p);
    __syncthreads();
    bool fits = p.output_size <= kMostBins && shared.roi.sampled;
    if (fits && thread < 2 * p.output_size) {
        std::int32_t const which = thread / p.output_size;
        std::int32_t const bin = thread % p.output_size;
        Tap* const taps = shared.taps[which] + bin * room;
        RoiAxis const axis = shared.roi.axes[which];
        TapWalk walk(axis, bin);
        std::int32_t count = 0;
        for (Tap tap{}; walk.next(tap); ++count) {
            if (count < room) taps[count] = tap;
        }
        shared.counts[which][bin] = count;
        fits = count <= room;
    }
    return __syncthreads_and(static_cast<int>(fits)) != 0;
}

/// Result [B*K, C, S, S]; block (x, y) works on RoI x.
template <typename T>
__global__ void __launch_bounds__(kThreads) roi_align_nchw(Arguments arguments) {
    RoiAlignParams const& p = arguments.params;
    std::int64_t const index = blockIdx.x;
    SharedRoi& shared = *shared_memory<SharedRoi>();
    std::int32_t const room = kMostTaps / p.output_size;
    bool const stored = share_taps(shared, arguments.rois + index * 4, p, room);
    PlacedRoi const& roi = shared.roi;

    auto const size = static_cast<std::uint32_t>(p.output_size);
    std::uint32_t const bins = size * size;
    auto const channels = static_cast<std::uint32_t>(p.channels);
    std::uint32_t const items = (channels + kPlanes - 1) / kPlanes * bins;
    std::int64_t const width = roi.axes[kColumns].side;
    std::int64_t const area = roi.axes[kRows].side * width;
    T const* const image =
        static_cast<T const*>(arguments.maps[roi.level]) + index / p.rois * channels * area;
    T* const out = static_cast<T*>(arguments.out) + index * channels * bins;
    for (std::uint32_t at = blockIdx.y * kThreads + threadIdx.x; at < items;
         at += gridDim.y * kThreads) {
        std::uint32_t const channel = at / bins * kPlanes;
        std::uint32_t const bin = at % bins;
        auto const x = static_cast<std::int32_t>(bin % size);
        auto const y = static_cast<std::int32_t>(bin / size);
        T const* const planes = image + channel * area;
        std::uint32_t const count = channels - channel;
        float sums[kPlanes] = {}, column_sums[kPlanes];
        auto const add_row = [&](Tap const& row, Tap const& column) {
            T const* pixel = planes + (row.at * width + column.at);
#pragma unroll
            for (std::uint32_t n = 0; n < kPlanes; ++n, pixel += area) {
                if (n < count) column_sums[n] += row.weight * to_float(*pixel);
            }
        };
        auto const add_column = [&](Tap const& column) {
#pragma unroll
            for (std::uint32_t n = 0; n < kPlanes; ++n) {
                sums[n] += column.weight * column_sums[n];
                column_sums[n] = 0.0f;
            }
        };
#pragma unroll
        for (std::uint32_t n = 0; n < kPlanes; ++n) column_sums[n] = 0.0f;
        if (stored) {
            Tap const* const rows = shared.taps[kRows] + y * room;
            Tap const* const columns = shared.taps[kColumns] + x * room;
            for (std::int32_t j = 0; j < shared.counts[kColumns][x]; ++j) {
                for (std::int32_t i = 0; i < shared.counts[kRows][y]; ++i) {
                    add_row(rows[i], columns[j]);
                }
                add_column(columns[j]);
            }
        } else if (roi.sampled) {
            TapWalk columns(roi.axes[kColumns], x);
            for (Tap column{}; columns.next(column);) {
                TapWalk rows(roi.axes[kRows], y);
                for (Tap row{}; rows.next(row);) add_row(row, column);
                add_column(column);
            }
        }
#pragma unroll
        for (std::uint32_t n = 0; n < kPlanes; ++n) {
            if (n < count) out[(channel + n) * bins + bin] = from_float<T>(sums[n]);
        }
    }
}

/// Result [B*K, S, S, out_pitch]; block (x, y) works on RoI x, N channels a thread, `lanes`
/// neighbouring threads on a bin.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    roi_align_nhwc(Arguments arguments, std::uint32_t lanes) {
    RoiAlignParams const& p = arguments.params;
    std::int64_t const index = blockIdx.x;
    SharedRoi& shared = *shared_memory<SharedRoi>();
    std::int32_t const room = kMostTaps / p.output_size;
    bool const stored = share_taps(shared, arguments.rois + index * 4, p, room);
    PlacedRoi const& roi = shared.roi;

    auto const size = static_cast<std::uint32_t>(p.output_size);
    std::uint32_t const bins = size * size;
    auto const packs = static_cast<std::uint32_t>(p.out_pitch) / N;
    std::int64_t const pitch = p.feature_pitch;
    std::int64_t const row_pitch = roi.axes[kColumns].side * pitch;
    T const* const image = static_cast<T const*>(arguments.maps[roi.level]) +
                           index / p.rois * roi.axes[kRows].side * row_pitch;
    std::uint32_t const groups = kThreads / lanes;
    for (std::uint32_t bin = blockIdx.y * groups + threadIdx.x / lanes; bin < bins;
         bin += gridDim.y * groups) {
        auto const x = static_cast<std::int32_t>(bin % size);
        auto const y = static_cast<std::int32_t>(bin / size);
        for (std::uint32_t at = threadIdx.x % lanes; at < packs; at += lanes) {
            auto const channel = static_cast<std::int32_t>(at * N);
            float sums[N] = {};
            auto const add = [&](Tap const& row, Tap const& column) {
                using Values = Pack<T, N>;
                Values const values = *reinterpret_cast<Values const*>(
                    image + row.at * row_pitch + column.at * pitch + channel);
                float const weight = row.weight * column.weight;
#pragma unroll
                for (int n = 0; n < N; ++n) sums[n] += weight * to_float(values.values[n]);
            };
            if (channel >= p.channels || !roi.sampled) {
                // Features beyond the last channel are padding of any content.
            } else if (stored) {
                Tap const* const rows = shared.taps[kRows] + y * room;
                Tap const* const columns = shared.taps[kColumns] + x * room;
                for (std::int32_t i = 0; i < shared.counts[kRows][y]; ++i) {
#pragma unroll(N == 1 ? 2 : 4)
                    for (std::int32_t j = 0; j < shared.counts[kColumns][x]; ++j) {
                        add(rows[i], columns[j]);
                    }
                }
            } else {
                TapWalk rows(roi.axes[kRows], y);
                for (Tap row{}; rows.next(row);) {
                    TapWalk columns(roi.axes[kColumns], x);
                    for (Tap column{}; columns.next(column);) add(row, column);
                }
            }
            Pack<T, N> pack;
#pragma unroll
            for (int n = 0; n < N; ++n) {
                pack.values[n] = from_float<T>(channel + n < p.channels ? sums[n] : 0.0f);
            }
            T* const to =
                static_cast<T*>(arguments.out) + ((index * bins + bin) * p.out_pitch + channel);
            *reinterpret_cast<Pack<T, N>*>(to) = pack;
        }
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
    std::int64_t const rois = std::int64_t{p.batch} * p.rois;
    std::int64_t const bins = std::int64_t{p.output_size} * p.output_size;
    bool const nhwc = p.layout == Layout::kNHWC;
    bool const packed = nhwc && pixels_aligned(arguments);
    std::int64_t const depth = packed ? p.out_pitch / kPack
                               : nhwc ? p.out_pitch
                                      : blocks_for(p.channels, kPlanes);
    if (rois == 0 || depth == 0) return cudaSuccess;
    std::uint32_t lanes = 1;
    while (lanes < kWarp && lanes < depth) lanes *= 2;
    // Blocks share out a RoI when there are few; more only derive its geometry more often.
    std::int64_t const useful = blocks_for(nhwc ? bins * lanes : bins * depth, kThreads);
    std::int64_t const wanted = std::min(useful, blocks_for(kEnoughBlocks, rois));
    dim3 const grid(
        static_cast<std::uint32_t>(rois),
        static_cast<std::uint32_t>(std::min(wanted, kMostBlocksY)));
    std::size_t const bytes = sizeof(SharedRoi);
    if (!nhwc) return launch(roi_align_nchw<T>, grid, dim3(kThreads), bytes, stream, arguments);
    auto* const kernel = packed ? roi_align_nhwc<T, kPack> : roi_align_nhwc<T, 1>;
    return launch(kernel, grid, dim3(kThreads), bytes, stream, arguments, lanes);
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
