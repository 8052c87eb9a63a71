// Layout of the workspace of the NMS kernels.
#pragma once

#include "host_device.h"
#include "nms.h"

namespace carafe {

/// Labels of at most this many candidates are always sorted in shared memory.
constexpr std::int64_t kSharedKeys = 4096;

/// Smallest power of two that is not below `value`.
constexpr std::int64_t power_of_two_from(std::int64_t value) {
    std::int64_t power = 1;
    while (power < value) power *= 2;
    return power;
}

/// Most candidates that one label keeps: more of it cannot be among the best of all.
CARAFE_HD constexpr std::int32_t most_kept(NmsParams const& p) {
    return p.candidates < p.max_output ? p.candidates : p.max_output;
}

/// Offsets in bytes. Every part grows with every size and starts at a multiple of 256.
struct NmsWorkspace {
    std::size_t keys;        ///< uint64 [B*L, keys_per_label]: for labels too large to sort in
                             ///< shared memory
    std::size_t kept_boxes;  ///< 4 float [B*L, most_kept]
    std::size_t kept_keys;   ///< uint64 [B*L, most_kept], ascending
    std::size_t counts;      ///< int32 [B*L]: how many are kept
    std::size_t total;
    std::int64_t keys_per_label;

    explicit constexpr NmsWorkspace(NmsParams const& p)
        : keys(0),
          kept_boxes(0),
          kept_keys(0),
          counts(0),
          total(0),
          keys_per_label(p.candidates > kSharedKeys ? power_of_two_from(p.candidates) : 0) {
        std::int64_t const lists = std::int64_t{p.batch} * p.labels;
        kept_boxes = keys + aligned(lists * keys_per_label * 8);
        kept_keys = kept_boxes + aligned(lists * most_kept(p) * 16);
        counts = kept_keys + aligned(lists * most_kept(p) * 8);
        total = counts + aligned(lists * 4);
    }

  private:
    static constexpr std::size_t aligned(std::int64_t bytes) {
        return static_cast<std::size_t>((bytes + 255) / 256 * 256);
    }
};

}  // namespace carafe
