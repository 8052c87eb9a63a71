// CPU twin of multilevel RoIAlign.
//
// Bilinear samples on a grid are separable, so a bin is a few rows by a few columns of the map,
// each with one weight that holds all samples; the weights are made once a RoI and serve all
// channels. NCHW: threads share out the planes and pool all RoIs from one before the next, since a
// RoI's planes lie too far apart for the cache; rows are summed first, over all columns of the RoI.
// NHWC: threads share out the RoIs and sum pixel by pixel over all channels. All memory is had
// before the first thread starts.
#include <algorithm>
#include <atomic>
#include <vector>

#include "half.h"
#include "roi_align.h"
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
            for (Tap tap{}; walk.next(tap);) taps_.push_back(tap);
            ends_.push_back(taps_.size());
        }
        auto const [low, high] = std::minmax_element(
            taps_.begin(), taps_.end(), [](Tap const& a, Tap const& b) { return a.at < b.at; });
        first_ = taps_.empty() ? 0 : low->at;
        length_ = taps_.empty() ? 0 : high->at + 1 - first_;
    }

    Tap const* begin(std::int32_t bin) const {
        return taps_.data() + ends_[static_cast<std::size_t>(bin)];
    }
    Tap const* end(std::int32_t bin) const { return begin(bin + 1); }

    /// The part of the axis that all bins together touch.
    std::int32_t first() const { return first_; }
    std::int32_t length() const { return length_; }

  private:
    std::vector<Tap> taps_;
    std::vector<std::size_t> ends_;
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
};

/// All RoIs [B, K].
std::vector<PlacedRoi> place(RoiAlignParams const& p, float const* rois) {
    std::int64_t const count = std::int64_t{p.batch} * p.rois;
    std::vector<PlacedRoi> placed;
    placed.reserve(static_cast<std::size_t>(count));
    for (std::int64_t k = 0; k < count; ++k) placed.emplace_back(p, rois + k * 4);
    return placed;
}

/// `length` floats of scratch for each piece of work, whichever thread does it.
class Scratch {
  public:
    Scratch(std::int64_t pieces, std::int64_t length)
        : length_(length), floats_(static_cast<std::size_t>(pieces * length)) {}

    /// Call it once a piece.
    float* take() { return floats_.data() + next_++ * length_; }

  private:
    std::int64_t length_;
    std::vector<float> floats_;
    std::atomic<std::int64_t> next_{0};
};

/// Pools one RoI from a plane [height, width] into [S, S]; `sums` holds one a column that the RoI
/// touches.
template <typename T>
void pool_plane(
    PlacedRoi const& roi, std::int32_t size, T const* plane, std::int64_t width, float* sums,
    T* out) {
    std::int32_t const left = roi.columns.first();
    auto const columns = static_cast<std::size_t>(roi.columns.length());
    for (std::int32_t y = 0; y < size; ++y) {
        std::fill(sums, sums + columns, 0.0f);
        for (Tap const* tap = roi.rows.begin(y); tap != roi.rows.end(y); ++tap) {
            T const* const row = plane + tap->at * width + left;
            float const weight = tap->weight;
            for (std::size_t x = 0; x < columns; ++x) sums[x] += weight * to_float(row[x]);
        }
        for (std::int32_t x = 0; x < size; ++x) {
            float sum = 0.0f;
            for (Tap const* tap = roi.columns.begin(x); tap != roi.columns.end(x); ++tap) {
                sum += tap->weight * sums[tap->at - left];
            }
            *out++ = from_float<T>(sum);
        }
    }
}

/// Pools all RoIs of an image from one of its planes; `plane` counts over all images.
template <typename T>
void pool_from_plane(
    RoiAlignParams const& p, std::vector<PlacedRoi> const& rois, std::int64_t plane,
    void const* const* features, float* sums, T* out) {
    std::int64_t const bins = std::int64_t{p.output_size} * p.output_size;
    std::int64_t const image = plane / p.channels;
    for (std::int64_t k = image * p.rois; k < (image + 1) * p.rois; ++k) {
        PlacedRoi const& roi = rois[static_cast<std::size_t>(k)];
        T* const to = out + (k * p.channels + plane % p.channels) * bins;
        if (!roi.sampled) {
            std::fill(to, to + bins, T{});
            continue;
        }
        std::int64_t const width = p.widths[roi.level];
        std::int64_t const area = width * p.heights[roi.level];
        auto const* const map = static_cast<T const*>(features[roi.level]);
        pool_plane(roi, p.output_size, map + plane * area, width, sums, to);
    }
}

template <typename T>
void pool_nchw(
    RoiAlignParams const& p, float const* rois, void const* const* features, T* out, int threads) {
    std::int64_t const planes = std::int64_t{p.batch} * p.channels;
    if (p.rois == 0 || planes == 0) return;
    std::int64_t const values = std::int64_t{p.rois} * p.output_size * p.output_size;
    std::int64_t const grain = kValuesPerThread / values + 1;
    std::vector<PlacedRoi> const placed = place(p, rois);
    std::int32_t columns = 0;
    for (PlacedRoi const& roi : placed) columns = std::max(columns, roi.columns.length());
    Scratch scratch(pieces_of(planes, grain, threads), columns);
    parallel_for(planes, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        float* const sums = scratch.take();
        for (std::int64_t plane = begin; plane < end; ++plane) {
            pool_from_plane(p, placed, plane, features, sums, out);
        }
    });
}

/// Pools one RoI from an image [height, width, feature_pitch] into [S, S, out_pitch]; `sums` holds
/// as many as there are channels.
template <typename T>
void pool_pixels(
    RoiAlignParams const& p, PlacedRoi const& roi, T const* image, float* sums, T* out) {
    std::int64_t const width = p.widths[roi.level];
    for (std::int32_t y = 0; y < p.output_size; ++y) {
        for (std::int32_t x = 0; x < p.output_size; ++x, out += p.out_pitch) {
            std::fill(sums, sums + p.channels, 0.0f);
            for (Tap const* row = roi.rows.begin(y); row != roi.rows.end(y); ++row) {
                for (Tap const* column = roi.columns.begin(x); column != roi.columns.end(x);
                     ++column) {
                    T const* const pixel = image + (row->at * width + column->at) * p.feature_pitch;
                    float const weight = row->weight * column->weight;
                    for (std::int32_t c = 0; c < p.channels; ++c) {
                        sums[c] += weight * to_float(pixel[c]);
                    }
                }
            }
            for (std::int32_t c = 0; c < p.channels; ++c) out[c] = from_float<T>(sums[c]);
            std::fill(out + p.channels, out + p.out_pitch, T{});
        }
    }
}

template <typename T>
void pool_nhwc(
    RoiAlignParams const& p, float const* rois, void const* const* features, T* out, int threads) {
    std::int64_t const values = std::int64_t{p.out_pitch} * p.output_size * p.output_size;
    std::int64_t const count = std::int64_t{p.batch} * p.rois;
    if (values == 0 || count == 0) return;
    std::int64_t const grain = kValuesPerThread / values + 1;
    std::vector<PlacedRoi> const placed = place(p, rois);
    Scratch scratch(pieces_of(count, grain, threads), p.channels);
    parallel_for(count, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        float* const sums = scratch.take();
        for (std::int64_t k = begin; k < end; ++k) {
            PlacedRoi const& roi = placed[static_cast<std::size_t>(k)];
            T* const to = out + k * values;
            if (!roi.sampled) {
                std::fill(to, to + values, T{});
                continue;
            }
            std::int64_t const area = std::int64_t{p.heights[roi.level]} * p.widths[roi.level];
            auto const* const map = static_cast<T const*>(features[roi.level]);
            pool_pixels(p, roi, map + k / p.rois * area * p.feature_pitch, sums, to);
        }
    });
}

template <typename T>
void pool(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    int threads) {
    if (p.layout == Layout::kNHWC) {
        pool_nhwc(p, rois, features, static_cast<T*>(out), threads);
    } else {
        pool_nchw(p, rois, features, static_cast<T*>(out), threads);
    }
}

}  // namespace

void roi_align_cpu(
    RoiAlignParams const& p, float const* rois, void const* const* features, void* out,
    int threads) {
    switch (p.dtype) {
        case DType::kFloat16:
            return pool<Half>(p, rois, features, out, threads);
        case DType::kBFloat16:
            return pool<BFloat16>(p, rois, features, out, threads);
        default:
            return pool<float>(p, rois, features, out, threads);
    }
}

}  // namespace carafe
