// Kernels whose traffic is known, compiled like those that carafe_traffic counts.
#pragma once

namespace carafe::testing {

/// `threads` threads in blocks of 64 copy a float4 each.
void copy_packs(float const* in, float* out, unsigned threads);

/// A warp: lane i stores word i * stride of shared memory and loads word i * stride / together.
void touch_shared(unsigned stride, unsigned together, float* out);

/// Two blocks of a warp read the same 32 floats, `stride` apart: a lane three of them.
void read_again(float const* in, unsigned stride, float* out);

}  // namespace carafe::testing
