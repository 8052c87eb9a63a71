// CPU twin of batched NMS.
//
// Threads share out the labels of all images. A label's candidates are sorted once; then each is
// compared with those kept before it, which lie in memory coordinate by coordinate, so that the
// compiler compares several at once and the loop ends with the first that suppresses.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "nms.h"
#include "nms_geometry.h"
#include "threads.h"

namespace carafe {

namespace {

/// Boxes kept so far. Beyond `count` they are NaN up to a multiple of kChunk and suppress nothing.
class KeptBoxes {
  public:
    /// Room for `capacity` boxes.
    void reserve(std::size_t capacity) {
        std::size_t const rounded = (capacity + kChunk - 1) / kChunk * kChunk;
        for (std::vector<float>* part : {&x1_, &y1_, &x2_, &y2_, &area_}) part->resize(rounded);
    }

    void clear() { count_ = 0; }

    std::size_t count() const { return count_; }

    void add(Box const& box) {
        if (count_ % kChunk == 0) {
            for (std::vector<float>* part : {&x1_, &y1_, &x2_, &y2_, &area_}) {
                std::fill_n(part->data() + count_, kChunk, std::numeric_limits<float>::quiet_NaN());
            }
        }
        x1_[count_] = box.x1;
        y1_[count_] = box.y1;
        x2_[count_] = box.x2;
        y2_[count_] = box.y2;
        area_[count_] = area_of(box);
        ++count_;
    }

    bool suppress(Box const& box, float threshold) const {
        for (std::size_t first = 0; first < count_; first += kChunk) {
            if (chunk_suppresses(first, box, area_of(box), threshold)) return true;
        }
        return false;
    }

  private:
    static constexpr std::size_t kChunk = 32;

    bool chunk_suppresses(std::size_t first, Box const& box, float area, float threshold) const {
        float const* const x1 = x1_.data() + first;
        float const* const y1 = y1_.data() + first;
        float const* const x2 = x2_.data() + first;
        float const* const y2 = y2_.data() + first;
        float const* const areas = area_.data() + first;
        std::int32_t hits = 0;
        for (std::size_t i = 0; i < kChunk; ++i) {
            float const overlap = intersection({x1[i], y1[i], x2[i], y2[i]}, box);
            hits |= static_cast<std::int32_t>(iou_exceeds(overlap, areas[i], area, threshold));
        }
        return hits != 0;
    }

    std::size_t count_ = 0;
    std::vector<float> x1_, y1_, x2_, y2_, area_;
};

/// Writes the keys of the candidates above the score threshold, best first; returns their number.
std::size_t rank_label(
    NmsParams const& p, float const* scores, std::int32_t label, std::uint64_t* keys) {
    std::size_t count = 0;
    auto const first = static_cast<std::uint32_t>(label) * static_cast<std::uint32_t>(p.candidates);
    for (std::int32_t i = 0; i < p.candidates; ++i) {
        if (scores[i] > p.score_threshold) {
            keys[count++] = ranking_key(scores[i], first + static_cast<std::uint32_t>(i));
        }
    }
    std::sort(keys, keys + count);
    return count;
}

/// Keeps greedily from `keys`, moves the kept ones to the front and returns their number; `boxes`
/// are those of the image.
std::size_t suppress_label(
    NmsParams const& p, float const* boxes, std::uint64_t* keys, std::size_t count,
    KeptBoxes& kept) {
    kept.clear();
    for (std::size_t i = 0; i < count; ++i) {
        // More of one label cannot be among the best of all.
        if (kept.count() == static_cast<std::size_t>(p.max_output)) break;
        float const* const at = boxes + std::size_t{index_of(keys[i])} * 4;
        Box const box{at[0], at[1], at[2], at[3]};
        if (kept.suppress(box, p.iou_threshold)) continue;
        keys[kept.count()] = keys[i];
        kept.add(box);
    }
    return kept.count();
}

/// The best max_output of the keys that the labels of one image kept.
void merge_image(
    NmsParams const& p, std::int64_t labels, std::uint64_t const* keys, std::size_t const* counts,
    std::int32_t& num_dets, std::int64_t* indices) {
    std::vector<std::uint64_t> merged;
    for (std::int64_t label = 0; label < labels; ++label, keys += p.candidates) {
        merged.insert(merged.end(), keys, keys + counts[label]);
    }
    auto const found = std::min(merged.size(), static_cast<std::size_t>(p.max_output));
    auto const end = merged.begin() + static_cast<std::ptrdiff_t>(found);
    if (end != merged.end()) std::nth_element(merged.begin(), end, merged.end());
    std::sort(merged.begin(), end);
    std::transform(merged.begin(), end, indices, index_of);
    std::fill(indices + found, indices + p.max_output, std::int64_t{-1});
    num_dets = static_cast<std::int32_t>(found);
}

}  // namespace

void nms_cpu(
    NmsParams const& p, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, int threads) {
    if (box_count(p) == 0) {  // nothing is kept, however many labels have no candidates
        std::fill_n(num_dets, p.batch, 0);
        std::fill_n(indices, std::int64_t{p.batch} * p.max_output, std::int64_t{-1});
        return;
    }
    std::int64_t const labels = p.labels;
    std::int64_t const lists = p.batch * labels;
    // Starting a thread costs about as much as a label of this many candidates.
    std::int64_t const grain = 1024 / p.candidates + 1;
    // All memory before the first thread: an allocation that fails may then throw. The keys are
    // left unwritten, since few candidates may be above the threshold.
    std::unique_ptr<std::uint64_t[]> const keys(
        new std::uint64_t[static_cast<std::size_t>(box_count(p))]);
    std::vector<std::size_t> counts(static_cast<std::size_t>(lists));
    std::vector<KeptBoxes> kept(static_cast<std::size_t>(pieces_of(lists, grain, threads)));
    for (KeptBoxes& boxes_of : kept) {
        boxes_of.reserve(static_cast<std::size_t>(std::min(p.candidates, p.max_output)));
    }
    std::atomic<std::size_t> next{0};
    parallel_for(lists, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        KeptBoxes& mine = kept[next++];
        for (std::int64_t list = begin; list < end; ++list) {
            std::int64_t const image = list / labels;
            auto const label = static_cast<std::int32_t>(list % labels);
            std::uint64_t* const own = keys.get() + list * p.candidates;
            std::size_t const ranked = rank_label(p, scores + list * p.candidates, label, own);
            counts[static_cast<std::size_t>(list)] =
                suppress_label(p, boxes + image * labels * p.candidates * 4, own, ranked, mine);
        }
    });
    for (std::int64_t image = 0; image < p.batch; ++image) {
        merge_image(
            p, labels, keys.get() + image * labels * p.candidates, counts.data() + image * labels,
            num_dets[image], indices + image * p.max_output);
    }
}

}  // namespace carafe
