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

/// A few labels of at most this many candidates are spread over the whole GPU,
constexpr std::int32_t kSpreadKeys = 1024;
/// up to so many labels of all images; more keep the GPU busy with a block each.
constexpr std::int32_t kSpreadLists = 40;
/// Candidates whose overlaps with one other are the bits of a word.
constexpr std::int32_t kSpreadTile = 64;

/// Most candidates that one label keeps: more of it cannot be among the best of all.
CARAFE_HD constexpr std::int32_t most_kept(NmsParams const& p) {
    return p.candidates < p.max_output ? p.candidates : p.max_output;
}

/// Runs that a label is cut into; 0 for one that is sorted by one block.
CARAFE_HD constexpr std::int32_t runs_of(NmsParams const& p) {
    return p.candidates > kSharedKeys ? (p.candidates - 1) / kRun + 1 : 0;
}

/// Whether the overlaps of all pairs are found first, by the whole GPU.
CARAFE_HD constexpr bool is_spread(NmsParams const& p) {
    return std::int64_t{p.batch} * p.labels <= kSpreadLists && p.candidates > 2 * kSpreadTile &&
           p.candidates <= kSpreadKeys;
}

/// Words of overlaps that a candidate has.
CARAFE_HD constexpr std::int32_t spread_words(NmsParams const& p) {
    return (p.candidates - 1) / kSpreadTile + 1;
}

/// Offsets in bytes. Every part grows with every size and starts at a multiple of 256.
struct NmsWorkspace {
    std::size_t keys[2];        ///< uint64 [B*L, M]: runs before and after a merge; only with runs
    std::size_t run_counts[2];  ///< int32 [B*L, runs]: how many keys each run has
    std::size_t kept_boxes;     ///< 4 float [B*L, most_kept]
    std::size_t kept_keys;      ///< uint64 [B*L, most_kept], ascending
    std::size_t counts;         ///< int32 [B*L]: how many are kept
    std::size_t spread_boxes;   ///< 4 float [B*L, M], by rank; this and the next only if spread
    std::size_t spread_keys;    ///< uint64 [B*L, M], ascending
    std::size_t suppressors;    ///< uint64 [B*L, M, words]: which better ones suppress a candidate
    std::size_t spread_counts;  ///< int32 [B*L]: how many candidates exceed the threshold
    std::size_t total;

    explicit constexpr NmsWorkspace(NmsParams const& p)
        : keys(),
          run_counts(),
          kept_boxes(0),
          kept_keys(0),
          counts(0),
          spread_boxes(0),
          spread_keys(0),
          suppressors(0),
          spread_counts(0),
          total(0) {
        std::int64_t const lists = std::int64_t{p.batch} * p.labels;
        std::int64_t const runs = lists * runs_of(p);
        keys[1] = keys[0] + aligned((runs > 0 ? lists * p.candidates : 0) * 8);
        run_counts[0] = keys[1] + (keys[1] - keys[0]);
        run_counts[1] = run_counts[0] + aligned(runs * 4);
        kept_boxes = run_counts[1] + aligned(runs * 4);
        kept_keys = kept_boxes + aligned(lists * most_kept(p) * 16);
        counts = kept_keys + aligned(lists * most_kept(p) * 8);
        // A larger call that is not spread still has the room of a smaller one that is.
        NmsParams const spread{1, 1, least(p.candidates, kSpreadKeys), 1, 0, 0};
        std::int64_t const rows = least<std::int64_t>(lists, kSpreadLists) * spread.candidates;
        spread_boxes = counts + aligned(lists * 4);
        spread_keys = spread_boxes + aligned(rows * 16);
        suppressors = spread_keys + aligned(rows * 8);
        spread_counts = suppressors + aligned(rows * (rows > 0 ? spread_words(spread) : 0) * 8);
        total = spread_counts + aligned(least<std::int64_t>(lists, kSpreadLists) * 4);
    }

  private:
    template <typename Size>
    static constexpr Size least(Size a, Size b) {
        return a < b ? a : b;
    }

    static constexpr std::size_t aligned(std::int64_t bytes) {
        return static_cast<std::size_t>((bytes + 255) / 256 * 256);
    }
};

}  // namespace carafe
