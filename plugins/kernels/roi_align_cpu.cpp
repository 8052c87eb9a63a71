// CPU twin of multilevel RoIAlign.
//
// Bilinear samples on a grid are separable, so a bin is a few rows by a few columns of the map,
// each with one weight that holds all samples; the weights are made once a RoI and serve all
// channels. NCHW: threads share out the planes and pool all RoIs from one before the next, since a
// RoI's planes lie too far apart for the cache; rows are summed first, over all columns of the RoI.
// NHWC: threads share out the RoIs and sum pixel by pixel over all channels.
#include <algorithm>
#include <vector>

#include "half.h"
#include "roi_align.h"
#include "roi_align_geometry.h"
#include "threads.h"

namespace carafe {

namespace {

/// Starting a thread costs about as much as this many values.
constexpr std::int64_t kValuesPerThread = 30000;

/// A row or column of the map and its share of a bin's mean.
struct Tap {
    std::int32_t at;
    float weight;
};

/// Taps of all bins along one axis.
class Taps {
  public:
    void place(RoiAxis const& axis, std::int32_t bins) {
        taps_.clear();
        ends_.assign(1, 0);
        for (std::int32_t bin = 0; bin < bins; ++bin) {
            SampleRange const range = samples_of(axis, bin);
            for (std::int32_t index = range.first; index < range.last; ++index) {
                Sample const sample = sample_at(axis, bin, index);
                if (!sample.inside) continue;
                add(sample.low, (1.0f - sample.share) / axis.samples);
                if (sample.high != sample.low) add(sample.high, sample.share / axis.samples);
            }
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
    /// Neighbouring samples share pixels: one of the last two taps is often the same.
    void add(std::int32_t at, float weight) {
        std::size_t const oldest = std::max(ends_.back() + 2, taps_.size()) - 2;
        for (std::size_t i = taps_.size(); i > oldest; --i) {
            if (taps_[i - 1].at == at) {
                taps_[i - 1].weight += weight;
                return;
            }
        }
        taps_.push_back({at, weight});
    }

    std::vector<Tap> taps_;
    std::vector<std::size_t> ends_;
    std::int32_t first_ = 0, length_ = 0;
};

/// A RoI on its level; without samples its result is zero.
struct PlacedRoi {
    std::int32_t level = 0;
    bool sampled = false;
    Taps rows, columns;

    void place(RoiAlignParams const& p, float const* roi) {
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

/// Pools one RoI from a plane [height, width] into [S, S]; `sums` is scratch.
template <typename T>
void pool_plane(
    PlacedRoi const& roi, std::int32_t size, T const* plane, std::int64_t width,
    std::vector<float>& sums, T* out) {
    std::int32_t const left = roi.columns.first();
    auto const columns = static_cast<std::size_t>(roi.columns.length());
    if (sums.size() < columns) sums.resize(columns);
    for (std::int32_t y = 0; y < size; ++y) {
        float* const sum_of = sums.data();
        std::fill(sum_of, sum_of + columns, 0.0f);
        for (Tap const* tap = roi.rows.begin(y); tap != roi.rows.end(y); ++tap) {
            T const* const row = plane + tap->at * width + left;
            float const weight = tap->weight;
            for (std::size_t x = 0; x < columns; ++x) sum_of[x] += weight * to_float(row[x]);
        }
        for (std::int32_t x = 0; x < size; ++x) {
            float sum = 0.0f;
            for (Tap const* tap = roi.columns.begin(x); tap != roi.columns.end(x); ++tap) {
                sum += tap->weight * sum_of[tap->at - left];
            }
            *out++ = from_float<T>(sum);
        }
    }
}

/// Pools channels [first, last) of an image.
template <typename T>
void pool_planes(
    RoiAlignParams const& p, std::vector<PlacedRoi> const& rois, std::int64_t image,
    std::int64_t first, std::int64_t last, void const* const* features, T* out) {
    std::int64_t const bins = std::int64_t{p.output_size} * p.output_size;
    std::vector<float> sums;
    for (std::int64_t c = first; c < last; ++c) {
        for (std::int64_t k = 0; k < p.rois; ++k) {
            PlacedRoi const& roi = rois[static_cast<std::size_t>(k)];
            T* const to = out + ((image * p.rois + k) * p.channels + c) * bins;
            if (!roi.sampled) {
                std::fill(to, to + bins, T{});
                continue;
            }
            std::int64_t const width = p.widths[roi.level];
            std::int64_t const area = width * p.heights[roi.level];
            auto const* const map = static_cast<T const*>(features[roi.level]);
            pool_plane(roi, p.output_size, map + (image * p.channels + c) * area, width, sums, to);
        }
    }
}

template <typename T>
void pool_nchw(
    RoiAlignParams const& p, float const* rois, void const* const* features, T* out, int threads) {
    if (p.rois == 0) return;
    std::int64_t const values = std::int64_t{p.rois} * p.output_size * p.output_size;
    parallel_for(
        std::int64_t{p.batch} * p.channels, kValuesPerThread / values + 1, threads,
        [&](std::int64_t begin, std::int64_t end) {
            std::vector<PlacedRoi> placed(static_cast<std::size_t>(p.rois));
            for (std::int64_t plane = begin; plane < end;) {
                std::int64_t const image = plane / p.channels;
                std::int64_t const stop = std::min(end, (image + 1) * p.channels);
                float const* roi = rois + image * p.rois * 4;
                for (PlacedRoi& one : placed) {
                    one.place(p, roi);
                    roi += 4;
                }
                std::int64_t const before = image * p.channels;
                pool_planes(p, placed, image, plane - before, stop - before, features, out);
                plane = stop;
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
    if (values == 0) return;
    parallel_for(
        std::int64_t{p.batch} * p.rois, kValuesPerThread / values + 1, threads,
        [&](std::int64_t begin, std::int64_t end) {
            PlacedRoi roi;
            std::vector<float> sums(static_cast<std::size_t>(p.channels));
            for (std::int64_t k = begin; k < end; ++k) {
                roi.place(p, rois + k * 4);
                T* const to = out + k * values;
                if (!roi.sampled) {
                    std::fill(to, to + values, T{});
                    continue;
                }
                std::int64_t const area = std::int64_t{p.heights[roi.level]} * p.widths[roi.level];
                auto const* const map = static_cast<T const*>(features[roi.level]);
                pool_pixels(p, roi, map + k / p.rois * area * p.feature_pitch, sums.data(), to);
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
