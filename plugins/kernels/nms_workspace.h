// Layout of the workspace of the NMS kernels.
#pragma once

#include "host_device.h"
#include "nms.h"

namespace carafe {

/// Labels of at most this many candidates are sorted by one block in shared memory.
constexpr std::int32_t kSharedKeys = 4096;
/// Longer ones are cut into runs of this many, which blocks sort apart and then merge,
constexpr std::int32_t kRun = 1024;
/// as many runs into one at a time.
constexpr std::int32_t kFan = 16;

/// Most candidates that one label keeps: more of it cannot be among the best of all.
CARAFE_HD constexpr std::int32_t most_kept(NmsParams const& p) {
    return p.candidates < p.max_output ? p.candidates : p.max_output;
}

/// Runs that a label is cut into; 0 for one that is sorted by one block.
CARAFE_HD constexpr std::int32_t runs_of(NmsParams const& p) {
    return p.candidates > kSharedKeys ? (p.candidates - 1) / kRun + 1 : 0;
}

/// Offsets in bytes. Every part grows with every size and starts at a multiple of 256.
struct NmsWorkspace {
    std::size_t keys[2];        ///< uint64 [B*L, M]: runs before and after a merge; only with runs
    std::size_t run_counts[2];  ///< int32 [B*L, runs]: how many keys each run has
    std::size_t kept_boxes;     ///< 4 float [B*L, most_kept]
    std::size_t kept_keys;      ///< uint64 [B*L, most_kept], ascending
    std::size_t counts;         ///< int32 [B*L]: how many are kept
    std::size_t total;

    explicit constexpr NmsWorkspace(NmsParams const& p)
        : keys(), run_counts(), kept_boxes(0), kept_keys(0), counts(0), total(0) {
        std::int64_t const lists = std::int64_t{p.batch} * p.labels;
        std::int64_t const runs = lists * runs_of(p);
        keys[1] = keys[0] + aligned((runs > 0 ? lists * p.candidates : 0) * 8);
        run_counts[0] = keys[1] + (keys[1] - keys[0]);
        run_counts[1] = run_counts[0] + aligned(runs * 4);
        kept_boxes = run_counts[1] + aligned(runs * 4);
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
