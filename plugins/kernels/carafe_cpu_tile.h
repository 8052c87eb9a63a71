// What both layouts of CARAFE's CPU kernel share. For one instruction set: see carafe_cpu_rows.h.
#pragma once

#include "carafe_cpu_task.h"
#include "carafe_cpu_vector.h"

namespace carafe::CARAFE_ISA {

using Index = std::int64_t;

template <typename T>
constexpr T least(T a, T b) {
    return a < b ? a : b;
}

constexpr Index round_up(Index value, Index step) {
    return (value + step - 1) / step * step;
}

/// Rows [first_row, last_row) and columns [first_column, last_column) of one source image.
struct Tile {
    Index image, first_row, last_row, first_column, last_column;

    Index rows() const { return last_row - first_row; }
    Index columns() const { return last_column - first_column; }
};

/// Calls `work(first)` for vectors of N that cover `count` elements, N at least; the last may
/// overlap the one before it.
template <int N, typename Work>
void for_vectors(Index count, Work const& work) {
    Index first = 0;
    for (; first + N <= count; first += N) work(first);
    if (first < count) work(count - N);
}

/// Converts `count` elements and touches no other.
template <int N, typename T, typename Sum>
void convert(T const* from, Index count, Sum* to) {
    if constexpr (N > 1) {
        if (count < N) return convert<N / 2>(from, count, to);
    }
    for_vectors<N>(count, [=](Index i) { write(to + i, load<N>(from + i)); });
}

/// Softmax over `taps` vectors, `stride` elements apart, into vectors `step` elements apart; both
/// may be the same place.
template <int N, typename T, typename Sum>
void normalise(T const* from, Index stride, Index taps, Sum* to, Index step) {
    using Lanes = Vector<Sum, N>;
    Lanes top = load<N>(from);
    for (Index tap = 1; tap < taps; ++tap) {
        Lanes const value = load<N>(from + tap * stride);
        top = value > top ? value : top;
    }
    Lanes total{};
    for (Index tap = 0; tap < taps; ++tap) {
        Lanes const value = exponential<N>(load<N>(from + tap * stride) - top);
        write(to + tap * step, value);
        total += value;
    }
    Lanes const factor = 1 / total;
    for (Index tap = 0; tap < taps; ++tap) {
        write(to + tap * step, read<Lanes>(to + tap * step) * factor);
    }
}

/// A call's parameters, and where its data lies.
template <typename T, typename Sum>
struct Call {
    CarafeTask const& task;
    CarafeParams const& p;
    Index k, taps, s, outputs;  ///< outputs of a source pixel
    Index group_channels;
    T const* features;
    T const* masks;
    T* out;
    Sum* packed;
    unsigned char* staged;

    Call(CarafeTask const& work, unsigned char* workspace)
        : task(work),
          p(work.params),
          k(p.kernel_size),
          taps(k * k),
          s(p.scale),
          outputs(s * s),
          group_channels(p.channels / p.groups),
          features(static_cast<T const*>(work.feature_data)),
          masks(static_cast<T const*>(work.mask_data)),
          out(static_cast<T*>(work.out_data)),
          packed(reinterpret_cast<Sum*>(workspace)),
          staged(workspace + work.packed_bytes) {}

    bool encoded() const { return p.source == MaskSource::kEncoded; }
};

}  // namespace carafe::CARAFE_ISA
