// One call of CARAFE on the CPU, cut into rows; carafe_cpu.cpp prepares it and the instruction
// sets' objects compute it. Those objects share no inline function with the rest of the program:
// the linker could keep the copy that needs the newer processor.
#pragma once

#include "carafe.h"
#include "carafe_strides.h"

namespace carafe {

struct CarafeTask {
    CarafeParams params;
    Strides features, masks, out;
    std::int64_t out_padding;  ///< channels beyond the last, to be zeroed
    void const* feature_data;
    void const* mask_data;
    void* out_data;
    /// A thread works on tiles of this many source pixels, one after the other.
    std::int64_t tile_rows, tile_columns;
    /// Parts of a thread's workspace in bytes, multiples of kCarafeAlignment, in this order.
    std::int64_t packed_bytes, staged_bytes;
    /// Channels-last: what lies in the second part before the weights.
    std::int64_t source_bytes, zero_bytes;
};

/// Workspaces start at multiples of this many bytes, and no vector is longer.
constexpr std::int64_t kCarafeAlignment = 64;

/// Channels of an NCHW map that are computed together.
constexpr std::int64_t kCarafeChannelBlock = 3;

/// Computes source rows [begin, end) out of batch * height.
using CarafeRows = void (*)(
    CarafeTask const& task, std::int64_t begin, std::int64_t end, unsigned char* workspace);

namespace baseline {
void carafe_rows(CarafeTask const&, std::int64_t, std::int64_t, unsigned char*);
}
#if defined(__x86_64__)
namespace avx2 {
void carafe_rows(CarafeTask const&, std::int64_t, std::int64_t, unsigned char*);
}
namespace avx512 {
void carafe_rows(CarafeTask const&, std::int64_t, std::int64_t, unsigned char*);
}
#endif

}  // namespace carafe
