// Where a RoI is sampled: the same operations, rounded the same way, in the CPU twin and the CUDA
// kernels. They follow torchvision's in float32, so that both take as many samples.
//
// Bilinear samples on a grid are separable: a bin is a few rows by a few columns of the map, each
// with one weight that holds all samples.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "roi_align.h"

namespace carafe {

/// One axis of a RoI in the pixels of its level. All bins have equally many samples; `samples` is a
/// whole number, in float because a RoI can be astronomically large. Aligned for the accesses of 16
/// bytes that compilers make of its copies.
struct alignas(16) RoiAxis {
    float start, bin, samples;
    std::int32_t side;  ///< of the map
    bool adaptive;      ///< samples are between half a pixel and a pixel apart
};

/// Samples [first, last) of one bin.
struct SampleRange {
    std::int32_t first, last;
};

/// A sample's two neighbours and the share of the second; the first's is the rest.
struct Sample {
    std::int32_t low, high;
    float share;
    bool inside;
};

/// Level of a RoI. A negative area (corners swapped in one axis) and NaN give level 0.
CARAFE_HD inline std::int32_t level_of(float const* roi, RoiAlignParams const& p) {
    float const area = (roi[2] - roi[0]) * (roi[3] - roi[1]);
    float const scale = sqrtf(area) / static_cast<float>(p.finest_scale) + 1e-6f;
    std::int32_t level = 0;
    float power = 2.0f;
    for (std::int32_t next = 1; next < p.levels; ++next, power *= 2.0f) {
        if (scale >= power) level = next;
    }
    return level;
}

CARAFE_HD inline RoiAxis axis_of(
    float low, float high, std::int32_t stride, std::int32_t side, RoiAlignParams const& p) {
    float const scale = 1.0f / static_cast<float>(stride);
    float const start = low * scale - 0.5f;
    float const extent = high * scale - 0.5f - start;
    float const bin = extent / static_cast<float>(p.output_size);
    bool const adaptive = p.sampling_ratio == 0;
    return {
        start, bin, adaptive ? ceilf(bin) : static_cast<float>(p.sampling_ratio), side, adaptive};
}

/// Most samples of a bin along one axis: float32 numbers no more of them one by one.
constexpr float kMostSamples = 16777216.0f;

/// Whether the axis has samples that can be placed. NaN and infinity have none. Nor has a RoI so
/// large that a bin would take more than kMostSamples: at most two in a pixel fall into the map, so
/// its mean is as good as zero.
CARAFE_HD inline bool has_samples(RoiAxis const& axis) {
    bool const finite = axis.start - axis.start == 0.0f && axis.bin - axis.bin == 0.0f;
    return finite && axis.samples > 0.0f && axis.samples <= kMostSamples && axis.side > 0;
}

/// The samples of a bin that can fall into the map, and few others: the time of a RoI is bounded by
/// the map, however large the RoI is.
CARAFE_HD inline SampleRange samples_of(RoiAxis const& axis, std::int32_t bin) {
    constexpr float kFew = 32.0f;
    if (!axis.adaptive || axis.samples <= kFew) {
        return {0, static_cast<std::int32_t>(axis.samples)};
    }
    // Samples are at least half a pixel apart; rounding moves one by 2^-21 of its distance at most.
    float const slack = 2.0f + axis.samples * 0x1p-20f;
    float const room = 2.0f * (static_cast<float>(axis.side) + 1.0f + slack);
    float const origin = axis.start + static_cast<float>(bin) * axis.bin;
    float const first = (-1.0f - origin) / (axis.bin / axis.samples) - slack;
    float const last = first + room;
    return {
        static_cast<std::int32_t>(fminf(fmaxf(first, 0.0f), axis.samples)),
        static_cast<std::int32_t>(fminf(fmaxf(last, 0.0f), axis.samples))};
}

CARAFE_HD inline Sample sample_at(RoiAxis const& axis, std::int32_t bin, std::int32_t index) {
    float const offset = (static_cast<float>(index) + 0.5f) * axis.bin / axis.samples;
    float at = axis.start + static_cast<float>(bin) * axis.bin + offset;
    if (!(at >= -1.0f && at <= static_cast<float>(axis.side))) return {0, 0, 0.0f, false};
    at = at > 0.0f ? at : 0.0f;
    auto const low = static_cast<std::int32_t>(at);
    if (low >= axis.side - 1) return {axis.side - 1, axis.side - 1, 0.0f, true};
    return {low, low + 1, at - static_cast<float>(low), true};
}

/// A row or column of the map and its share of a bin's mean; it moves as one access.
struct alignas(8) Tap {
    std::int32_t at;
    float weight;
};

/// The taps of one bin, one after the other. The axis stays with the caller.
class TapWalk {
  public:
    CARAFE_HD TapWalk(RoiAxis const& axis, std::int32_t bin)
        : axis_(axis), bin_(bin), sample_{}, older_{-1, 0.0f}, newer_{-1, 0.0f}, half_way_(false) {
        SampleRange const range = samples_of(axis, bin);
        next_ = range.first;
        last_ = range.last;
    }

    /// False when there are no more.
    CARAFE_HD bool next(Tap& tap) {
        while (half_way_ || next_ < last_) {
            float share = sample_.share;
            std::int32_t at = sample_.high;
            if (half_way_) {
                half_way_ = false;
            } else {
                sample_ = sample_at(axis_, bin_, next_++);
                if (!sample_.inside) continue;
                share = 1.0f - sample_.share;
                at = sample_.low;
                half_way_ = sample_.high != at;
            }
            if (add(at, share / axis_.samples, tap)) return true;
        }
        tap = older_.at >= 0 ? older_ : newer_;
        if (older_.at < 0) newer_.at = -1;
        older_.at = -1;
        return tap.at >= 0;
    }

  private:
    /// Neighbouring samples share pixels: one of the last two taps is often the same. True when
    /// that makes a third, which is given out.
    CARAFE_HD bool add(std::int32_t at, float weight, Tap& tap) {
        if (newer_.at == at) {
            newer_.weight += weight;
            return false;
        }
        if (older_.at == at) {
            older_.weight += weight;
            return false;
        }
        tap = older_;
        older_ = newer_;
        newer_ = {at, weight};
        return tap.at >= 0;
    }

    RoiAxis const& axis_;
    std::int32_t bin_, next_, last_;
    Sample sample_;
    Tap older_, newer_;
    bool half_way_;  ///< the last sample's second neighbour is still to come
};

}  // namespace carafe
