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
