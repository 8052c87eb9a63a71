// CPU twin of multilevel RoIAlign.
//
// The rows and columns that a RoI's bins take from the map, and their weights, are made once a RoI
// and serve all channels. NCHW: threads share out the planes and pool all RoIs from one before the
// next, since a RoI's planes lie too far apart for the cache; rows are summed first, over all
// columns of the RoI. NHWC: threads share out the RoIs and sum pixel by pixel, a few vectors of
// channels at a time. The loops over elements are compiled once for each instruction set
// (roi_align_cpu_pool.h). All memory is had before the first thread starts.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu_isa.h"
#include "huge_pages.h"
#include "roi_align.h"
#include "roi_align_cpu_task.h"
#include "roi_align_geometry.h"
#include "threads.h"

namespace carafe {

namespace {

/// Starting a thread costs about as much as this many values.
constexpr std::int64_t kValuesPerThread = 30000;

/// Taps of all bins along one axis.
class Taps {
  public:
    void place(RoiAxis const& axis, std::int32_t bins) {
        ends_.reserve(static_cast<std::size_t>(bins) + 1);
        ends_.push_back(0);
        for (std::int32_t bin = 0; bin < bins; ++bin) {
            TapWalk walk(axis, bin);
            for (Tap tap{}; walk.next(tap);) {
                at_.push_back(tap.at);
                weights_.push_back(tap.weight);
            }
            ends_.push_back(static_cast<std::int32_t>(at_.size()));
        }
        if (at_.empty()) return;
        auto const [low, high] = std::minmax_element(at_.begin(), at_.end());
        first_ = *low;
        length_ = *high + 1 - *low;
    }

    /// The columns that all bins together touch.
    std::int32_t length() const { return length_; }

    TapLists lists() const { return {at_.data(), weights_.data(), ends_.data(), first_, length_}; }

  private:
    std::vector<std::int32_t> at_;
    std::vector<float> weights_;
    std::vector<std::int32_t> ends_;
    std::int32_t first_ = 0, length_ = 0;
};

/// A RoI on its level; without samples its result is zero.
struct PlacedRoi {
    std::int32_t level = 0;
    bool sampled = false;
    Taps rows, columns;

    PlacedRoi(RoiAlignParams const& p, float const* roi) {
        level = level_of(roi, p);
        std::int32_t const stride = p.strides[level];
        RoiAxis const x = axis_of(roi[0], roi[2], stride, p.widths[level], p);
        RoiAxis const y = axis_of(roi[1], roi[3], stride, p.heights[level], p);
        sampled = has_samples(x) && has_samples(y);
        if (!sampled) return;
        columns.place(x, p.output_size);
        rows.place(y, p.output_size);
    }

    RoiTask task(RoiAlignParams const& p) const {
        return {p.dtype,         p.output_size, rows.lists(),    columns.lists(), p.heights[level],
                p.widths[level], p.channels,    p.feature_pitch, p.out_pitch};
    }
};

/// All RoIs [B, K].
std::vector<PlacedRoi> place(RoiAlignParams const& p, float const* rois) {
    std::int64_t const count = std::int64_t{p.batch} * p.rois;
    std::vector<PlacedRoi> placed;
    placed.reserve(static_cast<std::size_t>(count));
    for (std::int64_t k = 0; k < count; ++k) placed.emplace_back(p, rois + k * 4);
    return placed;
}

PoolPlane choose_pool_plane() {
    switch (cpu_isa()) {
#if defined(__x86_64__)
        case CpuIsa::kAvx512:
            return avx512::pool_plane;
        case CpuIsa::kAvx2:
            return avx2::pool_plane;
#endif
        default:
            return baseline::pool_plane;
    }
}

PoolPixels choose_pool_pixels() {
    switch (cpu_isa()) {
#if defined(__x86_64__)
        case CpuIsa::kAvx512:
            return avx512::pool_pixels;
        case CpuIsa::kAvx2:
            return avx2::pool_pixels;
#endif
        default:
            return baseline::pool_pixels;
    }
}

/// Arrays of the call's element type, addressed by element.
struct Elements {
    std::int64_t size;

    void const* at(void const* array, std::int64_t index) const {
        return static_cast<unsigned char const*>(array) + index * size;
    }
    void* at(void* array, std::int64_t index) const {
        return static_cast<unsigned char*>(array) + index * size;
    }
    /// Zero is no bits in every type.
    void clear(void* array, std::int64_t count) const {
        std::memset(array, 0, static_cast<std::size_t>(count * size));
    }
};

void pool_nchw(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    int threads) {
    static PoolPlane const pool_plane = choose_pool_plane();
    std::int64_t const planes = std::int64_t{p.batch} * p.channels;
    Elements const elements{static_cast<std::int64_t>(size_of(p.dtype))};
    std::int64_t const bins = std::int64_t{p.output_size} * p.output_size;
    std::int64_t const grain = kValuesPerThread / (p.rois * bins) + 1;
    std::vector<PlacedRoi> const placed = place(p, rois);
    std::int32_t columns = 0;
    for (PlacedRoi const& roi : placed) columns = std::max(columns, roi.columns.length());
    std::int64_t const length = roi_scratch(p.output_size, columns);
    std::vector<float> scratch(
        static_cast<std::size_t>(pieces_of(planes, grain, threads) * length));
    std::atomic<std::int64_t> next{0};
    parallel_for(planes, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        float* const own = scratch.data() + next++ * length;
        for (std::int64_t plane = begin; plane < end; ++plane) {
            std::int64_t const first = plane / p.channels * p.rois;
            for (std::int64_t k = first; k < first + p.rois; ++k) {
                PlacedRoi const& roi = placed[static_cast<std::size_t>(k)];
                void* const to = elements.at(out, (k * p.channels + plane % p.channels) * bins);
                if (!roi.sampled) {
                    elements.clear(to, bins);
                    continue;
                }
                RoiTask const task = roi.task(p);
                std::int64_t const area = task.height * task.width;
                pool_plane(task, elements.at(features[roi.level], plane * area), own, to);
            }
        }
    });
}

void pool_nhwc(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    int threads) {
    static PoolPixels const pool_pixels = choose_pool_pixels();
    std::int64_t const values = std::int64_t{p.out_pitch} * p.output_size * p.output_size;
    std::int64_t const count = std::int64_t{p.batch} * p.rois;
    Elements const elements{static_cast<std::int64_t>(size_of(p.dtype))};
    std::int64_t const grain = kValuesPerThread / values + 1;
    std::vector<PlacedRoi> const placed = place(p, rois);
    parallel_for(count, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t k = begin; k < end; ++k) {
            PlacedRoi const& roi = placed[static_cast<std::size_t>(k)];
            void* const to = elements.at(out, k * values);
            if (!roi.sampled) {
                elements.clear(to, values);
                continue;
            }
            RoiTask const task = roi.task(p);
            std::int64_t const image = task.height * task.width * p.feature_pitch;
            pool_pixels(task, elements.at(features[roi.level], k / p.rois * image), to);
        }
    });
}

}  // namespace

void roi_align_cpu(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    int threads) {
    if (out_elements(p) == 0) return;
    use_huge_pages(out, static_cast<std::size_t>(out_elements(p)) * size_of(p.dtype));
    if (p.layout == Layout::kNHWC) {
        pool_nhwc(p, rois, features, out, threads);
    } else {
        pool_nchw(p, rois, features, out, threads);
    }
}

}  // namespace carafe
