// RpnCandidates and BoxCandidates on the CPU.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "candidates_geometry.h"
#include "half.h"
#include "threads.h"

namespace carafe {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

/// Calls `function` with a null pointer of the elements' type.
template <typename Function>
void with_type(DType dtype, Function const& function) {
    switch (dtype) {
        case DType::kFloat16:
            return function(static_cast<Half const*>(nullptr));
        case DType::kBFloat16:
            return function(static_cast<BFloat16 const*>(nullptr));
        default:
            return function(static_cast<float const*>(nullptr));
    }
}

// --- RpnCandidates -------------------------------------------------------------------------------

/// The best keys seen so far. Most are turned away by one comparison, since the bound rises
/// whenever the memory is full.
class Best {
  public:
    explicit Best(std::size_t count)
        : count_(count), capacity_(4 * count), keys_(new std::uint64_t[capacity_]) {}

    void clear() {
        size_ = 0;
        bound_ = kNoAnchor;
        lowest_ = kNone;
    }

    /// Whether the anchor's key is worth making.
    bool may_take(float logit) const { return logit >= lowest_; }

    void add(std::uint64_t key) {
        if (key <= bound_) return;
        keys_[size_++] = key;
        if (size_ == capacity_) cut();
    }

    /// Best first, no more than asked for.
    std::uint64_t const* sorted(std::size_t& size) {
        if (size_ > count_) cut();
        std::sort(keys_.get(), keys_.get() + size_, std::greater<>());
        size = size_;
        return keys_.get();
    }

  private:
    void cut() {
        std::uint64_t* const last = keys_.get() + count_ - 1;
        std::nth_element(keys_.get(), last, keys_.get() + size_, std::greater<>());
        bound_ = *last;
        lowest_ = logit_of(bound_);
        size_ = count_;
    }

    std::size_t count_, capacity_, size_ = 0;
    std::uint64_t bound_ = kNoAnchor;
    float lowest_ = kNone;
    std::unique_ptr<std::uint64_t[]> keys_;
};

template <typename T>
void rank_level(
    RpnCandidatesParams const& p, std::int64_t image, std::int64_t pixels, T const* logits,
    Best& best) {
    LevelStrides const at = strides_of(p.layout, pixels, p.anchors, p.logit_pitch);
    T const* const first = logits + image * at.image;
    best.clear();
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (std::int64_t anchor = 0; anchor < p.anchors; ++anchor) {
            float const logit = to_float(first[pixel * at.pixel + anchor * at.channel]);
            if (!best.may_take(logit)) continue;
            best.add(anchor_key(logit, static_cast<std::uint32_t>(pixel * p.anchors + anchor)));
        }
    }
}

template <typename T>
Corners decode_anchor(
    RpnCandidatesParams const& p, std::int32_t level, std::int64_t image, std::int64_t pixels,
    std::uint32_t index, float const* anchors, BoxDecoder const& decoder, T const* deltas) {
    auto const per_pixel = static_cast<std::uint32_t>(p.anchors);
    std::uint32_t const pixel = index / per_pixel;
    std::uint32_t const anchor = index % per_pixel;
    auto const width = static_cast<std::uint32_t>(p.widths[level]);
    auto const x = static_cast<float>(std::int64_t{pixel % width} * p.strides[level]);
    auto const y = static_cast<float>(std::int64_t{pixel / width} * p.strides[level]);
    float const* const base = anchors + (std::int64_t{level} * p.anchors + anchor) * 4;
    float const box[4] = {x + base[0], y + base[1], x + base[2], y + base[3]};
    LevelStrides const at = strides_of(p.layout, pixels, 4 * p.anchors, p.delta_pitch);
    T const* const own =
        deltas + image * at.image + pixel * at.pixel + std::int64_t{anchor} * 4 * at.channel;
    float values[4];
    for (int i = 0; i < 4; ++i) values[i] = to_float(own[i * at.channel]);
    return decoder(box, values);
}

template <typename T>
void best_of_level(
    RpnCandidatesParams const& p, std::int64_t image, std::int32_t level, float const* sizes,
    float const* anchors, float const* normalization, void const* const* maps, Best& best,
    float* boxes, float* scores) {
    std::int64_t const pixels = std::int64_t{p.heights[level]} * p.widths[level];
    rank_level(p, image, pixels, static_cast<T const*>(maps[level]), best);
    std::size_t count = 0;
    std::uint64_t const* const keys = best.sorted(count);
    BoxDecoder const decoder{normalization, sizes[2 * image + 1], sizes[2 * image]};
    for (std::size_t row = 0; row < static_cast<std::size_t>(p.candidates); ++row) {
        Corners box{};
        float score = kNone;
        if (row < count) {
            auto const* const deltas = static_cast<T const*>(maps[p.levels + level]);
            Corners const found = decode_anchor(
                p, level, image, pixels, anchor_of(keys[row]), anchors, decoder, deltas);
            if (large_enough(found, p.min_size)) {
                box = found;
                score = logit_of(keys[row]);
            }
        }
        std::copy_n(&box.x1, 4, boxes + 4 * row);
        scores[row] = score;
    }
}

// --- BoxCandidates -------------------------------------------------------------------------------

/// Of one proposal; a class's rows are `stride` apart.
template <typename T>
void decode_proposal(
    std::int32_t classes, T const* logits, T const* deltas, float const* proposal,
    BoxDecoder const& decoder, std::int64_t stride, float* boxes, float* scores) {
    float top = to_float(logits[0]);
    for (std::int32_t i = 1; i <= classes; ++i) top = std::max(top, to_float(logits[i]));
    float total = 0.0f;
    for (std::int32_t i = 0; i <= classes; ++i) total += std::exp(to_float(logits[i]) - top);
    float const box[4] = {proposal[0], proposal[1], proposal[2], proposal[3]};
    for (std::int32_t label = 0; label < classes; ++label) {
        float values[4];
        for (int i = 0; i < 4; ++i) values[i] = to_float(deltas[4 * label + i]);
        Corners const found = decoder(box, values);
        std::copy_n(&found.x1, 4, boxes + label * stride * 4);
        scores[label * stride] = std::exp(to_float(logits[label]) - top) / total;
    }
}

}  // namespace

void rpn_candidates_cpu(
    RpnCandidatesParams const& p, float const* image_sizes, float const* anchors,
    float const* normalization, void const* const* maps, float* boxes, float* scores, int threads) {
    std::int64_t const lists = std::int64_t{p.batch} * p.levels;
    // All memory before the first thread: an allocation that fails may then throw.
    std::vector<Best> best;
    for (std::int64_t i = pieces_of(lists, 1, threads); lists > 0 && i > 0; --i) {
        best.emplace_back(static_cast<std::size_t>(p.candidates));
    }
    std::atomic<std::size_t> next_memory{0};
    // Levels differ in size, so threads take them one by one, the largest ones first.
    std::atomic<std::int64_t> next{0};
    parallel_for(
        static_cast<std::int64_t>(best.size()), 1, threads, [&](std::int64_t, std::int64_t) {
            Best& mine = best[next_memory++];
            for (std::int64_t list = next++; list < lists; list = next++) {
                std::int64_t const image = list % p.batch;
                auto const level = static_cast<std::int32_t>(list / p.batch);
                std::int64_t const first = (image * p.levels + level) * p.candidates;
                with_type(p.dtype, [&](auto const* type) {
                    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
                    best_of_level<T>(
                        p, image, level, image_sizes, anchors, normalization, maps, mine,
                        boxes + 4 * first, scores + first);
                });
            }
        });
}

void box_candidates_cpu(
    BoxCandidatesParams const& p, void const* logits, void const* deltas, float const* proposals,
    std::int32_t const* num_proposals, float const* image_sizes, float const* normalization,
    float* boxes, float* scores, int threads) {
    std::int64_t const count = p.proposals, classes = p.classes;
    parallel_for(p.batch * count, 64, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            std::int64_t const image = row / count, place = row % count;
            std::int64_t const first = image * classes * count + place;
            if (place >= num_proposals[image]) {
                for (std::int64_t label = 0; label < classes; ++label) {
                    std::fill_n(boxes + 4 * (first + label * count), 4, 0.0f);
                    scores[first + label * count] = kNone;
                }
                continue;
            }
            BoxDecoder const decoder{
                normalization, image_sizes[2 * image + 1], image_sizes[2 * image]};
            with_type(p.dtype, [&](auto const* type) {
                using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
                decode_proposal(
                    p.classes, static_cast<T const*>(logits) + row * (classes + 1),
                    static_cast<T const*>(deltas) + row * 4 * classes, proposals + 4 * row, decoder,
                    count, boxes + 4 * first, scores + first);
            });
        }
    });
}

}  // namespace carafe
