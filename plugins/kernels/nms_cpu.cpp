// CPU twin of batched NMS.
//
// Threads share out the labels of all images. A label's candidates are sorted once; then each is
// compared with those kept before it, which lie in memory coordinate by coordinate, so that the
// compiler compares several at once and the loop ends with the first that suppresses.
#include <algorithm>
#include <limits>
#include <vector>

#include "nms.h"
#include "nms_geometry.h"
#include "threads.h"

namespace carafe {

namespace {

/// Boxes kept so far. Beyond `count` they are NaN up to a multiple of kChunk and suppress nothing.
class KeptBoxes {
  public:
    void clear() {
        count_ = 0;
        for (std::vector<float>* part : {&x1_, &y1_, &x2_, &y2_, &area_}) part->clear();
    }

    std::size_t count() const { return count_; }

    void add(Box const& box) {
        if (count_ == x1_.size()) {
            for (std::vector<float>* part : {&x1_, &y1_, &x2_, &y2_, &area_}) {
                part->resize(count_ + kChunk, std::numeric_limits<float>::quiet_NaN());
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

/// Keys of the candidates above the score threshold, best first.
void rank_label(
    NmsParams const& p, float const* scores, std::int32_t label, std::vector<std::uint64_t>& keys) {
    keys.clear();
    auto const first = static_cast<std::uint32_t>(label) * static_cast<std::uint32_t>(p.candidates);
    for (std::int32_t i = 0; i < p.candidates; ++i) {
        if (scores[i] > p.score_threshold) {
            keys.push_back(ranking_key(scores[i], first + static_cast<std::uint32_t>(i)));
        }
    }
    std::sort(keys.begin(), keys.end());
}

/// Keeps greedily from `keys`; `boxes` are those of the image.
std::vector<std::uint64_t> suppress_label(
    NmsParams const& p, float const* boxes, std::vector<std::uint64_t> const& keys,
    KeptBoxes& kept) {
    std::vector<std::uint64_t> kept_keys;
    kept.clear();
    for (std::uint64_t const key : keys) {
        // More of one label cannot be among the best of all.
        if (kept.count() == static_cast<std::size_t>(p.max_output)) break;
        float const* const at = boxes + std::size_t{index_of(key)} * 4;
        Box const box{at[0], at[1], at[2], at[3]};
        if (kept.suppress(box, p.iou_threshold)) continue;
        kept.add(box);
        kept_keys.push_back(key);
    }
    return kept_keys;
}

/// The best max_output keys of all labels of one image.
void merge_image(
    NmsParams const& p, std::vector<std::uint64_t> const* labels, std::int32_t& num_dets,
    std::int64_t* indices) {
    std::vector<std::uint64_t> merged;
    for (std::int32_t label = 0; label < p.labels; ++label) {
        merged.insert(merged.end(), labels[label].begin(), labels[label].end());
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
    std::int64_t const lists = std::int64_t{p.batch} * p.labels;
    std::vector<std::vector<std::uint64_t>> kept_keys(static_cast<std::size_t>(lists));
    // Starting a thread costs about as much as a label of this many candidates.
    std::int64_t const grain = 1024 / std::max(p.candidates, 1) + 1;
    parallel_for(lists, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        std::vector<std::uint64_t> keys;
        KeptBoxes kept;
        for (std::int64_t list = begin; list < end; ++list) {
            std::int64_t const image = list / p.labels;
            auto const label = static_cast<std::int32_t>(list % p.labels);
            rank_label(p, scores + list * p.candidates, label, keys);
            kept_keys[static_cast<std::size_t>(list)] =
                suppress_label(p, boxes + image * p.labels * p.candidates * 4, keys, kept);
        }
    });
    for (std::int64_t image = 0; image < p.batch; ++image) {
        merge_image(
            p, kept_keys.data() + image * p.labels, num_dets[image],
            indices + image * p.max_output);
    }
}

}  // namespace carafe
