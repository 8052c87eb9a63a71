// Conversions of the two half types. They are no inline functions of the headers because half.h and
// numeric.cuh declare some of the same names.
#include "half.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"

float __half2float(__half value) {
    return carafe::to_float(carafe::Half{value.bits});
}

__half __float2half_rn(float value) {
    return {carafe::from_float<carafe::Half>(value).bits};
}

float __bfloat162float(__nv_bfloat16 value) {
    return carafe::to_float(carafe::BFloat16{value.bits});
}

__nv_bfloat16 __float2bfloat16_rn(float value) {
    return {carafe::from_float<carafe::BFloat16>(value).bits};
}
