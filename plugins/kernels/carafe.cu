// CARAFE on CUDA. Designs; launch_carafe() takes the one that an H100 showed to be the fastest for
// such a call (kPreferences below), the others run where a measurement asks for them:
//
//   any            every k, s, layout, pitch and alignment; each thread reads what it needs
//   planes         NCHW 1: a pixel a thread, weights in registers, features staged in shared memory
//   row_pairs      NCHW 2: two pixels and one row of their outputs a thread. Same weights in
//                  registers, but 15 8-byte loads in place of 25 4-byte ones for 100 multiply-adds,
//                  and 16-byte stores (8 for half types). Also one channel of any layout
//   channels_last  NHWC 1: a pixel and 16 bytes of channels a thread, weights in shared memory
//   strips_4x4     NHWC 2: 4 pixels x 4 channels: a pixel of features serves up to 4 kernels
//   strips_2x8     NHWC 3: 2 pixels x 8 channels: a load of weights serves 8 channels, too
//
// All but `any` are for k = 5 and s = 2, read the encoder's raw output (pixel shuffle and softmax
// cost no pass of their own) and compute the four outputs of a pixel together (row_pairs: two).
//
// The neck's largest call, 256 x 104 x 168 with G = 1: what `make kernel-report` counts
// (benchmarks/results/kernel_traffic.json and kernel_static.json), and what an H100 took, caches
// cold (benchmarks/results/h100/designs.json):
//
//                          MB, L1 from L2     MB    L1     FFMA   registers    warps     H100
//   design         type     features  masks  result cycles  share  75  90 120   on 90     us   GB/s
//   planes         float32    51.1    28.0    71.6   1.94   70 %  167 168 162   12    114.0    846
//   row_pairs      float32    51.1    28.0    71.6   1.49   81 %  165 158 168   12    145.5    663
//   channels_last  float32    38.6    28.0    71.6   1.64   41 %  108 107  96   16     96.6    999
//   strips_4x4     float32    51.8    28.0    71.6   1.36   78 %  165 167 161   12     55.7   1730
//   strips_2x8     float32    51.8    14.0    71.6   1.15   74 %  166 167 159   12     48.5   1987
//   planes         float16    32.4    21.3    35.8   1.84   69 %  168 168 162   12    106.8    451
//   row_pairs      float16    32.4    21.3    35.8   1.40   79 %  156 152 160   12    129.2    373
//   channels_last  float16    19.3     7.3    35.8   0.84   46 %  110  96 104   16     91.5    529
//   strips_4x4     float16    25.9    14.5    35.8   1.09   72 %  154 168 154   12     50.5    958
//   strips_2x8     float16    25.9     7.3    35.8   0.78   73 %  148 154 144   12     43.8   1105
//
// Warps are those that a multiprocessor holds (of 64). Megabytes are sectors that an L1 which keeps
// a block's reuse asks of the L2; 96.4 must move in float32, 48.4 in float16. L1 cycles are
// wavefronts of loads and stores, global and shared, over the cycles of the multiply-adds alone
// (128 a cycle): above 1 the L1 is busy longer than they are. The share of FFMA is that of the
// innermost loop on sm_90: 1 / 0.74 = 1.36 cycles of issue for one of arithmetic, and about 1.55
// with weights, addresses and stores. Nothing uses local memory.
//
// What the H100 says (benchmarks/results/h100/ncu.json, Nsight Compute; a copy moves 2,960 GB/s):
// nothing is at a limit. strips_2x8 keeps the memory 43 % busy in float32 and 16 % in float16, and
// issues in 54 and 56 % of the cycles: its registers leave 12 warps a multiprocessor, of which 1.2
// a scheduler are ready. row_pairs issues in 22 and 25 % of them, with 15 and 6 % of the memory and
// 0.3 ready warps: it waits for its loads. So the counts above tell what moves, not what is fast:
// L1 cycles and the FFMA's share rank row_pairs before planes, which is the faster on wide maps,
// and had promised half types 31 us where strips_2x8 takes 43.8. More warps, or more loads in
// flight in each, is what to try next.
//
// Small maps do not fill a GPU: 13 x 21 is 78 blocks of 64 threads, and about 6 us in a CUDA graph
// whatever the type (benchmarks/results/h100/peer.json). Masks of 100 RoIs, one channel, 14 x 14,
// are 8.2 MB in float32, nearly all weights: 10.9 us as NCHW, where a copy of them takes 2.8. In
// HWC8 (float16, pitch 8) strips_4x4 takes 22.9 us, channels_last 33.7.
//
// Tensor cores, not built. A pixel is [4 x 25] x [25 x C]. As D = A B with A = features^T (m16:
// channels, read by ldmatrix.trans from staged pixels, k: 25 taps padded to 32 with a zero pixel)
// and B = weights (n8: 4 outputs, twice: the weights rounded to half, and what the rounding lost),
// mma.m16n8k16 does 4096 multiply-adds for 1600 wanted (39 %) and keeps the weights' float32, as
// the contract asks; weights rounded once would not (2^-12 in float16, 2^-9 in bfloat16). Several
// pixels in one product would save ldmatrix (a window of 40 taps for 4 pixels) but multiplies
// features by zeros of kernels that do not hold them: a NaN would spread. It needs sm_80, and
// ldmatrix and mma in the emulator. In a CUDA graph half types take 41.7 us, 2.1 times what their
// bytes need (peer.json), so there is something to gain; float32, 1.2 times, would need its
// features split.
//
// Not done either: cp.async; 16-byte stores of half types on planes (four pixels' weights are 200
// registers); adding the lateral map (TensorRT adds it in the lateral convolution: 285 MB move in
// float32 whichever of the two kernels adds).
#include <limits>
#include <type_traits>

#include "carafe_designs.h"
#include "carafe_grid.h"
#include "carafe_strides.h"

#include "carafe_any.cuh"
#include "carafe_channels_last.cuh"
#include "carafe_planes.cuh"
#include "carafe_row_pairs.cuh"
#include "carafe_strips.cuh"

namespace carafe {
namespace {

/// With pitches filled in.
CarafeParams complete(CarafeParams const& params) {
    CarafeParams p = params;
    if (p.feature_pitch == 0) p.feature_pitch = p.channels;
    if (p.mask_pitch == 0) p.mask_pitch = static_cast<std::int32_t>(mask_channels(p));
    if (p.out_pitch == 0) p.out_pitch = p.channels;
    return p;
}

template <typename T>
bool fits(
    CarafeDesign design, CarafeParams const& p, void const* features, void const* masks,
    void const* out) {
    if (design == CarafeDesign::kAny) return true;
    if (p.kernel_size != 5 || p.scale != 2) return false;
    bool const channels_last = p.layout == Layout::kNHWC;
    switch (design) {
        case CarafeDesign::kPlanes:
            return !channels_last && planes_fit<T, 2>(p, masks, out);
        case CarafeDesign::kRowPairs:
            return row_pairs_fit<T, 2>(p, out);
        case CarafeDesign::kChannelsLast:
            return channels_last && packs_fit<T, 16 / sizeof(T)>(p, features, out);
        case CarafeDesign::kStrips4x4:
            return channels_last && packs_fit<T, kStripsPack<T, 4>>(p, features, out);
        case CarafeDesign::kStrips2x8:
            return channels_last && packs_fit<T, kStripsPack<T, 8>>(p, features, out);
        default:
            return false;
    }
}

// Which design a call takes: the fastest of those that an H100 measured with k = 5, s = 2, G = 1
// and the encoder's raw output (benchmarks/results/h100/designs.json; microseconds a call, caches
// cold; half types in HWC8, so one channel has a pitch of 8):
//
//                           NHWC                                       NCHW
//                                channels strips strips    row                     row
//   map              type     any    last    4x4    2x8  pairs     any  planes   pairs
//   256 x 13 x 21    float32  19.9    9.0    8.4    8.5      -    20.3    10.8    11.1
//                    float16  23.6   12.4    8.6    8.6      -    21.7    10.7    10.6
//   256 x 26 x 42    float32  44.5   18.5    9.9   10.1      -    45.9    19.6    17.1
//                    float16  48.9   20.1    9.8    9.8      -    47.8    19.5    15.6
//   256 x 52 x 84    float32 150.9   34.1   20.5   20.7      -   152.6    38.6    41.2
//                    float16 164.2   35.2   18.4   18.2      -   158.6    36.8    37.7
//   256 x 104 x 168  float32 572.1   96.6   55.7   48.5      -   574.8   114.0   145.5
//                    float16 624.1   91.5   50.5   43.8      -   600.8   106.8   129.2
//   100 of 14 x 14,  float32  30.3       -      -      -   11.8    29.1    11.9    10.9
//     one channel    float16  29.8   33.7   22.9   31.6      -    28.7    11.0     9.7
//
// bfloat16 chooses as float16. Bounds lie half-way, by ratio, between the maps that differ. Not
// measured: 2 to 32 channels, where channels_last stays because strips leave most threads idle, and
// more than one image of 256 channels. `make gpu-check` prints where this table and a GPU disagree.

/// A class of calls and the design for it.
struct Preference {
    CarafeDesign design;
    Layout layout;
    std::int32_t least_channels, most_channels;  ///< of a group
    std::int64_t least_map;                      ///< source pixels of one map
    std::int64_t most_call;                      ///< source pixels of all maps
    bool single;                                 ///< float32 alone
};

constexpr std::int32_t kAnyNumber = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kAnySize = std::numeric_limits<std::int64_t>::max();

/// The first whose class a call is in and whose design fits it; `any` otherwise.
constexpr Preference kPreferences[] = {
    {CarafeDesign::kRowPairs, Layout::kNHWC, 1, 1, 0, kAnySize, false},
    {CarafeDesign::kStrips4x4, Layout::kNHWC, 1, 1, 0, kAnySize, false},
    {CarafeDesign::kStrips4x4, Layout::kNHWC, 33, kAnyNumber, 0, 8192, true},
    {CarafeDesign::kStrips2x8, Layout::kNHWC, 33, kAnyNumber, 0, kAnySize, false},
    {CarafeDesign::kStrips4x4, Layout::kNHWC, 33, kAnyNumber, 0, kAnySize, false},
    {CarafeDesign::kChannelsLast, Layout::kNHWC, 2, 32, 0, kAnySize, false},
    {CarafeDesign::kPlanes, Layout::kNCHW, 2, kAnyNumber, 2048, kAnySize, false},
    {CarafeDesign::kPlanes, Layout::kNCHW, 2, kAnyNumber, 0, 512, true},
    {CarafeDesign::kRowPairs, Layout::kNCHW, 1, kAnyNumber, 0, kAnySize, false},
};

template <typename T>
CarafeDesign choose(
    CarafeParams const& p, void const* features, void const* masks, void const* out) {
    std::int32_t const channels = p.channels / p.groups;
    std::int64_t const map = std::int64_t{p.height} * p.width;
    for (Preference const& row : kPreferences) {
        bool const meant = row.layout == p.layout && channels >= row.least_channels &&
                           channels <= row.most_channels && map >= row.least_map &&
                           p.batch * map <= row.most_call &&
                           (!row.single || std::is_same_v<T, float>);
        if (meant && fits<T>(row.design, p, features, masks, out)) return row.design;
    }
    return CarafeDesign::kAny;
}

template <typename T, bool kEncoded>
cudaError_t run(
    CarafeDesign design, CarafeParams const& p, T const* features, T const* masks, T* out,
    cudaStream_t stream) {
    switch (design) {
        case CarafeDesign::kAny:
            return launch_any<T>(p, features, masks, out, stream);
        case CarafeDesign::kPlanes:
            return launch_planes<T, 5, 2, kEncoded>(p, features, masks, out, stream);
        case CarafeDesign::kRowPairs:
            return launch_row_pairs<T, 5, 2, kEncoded>(p, features, masks, out, stream);
        case CarafeDesign::kChannelsLast:
            return launch_channels_last<T, 5, 2, kEncoded>(p, features, masks, out, stream);
        case CarafeDesign::kStrips4x4:
            return launch_strips<T, 5, 2, kEncoded, 4, 4>(p, features, masks, out, stream);
        case CarafeDesign::kStrips2x8:
            return launch_strips<T, 5, 2, kEncoded, 2, 8>(p, features, masks, out, stream);
    }
    return cudaErrorInvalidValue;
}

/// Calls `function` with a null pointer to the element type; `otherwise` for types without kernels.
template <typename Function, typename Result>
Result with_type(DType dtype, Result otherwise, Function const& function) {
    switch (dtype) {
        case DType::kFloat32:
            return function(static_cast<float*>(nullptr));
        case DType::kFloat16:
            return function(static_cast<__half*>(nullptr));
        case DType::kBFloat16:
            return function(static_cast<__nv_bfloat16*>(nullptr));
        default:
            return otherwise;
    }
}

}  // namespace

bool carafe_design_fits(
    CarafeDesign design, CarafeParams const& params, void const* features, void const* masks,
    void const* out) {
    return with_type(params.dtype, false, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return fits<T>(design, complete(params), features, masks, out);
    });
}

CarafeDesign carafe_design(
    CarafeParams const& params, void const* features, void const* masks, void const* out) {
    return with_type(params.dtype, CarafeDesign::kAny, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return choose<T>(complete(params), features, masks, out);
    });
}

cudaError_t launch_carafe_as(
    CarafeDesign design, CarafeParams const& params, void const* features, void const* masks,
    void* out, cudaStream_t stream) {
    CarafeParams const p = complete(params);
    std::int32_t const written = p.layout == Layout::kNHWC ? p.out_pitch : p.channels;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || written == 0) return cudaSuccess;
    return with_type(p.dtype, cudaErrorInvalidValue, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (!fits<T>(design, p, features, masks, out)) return cudaErrorInvalidValue;
        bool const encoded = p.source == MaskSource::kEncoded;
        auto* const function = encoded ? run<T, true> : run<T, false>;
        return function(
            design, p, static_cast<T const*>(features), static_cast<T const*>(masks),
            static_cast<T*>(out), stream);
    });
}

cudaError_t launch_carafe(
    CarafeParams const& params, void const* features, void const* masks, void* out,
    cudaStream_t stream) {
    CarafeDesign const design = carafe_design(params, features, masks, out);
    return launch_carafe_as(design, params, features, masks, out, stream);
}

}  // namespace carafe
