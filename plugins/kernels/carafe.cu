// CARAFE on CUDA. Designs, the first that fits a call runs:
//
//   channels_last  k = 5, s = 2; weights in shared memory, taps by 16-byte loads
//   planes         k = 5, s = 2; NCHW, weights in registers, features staged in shared memory
//   any            every k, s, layout, pitch and alignment; each thread reads what it needs
//
// Traffic beyond the caches' own reuse, for chunks of c channels and one group of C:
//
//   design         features          weights   result   shared memory   registers sm_75 / sm_90
//   channels_last  2.25 x            C / c x   once     25 KB           98-112 / 94-107
//   planes         1.9 x             C / c x   once     9 KB            167-168 / 168
//   any            k^2 x             C / 8 x   once     none            78-80 / 92-94
//
// The features' factor is a tile with its border over the tile; c is at most 64 in planes, 64 in
// channels_last for float32 and 128 for half types, less on small maps. `any` counts a read for
// every output. Registers are those of float32, float16 and bfloat16; nothing spills. Speed: not
// measured yet.
#include "carafe_grid.h"
#include "carafe_strides.h"
#include "cuda_kernels.h"

#include "carafe_any.cuh"
#include "carafe_channels_last.cuh"
#include "carafe_planes.cuh"

namespace carafe {
namespace {

template <typename T>
cudaError_t launch_typed(
    CarafeParams const& p, void const* features_data, void const* masks_data, void* out_data,
    cudaStream_t stream) {
    auto const* const features = static_cast<T const*>(features_data);
    auto const* const masks = static_cast<T const*>(masks_data);
    auto* const out = static_cast<T*>(out_data);
    bool const encoded = p.source == MaskSource::kEncoded;
    bool const usual = p.kernel_size == 5 && p.scale == 2;
    if (usual && p.layout == Layout::kNHWC && channels_last_fit<T>(p, features, out)) {
        auto* const run =
            encoded ? launch_channels_last<T, 5, 2, true> : launch_channels_last<T, 5, 2, false>;
        return run(p, features, masks, out, stream);
    }
    if (usual && p.layout == Layout::kNCHW && planes_fit<T, 2>(p, masks, out)) {
        auto* const run = encoded ? launch_planes<T, 5, 2, true> : launch_planes<T, 5, 2, false>;
        return run(p, features, masks, out, stream);
    }
    return launch_any<T>(p, features, masks, out, stream);
}

}  // namespace

cudaError_t launch_carafe(
    CarafeParams const& params, void const* features, void const* masks, void* out,
    cudaStream_t stream) {
    CarafeParams p = params;
    if (p.feature_pitch == 0) p.feature_pitch = p.channels;
    if (p.mask_pitch == 0) p.mask_pitch = static_cast<std::int32_t>(mask_channels(p));
    if (p.out_pitch == 0) p.out_pitch = p.channels;
    std::int32_t const written = p.layout == Layout::kNHWC ? p.out_pitch : p.channels;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || written == 0) return cudaSuccess;
    switch (p.dtype) {
        case DType::kFloat32:
            return launch_typed<float>(p, features, masks, out, stream);
        case DType::kFloat16:
            return launch_typed<__half>(p, features, masks, out, stream);
        case DType::kBFloat16:
            return launch_typed<__nv_bfloat16>(p, features, masks, out, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace carafe
