// Calls of RpnCandidates and BoxCandidates as a plugin gets them, and what the CPU twins make of
// them.
#pragma once

#include <limits>
#include <utility>

#include "candidates.h"
#include "plugin_maps.h"

namespace carafe::testing {

/// Boxes and scores of a call, by the plugin and by the twin.
struct Candidates {
    std::vector<float> boxes, scores, expected_boxes, expected_scores;

    explicit Candidates(std::size_t count)
        : boxes(4 * count), scores(count), expected_boxes(4 * count), expected_scores(count) {}

    /// Largest |difference| / (1 + |expected|); infinite where only one of the two is finite.
    float difference() const {
        return std::max(worst(boxes, expected_boxes), worst(scores, expected_scores));
    }

  private:
    static float worst(std::vector<float> const& found, std::vector<float> const& expected) {
        float result = 0;
        for (std::size_t i = 0; i < found.size(); ++i) {
            if (found[i] == expected[i]) continue;
            float const off = std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i]));
            result =
                std::isfinite(off) ? std::max(result, off) : std::numeric_limits<float>::infinity();
        }
        return result;
    }
};

inline std::vector<float> uniform(std::size_t count, float low, float high, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> value(low, high);
    std::vector<float> values(count);
    for (float& each : values) each = value(random);
    return values;
}

/// RpnCandidates of a pyramid of strides 4, 8, ... with three anchors a pixel.
struct RpnCall {
    RpnCandidatesParams params{};
    std::vector<float> image_sizes, anchors, normalization{0, 0, 0, 0, 1, 1, 1, 1};
    std::vector<Map> maps;
    std::vector<void const*> addresses;
    Candidates found;

    RpnCall(
        Format const& format, std::int32_t batch, std::int32_t levels, std::int32_t height,
        std::int32_t width, std::int32_t candidates)
        : found(static_cast<std::size_t>(batch) * levels * candidates) {
        params.dtype = format.dtype, params.layout = format.layout;
        params.batch = batch, params.levels = levels, params.anchors = 3;
        params.candidates = candidates;
        params.logit_pitch = pitch(format, 3), params.delta_pitch = pitch(format, 12);
        for (std::int32_t image = 0; image < batch; ++image) {
            image_sizes.push_back(3.5f * static_cast<float>(height));
            image_sizes.push_back(4.0f * static_cast<float>(width));
        }
        maps.reserve(2 * static_cast<std::size_t>(levels));
        for (std::int32_t channels : {3, 12}) {
            for (std::int32_t level = 0; level < levels; ++level) {
                params.heights[level] = std::max(height >> level, 1);
                params.widths[level] = std::max(width >> level, 1);
                params.strides[level] = 4 << level;
                maps.emplace_back(
                    format, batch, channels, params.heights[level] * params.widths[level],
                    static_cast<unsigned>(100 * channels + level));
                addresses.push_back(maps.back().data());
            }
        }
        for (std::int32_t i = 0; i < 3 * levels; ++i) {
            float const half = 8.0f * static_cast<float>((1 << i / 3) * (1 + i % 3));
            anchors.insert(anchors.end(), {-half, -half, half, half});
        }
    }

    void run_twin() {
        rpn_candidates_cpu(
            params, image_sizes.data(), anchors.data(), normalization.data(), addresses.data(),
            found.expected_boxes.data(), found.expected_scores.data(), 0);
    }
};

/// BoxCandidates; of the proposals, the last tenth is padding.
struct BoxCall {
    BoxCandidatesParams params;
    std::vector<float> proposals, image_sizes;
    std::vector<float> normalization{0, 0, 0, 0, 0.1f, 0.1f, 0.2f, 0.2f};
    std::vector<std::int32_t> counts;
    Map logits, deltas;
    Candidates found;

    BoxCall(Format const& format, std::int32_t batch, std::int32_t count, std::int32_t classes)
        : params{format.dtype, batch, count, classes},
          proposals(uniform(static_cast<std::size_t>(batch) * count * 4, 0, 400, 7)),
          counts(static_cast<std::size_t>(batch), count - count / 10),
          logits(format, batch, 1, std::int64_t{count} * (classes + 1), 8),
          deltas(format, batch, 1, std::int64_t{count} * 4 * classes, 9),
          found(static_cast<std::size_t>(batch) * count * classes) {
        for (std::size_t i = 0; i < proposals.size(); i += 4) {
            proposals[i + 2] += proposals[i] + 1, proposals[i + 3] += proposals[i + 1] + 1;
        }
        for (std::int32_t image = 0; image < batch; ++image) {
            image_sizes.insert(image_sizes.end(), {600, 700});
        }
    }

    void run_twin() {
        box_candidates_cpu(
            params, logits.data(), deltas.data(), proposals.data(), counts.data(),
            image_sizes.data(), normalization.data(), found.expected_boxes.data(),
            found.expected_scores.data(), 0);
    }
};

}  // namespace carafe::testing
