// Preprocessing on the CPU.
#include <algorithm>
#include <vector>

#include "half.h"
#include "preprocess_geometry.h"
#include "threads.h"

namespace carafe {

namespace {

/// Pixels of the result that are worth a thread.
constexpr std::int64_t kGrain = 1 << 14;

/// The result's bytes.
struct Raw {
    using Element = std::uint8_t;

    std::uint8_t operator()(int, std::uint8_t byte) const { return byte; }
};

/// What the table makes of them.
template <typename T>
struct Normalised {
    using Element = T;

    explicit Normalised(float const* table) {
        std::transform(table, table + 768, values, &from_float<T>);
    }

    T operator()(int channel, std::uint8_t byte) const { return values[256 * channel + byte]; }

    T values[768];
};

template <typename Convert>
void fill(
    PreprocessParams const& p, std::uint8_t const* source, void* out, int threads,
    Convert const& convert) {
    using T = typename Convert::Element;
    T* const to = static_cast<T*>(out);
    double const row_scale = scale_of(p.source_height, p.height);
    double const column_scale = scale_of(p.source_width, p.width);
    std::vector<Tap> columns(static_cast<std::size_t>(p.width));
    for (std::int32_t column = 0; column < p.width; ++column) {
        columns[column] = tap_of<true>(column, column_scale, p.source_width);
    }
    std::int64_t const pixel_step = p.layout == Layout::kNHWC ? 3 : 1;
    auto const fill_row = [&](std::int32_t row) {
        Place const place = place_of(p, row, 0);
        std::int32_t filled = 0;
        if (row < p.height) {
            filled = p.width;
            Tap const tap = tap_of<false>(row, row_scale, p.source_height);
            for (int channel = 0; channel < 3; ++channel) {
                int const from = p.reversed != 0 ? 2 - channel : channel;
                std::uint8_t const* const upper = row_of(p, source, tap.first) + from;
                std::uint8_t const* const lower = row_of(p, source, tap.second) + from;
                T* const line = to + place.first + channel * place.step;
                for (std::int32_t column = 0; column < filled; ++column) {
                    line[column * pixel_step] =
                        convert(channel, resized(upper, lower, tap, columns[column]));
                }
            }
        }
        for (int channel = 0; channel < 3; ++channel) {
            T* const line = to + place.first + channel * place.step;
            for (std::int32_t column = filled; column < p.padded_width; ++column) {
                line[column * pixel_step] = T{};
            }
        }
    };
    parallel_for(
        p.padded_height, kGrain / p.padded_width, threads,
        [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t row = begin; row < end; ++row) {
                fill_row(static_cast<std::int32_t>(row));
            }
        });
}

}  // namespace

void preprocess_cpu(
    PreprocessParams const& p, std::uint8_t const* source, float const* table, void* out,
    int threads) {
    if (p.raw != 0) return fill(p, source, out, threads, Raw{});
    switch (p.dtype) {
        case DType::kFloat16:
            return fill(p, source, out, threads, Normalised<Half>(table));
        case DType::kBFloat16:
            return fill(p, source, out, threads, Normalised<BFloat16>(table));
        default:
            return fill(p, source, out, threads, Normalised<float>(table));
    }
}

}  // namespace carafe
