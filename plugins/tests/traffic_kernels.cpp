#include "traffic_kernels.h"

#include "launch.cuh"

namespace carafe::testing {

namespace {

__global__ void copy_packs_kernel(float4 const* in, float4* out) {
    unsigned const i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i];
}

__global__ void touch_shared_kernel(unsigned stride, unsigned together, float* out) {
    auto* const shared = shared_memory<float>();
    shared[threadIdx.x * stride] = 1.0f;
    __syncwarp();
    out[threadIdx.x] = shared[threadIdx.x / together * together * stride];
}

__device__ __attribute__((noinline)) float read_at(float const* in, unsigned i) {
    return in[i];
}

__global__ void read_again_kernel(float const* in, unsigned stride, float* out) {
    float sum = 0.0f;
    for (unsigned again = 0; again < 2; ++again) sum += in[(threadIdx.x + again) % 32 * stride];
    // One function, two callers: two instructions of the kernel.
    if (threadIdx.x % 2 == 0) {
        sum += read_at(in, threadIdx.x * stride);
    } else {
        sum += read_at(in, threadIdx.x * stride);
    }
    out[threadIdx.x] = sum;
}

}  // namespace

void copy_packs(float const* in, float* out, unsigned threads) {
    launch(
        copy_packs_kernel, dim3(threads / 64), dim3(64), 0, nullptr,
        reinterpret_cast<float4 const*>(in), reinterpret_cast<float4*>(out));
}

void touch_shared(unsigned stride, unsigned together, float* out) {
    launch(
        touch_shared_kernel, dim3(1), dim3(32), 32 * stride * sizeof(float), nullptr, stride,
        together, out);
}

void read_again(float const* in, unsigned stride, float* out) {
    launch(read_again_kernel, dim3(2), dim3(32), 0, nullptr, in, stride, out);
}

}  // namespace carafe::testing
