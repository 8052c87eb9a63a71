// CARAFE on channels-last maps. For one instruction set: see carafe_cpu_rows.h.
//
// A vector holds neighbouring channels of a pixel. With fewer channels than a vector has lanes the
// outputs of a pixel lie in the lanes instead.
#pragma once

#include "carafe_cpu_tile.h"

namespace carafe::CARAFE_ISA {

/// Groups of at least N channels.
template <typename T, typename Sum, int N>
class Pixels {
  public:
    Pixels(CarafeTask const& task, Tile const& tile, unsigned char* workspace)
        : call_(task, workspace),
          tile_(tile),
          sources_(reinterpret_cast<T const**>(call_.staged)),
          zeros_(reinterpret_cast<T*>(call_.staged + task.source_bytes)),
          weights_(reinterpret_cast<Sum*>(call_.staged + task.source_bytes + task.zero_bytes)) {
        for (Index c = 0; c < call_.group_channels; ++c) zeros_[c] = T{};
    }

    void run() {
        for (Index group = 0; group < call_.p.groups; ++group) {
            for (Index y = tile_.first_row; y < tile_.last_row; ++y) {
                if (call_.encoded()) {
                    normalise_row(group, y);
                } else {
                    pack_row(group, y);
                }
                reassemble_row(group, y);
            }
        }
        if (call_.task.out_padding > 0) clear_padding();
    }

  private:
    // --- weights of a row, as [pixel][tap][dy][dx] -----------------------------------------------

    /// Softmax runs along a row: over [tap][pixel][dy][dx], with whole vectors.
    void normalise_row(Index group, Index y) {
        constexpr int kRow = kLanes<Sum>;
        Strides const& strides = call_.task.masks;
        Index const outputs = call_.outputs, taps = call_.taps;
        Index const length = round_up(tile_.columns() * outputs, kRow);
        T const* from = call_.masks + tile_.image * strides.image + y * strides.row +
                        tile_.first_column * strides.column + group * taps * outputs;
        for (Index x = 0; x < tile_.columns(); ++x, from += strides.column) {
            for (Index tap = 0; tap < taps; ++tap) {
                copy(from + tap * outputs, weights_ + tap * length + x * outputs);
            }
        }
        for (Index tap = 0; tap < taps; ++tap) {
            for (Index i = tile_.columns() * outputs; i < length; ++i) {
                weights_[tap * length + i] = 0;
            }
        }
        for (Index i = 0; i < length; i += kRow) {
            normalise<kRow>(weights_ + i, length, taps, weights_ + i, length);
        }
        Sum* to = call_.packed;
        for (Index x = 0; x < tile_.columns(); ++x) {
            for (Index tap = 0; tap < taps; ++tap, to += outputs) {
                copy(weights_ + tap * length + x * outputs, to);
            }
        }
    }

    /// The outputs of one pixel.
    template <typename From>
    void copy(From const* from, Sum* to) const {
        if constexpr (kLanes<Sum> >= 4) {
            if (call_.outputs == 4) return write(to, load<4>(from));
        }
        for (Index q = 0; q < call_.outputs; ++q) to[q] = load<1>(from + q)[0];
    }

    void pack_row(Index group, Index y) {
        Strides const& strides = call_.task.masks;
        for (Index x = tile_.first_column; x < tile_.last_column; ++x) {
            Sum* const to = call_.packed + (x - tile_.first_column) * call_.taps * call_.outputs;
            for (Index q = 0; q < call_.outputs; ++q) {
                T const* const from = call_.masks + tile_.image * strides.image +
                                      (y * call_.s + q / call_.s) * strides.row +
                                      (x * call_.s + q % call_.s) * strides.column +
                                      group * call_.taps;
                for (Index tap = 0; tap < call_.taps; ++tap) {
                    to[tap * call_.outputs + q] = load<1>(from + tap)[0];
                }
            }
        }
    }

    // --- features --------------------------------------------------------------------------------

    void reassemble_row(Index group, Index y) {
        Strides const& strides = call_.task.out;
        Index const first = group * call_.group_channels;
        Sum const* weights = call_.packed;
        T* to = call_.out + tile_.image * strides.image + y * call_.s * strides.row +
                tile_.first_column * call_.s * strides.column + first;
        for (Index x = tile_.first_column; x < tile_.last_column; ++x) {
            find_sources(y, x, first);
            reassemble_pixel(weights, to);
            weights += call_.taps * call_.outputs;
            to += call_.s * strides.column;
        }
    }

    /// Where each tap of a pixel finds its channels.
    void find_sources(Index y, Index x, Index channel) {
        Strides const& strides = call_.task.features;
        T const* const map = call_.features + tile_.image * strides.image + channel;
        T const** source = sources_;
        for (Index u = 0; u < call_.k; ++u) {
            Index const row = y + u - call_.k / 2;
            bool const row_inside = row >= 0 && row < call_.p.height;
            for (Index v = 0; v < call_.k; ++v) {
                Index const column = x + v - call_.k / 2;
                bool const inside = row_inside && column >= 0 && column < call_.p.width;
                *source++ = inside ? map + row * strides.row + column * strides.column : zeros_;
            }
        }
    }

    /// All outputs of one source pixel.
    void reassemble_pixel(Sum const* weights, T* to) const {
        Index first = 0;
        for (; first + 4 <= call_.outputs; first += 4) {
            reassemble_outputs<4>(weights + first, first, to);
        }
        for (; first < call_.outputs; ++first) {
            reassemble_outputs<1>(weights + first, first, to);
        }
    }

    template <int kOutputs>
    void reassemble_outputs(Sum const* weights, Index first, T* to) const {
        T* at[kOutputs];
        for (int i = 0; i < kOutputs; ++i) {
            Index const q = first + i;
            at[i] = to + q / call_.s * call_.task.out.row + q % call_.s * call_.task.out.column;
        }
        if constexpr (N < least(4, kLanes<Sum>)) {
            for (Index c = 0; c < call_.group_channels; ++c) {
                sum_channel<kOutputs>(weights, at, c);
            }
            return;
        }
        constexpr int kWide = kVectors * N;
        Index c = 0;
        for (; c + kWide <= call_.group_channels; c += kWide) {
            sum_lanes<kOutputs, kVectors>(weights, at, c);
        }
        for (; c + N <= call_.group_channels; c += N) sum_lanes<kOutputs, 1>(weights, at, c);
        if (c < call_.group_channels) {
            sum_lanes<kOutputs, 1>(weights, at, call_.group_channels - N);
        }
    }

    template <int kOutputs, int kCount>
    void sum_lanes(Sum const* weights, T* const* to, Index c) const {
        Vector<Sum, N> sums[kOutputs][kCount] = {};
        for (Index tap = 0; tap < call_.taps; ++tap, weights += call_.outputs) {
            T const* const source = sources_[tap] + c;
            Vector<Sum, N> values[kCount];
            for (int i = 0; i < kCount; ++i) values[i] = load<N>(source + i * N);
            for (int q = 0; q < kOutputs; ++q) {
                for (int i = 0; i < kCount; ++i) sums[q][i] += values[i] * weights[q];
            }
        }
        for (int q = 0; q < kOutputs; ++q) {
            for (int i = 0; i < kCount; ++i) store<N>(to[q] + c + i * N, sums[q][i]);
        }
    }

    /// One channel, a lane an output.
    template <int kOutputs>
    void sum_channel(Sum const* weights, T* const* to, Index c) const {
        Sum sums[kOutputs] = {};
        for (Index tap = 0; tap < call_.taps; ++tap, weights += call_.outputs) {
            Sum const value = load<1>(sources_[tap] + c)[0];
            for (int q = 0; q < kOutputs; ++q) sums[q] += weights[q] * value;
        }
        for (int q = 0; q < kOutputs; ++q) store<1>(to[q] + c, Vector<Sum, 1>{sums[q]});
    }

    void clear_padding() const {
        Strides const& strides = call_.task.out;
        for (Index y = tile_.first_row * call_.s; y < tile_.last_row * call_.s; ++y) {
            T* to = call_.out + tile_.image * strides.image + y * strides.row +
                    tile_.first_column * call_.s * strides.column + call_.p.channels;
            for (Index x = 0; x < tile_.columns() * call_.s; ++x, to += strides.column) {
                for (Index c = 0; c < call_.task.out_padding; ++c) to[c] = T{};
            }
        }
    }

    /// Vectors of channels whose sums fit into registers.
    static constexpr int kVectors = CARAFE_VECTOR_BYTES == 64 ? 3 : 2;

    Call<T, Sum> call_;
    Tile const& tile_;
    T const** sources_;
    T* zeros_;
    Sum* weights_;
};

}  // namespace carafe::CARAFE_ISA
