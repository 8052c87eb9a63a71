// CARAFE on CUDA. Designs; launch_carafe() takes the first of row_pairs, strips_2x8, channels_last
// and any that fits (choose() below), the others run where a measurement asks for them:
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
// The neck's largest call, 256 x 104 x 168 with G = 1, as `make kernel-report` counts it
// (benchmarks/results/kernel_traffic.json and kernel_static.json):
//
//                          MB, L1 from L2     MB    L1     FFMA   registers    warps
//   design         type     features  masks  result cycles  share  75  90 120   on 90  GB/s
//   planes         float32    51.1    28.0    71.6   1.94   70 %  167 168 162   12    not measured
//   row_pairs      float32    51.1    28.0    71.6   1.49   81 %  165 158 168   12    not measured
//   channels_last  float32    38.6    28.0    71.6   1.64   41 %  108 107  96   16    not measured
//   strips_4x4     float32    51.8    28.0    71.6   1.36   78 %  165 167 161   12    not measured
//   strips_2x8     float32    51.8    14.0    71.6   1.15   74 %  166 167 159   12    not measured
//   planes         float16    32.4    21.3    35.8   1.84   69 %  168 168 162   12    not measured
//   row_pairs      float16    32.4    21.3    35.8   1.40   79 %  156 152 160   12    not measured
//   channels_last  float16    19.3     7.3    35.8   0.84   46 %  110  96 104   16    not measured
//   strips_4x4     float16    25.9    14.5    35.8   1.09   72 %  154 168 154   12    not measured
//   strips_2x8     float16    25.9     7.3    35.8   0.78   73 %  148 154 144   12    not measured
//
// Warps are those that a multiprocessor holds (of 64). Megabytes are sectors that an L1 which keeps
// a block's reuse asks of the L2; 96.4 must move in float32, 48.4 in float16. L1 cycles are
// wavefronts of loads and stores, global and shared, over the cycles of the multiply-adds alone
// (128 a cycle): above 1 the L1 is busy longer than they are. The share of FFMA is that of the
// innermost loop on sm_90: 1 / 0.74 = 1.36 cycles of issue for one of arithmetic, and about 1.55
// with weights, addresses and stores. Nothing uses local memory.
//
// So channels_last waits for instructions, 2.4 for an FFMA (and on sm_75 and sm_90 the compiler
// splits its stores into 4 bytes); the strips need half as many. strips_4x4 saves 6 % of them over
// strips_2x8 in float32 and costs the L1 more; if a broadcast LDS.128 takes 4 cycles to return
// rather than the 1 counted here, shared loads are 1.0 against 0.5 cycles: hence strips_2x8, until
// `make gpu-check` says otherwise. channels_last stays for few channels (32 and fewer a group),
// where strips would leave threads idle. Weights are read by a thread an output, which touches 8
// lines a request (masks: 0.25 of the cycles above); staging them by 16-byte copies would take 0.16
// off the L1, which is not the limit, and add 2.5 % of instructions, which are.
//
// For the neck's four calls the multiply-adds take 20 us on an H200, the bytes 30 us in float32 and
// 15 us in float16, so float32 should come near its memory, and half types near 1.55 x 20 us.
// Small maps do not fill a GPU: 13 x 21 is 78 blocks of 64 threads.
//
// Masks of 100 RoIs, one channel, 14 x 14: 8.2 MB move, nearly all weights, in 200 blocks that are
// resident at once; each loads and normalises 100 weights a thread and then sums 25 taps. In HWC8
// (float16, pitch 8) channels_last runs: 6.1 MB, 800 blocks. Either is far below 25 us in bytes.
//
// Tensor cores, not built. A pixel is [4 x 25] x [25 x C]. As D = A B with A = features^T (m16:
// channels, read by ldmatrix.trans from staged pixels, k: 25 taps padded to 32 with a zero pixel)
// and B = weights (n8: 4 outputs, twice: the weights rounded to half, and what the rounding lost),
// mma.m16n8k16 does 4096 multiply-adds for 1600 wanted (39 %) and keeps the weights' float32, as
// the contract asks; weights rounded once would not (2^-12 in float16, 2^-9 in bfloat16). At 1024 a
// cycle that is 4 cycles against 12.5, with about 16 instructions a warp against 70; two
// ldmatrix.x4 are 8 wavefronts, 0.64 of the FFMA's cycles. So half types could drop from issue
// (1.55) to the L1 (about 0.85), close to their 15 us of memory; float32 gains nothing, since TF32
// would need its features split as well (16 cycles). Several pixels in one product would save
// ldmatrix (a window of 40 taps for 4 pixels) but multiplies features by zeros of kernels that do
// not hold them: a NaN would spread. It needs sm_80, and ldmatrix and mma in the emulator: worth it
// once a GPU shows half types above their memory.
//
// Not done either: cp.async (features by shared memory take the L1 as many wavefronts as hits do,
// and 12 loads in flight in each of 12 warps, 73 KB, cover the latency); 16-byte stores of half
// types on planes (four pixels' weights are 200 registers); adding the lateral map (TensorRT adds
// it in the lateral convolution: 285 MB move in float32 whichever of the two kernels adds).
#include <initializer_list>
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

/// The first that fits; strips only where they keep a quarter of their threads busy.
template <typename T>
CarafeDesign choose(
    CarafeParams const& p, void const* features, void const* masks, void const* out) {
    bool const narrow = p.channels / p.groups <= StripsTile::kLanes * 8 / 4;
    for (CarafeDesign const design :
         {CarafeDesign::kRowPairs, CarafeDesign::kStrips2x8, CarafeDesign::kChannelsLast}) {
        if (design == CarafeDesign::kStrips2x8 && narrow) continue;
        if (fits<T>(design, p, features, masks, out)) return design;
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
