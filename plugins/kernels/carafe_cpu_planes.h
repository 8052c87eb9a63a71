// CARAFE on NCHW maps. For one instruction set: see carafe_cpu_rows.h.
//
// A vector holds neighbouring pixels of a source row. Channels are staged in blocks, converted and
// with zeros around, so that every tap is a load; each load of weights serves all of the block.
#pragma once

#include "carafe_cpu_tile.h"

namespace carafe::CARAFE_ISA {

/// Tiles of at least N columns.
template <typename T, typename Sum, int N>
class Planes {
  public:
    Planes(CarafeTask const& task, Tile const& tile, unsigned char* workspace)
        : call_(task, workspace),
          tile_(tile),
          staged_(reinterpret_cast<Sum*>(call_.staged)),
          // Vectors of the last taps end here.
          pitch_(round_up(tile.columns() + call_.k - 1, N)),
          plane_((tile.rows() + call_.k - 1) * pitch_),
          weights_of_row_((tile.columns() + N - 1) / N * N * call_.taps * call_.outputs) {}

    void run() {
        constexpr int kBlock = kCarafeChannelBlock;
        for (Index group = 0; group < call_.p.groups; ++group) {
            for (Index row = 0; row < tile_.rows(); ++row) {
                Sum* const to = call_.packed + row * weights_of_row_;
                if (call_.encoded()) {
                    normalise_row(group, tile_.first_row + row, to);
                } else {
                    pack_row(group, tile_.first_row + row, to);
                }
            }
            Index const last = (group + 1) * call_.group_channels;
            Index channel = group * call_.group_channels;
            for (; channel + kBlock <= last; channel += kBlock) reassemble<kBlock>(channel);
            for (; channel < last; ++channel) reassemble<1>(channel);
        }
    }

  private:
    using Lanes = Vector<Sum, N>;

    // --- weights, as [vector][tap][dy][dx][N] ----------------------------------------------------

    void normalise_row(Index group, Index y, Sum* to) {
        Strides const& strides = call_.task.masks;
        T const* const row = call_.masks + tile_.image * strides.image +
                             group * call_.taps * call_.outputs * strides.channel +
                             y * strides.row + tile_.first_column;
        for_vectors<N>(tile_.columns(), [&](Index x) {
            for (Index q = 0; q < call_.outputs; ++q) {
                normalise<N>(
                    row + q * strides.channel + x, call_.outputs * strides.channel, call_.taps,
                    to + q * N, call_.outputs * N);
            }
            to += call_.taps * call_.outputs * N;
        });
    }

    void pack_row(Index group, Index y, Sum* to) {
        Strides const& strides = call_.task.masks;
        T const* const image = call_.masks + tile_.image * strides.image +
                               group * call_.taps * strides.channel + y * call_.s * strides.row +
                               tile_.first_column * call_.s;
        for_vectors<N>(tile_.columns(), [&](Index x) {
            T const* from = image + x * call_.s;
            for (Index tap = 0; tap < call_.taps; ++tap, from += strides.channel) {
                for (Index dy = 0; dy < call_.s; ++dy, to += call_.s * N) {
                    separate(from + dy * strides.row, to);
                }
            }
        });
    }

    /// The outputs of N pixels in one row, from [N][dx] to [dx][N].
    void separate(T const* from, Sum* to) const {
        if (call_.s == 1) return write(to, load<N>(from));
        if (call_.s == 2) {
            Lanes const low = load<N>(from), high = load<N>(from + N);
            write(to, every_second<N, 0>(low, high));
            write(to + N, every_second<N, 1>(low, high));
            return;
        }
        for (Index dx = 0; dx < call_.s; ++dx) {
            for (Index i = 0; i < N; ++i) *to++ = load<1>(from + i * call_.s + dx)[0];
        }
    }

    // --- features --------------------------------------------------------------------------------

    template <int kChannels>
    void reassemble(Index channel) {
        for (int c = 0; c < kChannels; ++c) {
            T const* const from = call_.features + tile_.image * call_.task.features.image +
                                  (channel + c) * call_.task.features.channel;
            Sum* to = staged_ + c * plane_;
            for (Index row = 0; row < tile_.rows() + call_.k - 1; ++row, to += pitch_) {
                stage(from, tile_.first_row + row - call_.k / 2, to);
            }
        }
        Strides const& strides = call_.task.out;
        T* const to = call_.out + tile_.image * strides.image + channel * strides.channel +
                      tile_.first_row * call_.s * strides.row + tile_.first_column * call_.s;
        for (Index row = 0; row < tile_.rows(); ++row) {
            reassemble_row<kChannels>(
                staged_ + row * pitch_, call_.packed + row * weights_of_row_,
                to + row * call_.s * strides.row);
        }
    }

    /// One source row of a channel, from r pixels left of the tile to r right of it.
    void stage(T const* plane, Index y, Sum* to) const {
        if (y < 0 || y >= call_.p.height) return clear(to, pitch_);
        Index const r = call_.k / 2;
        Index const first = tile_.first_column > r ? tile_.first_column - r : 0;
        Index const last = least<Index>(call_.p.width, tile_.last_column + r);
        Index const skipped = first + r - tile_.first_column, end = skipped + last - first;
        clear(to, skipped);
        convert<N>(plane + y * call_.task.features.row + first, last - first, to + skipped);
        clear(to + end, pitch_ - end);
    }

    static void clear(Sum* to, Index count) {
        for (Index i = 0; i < count; ++i) to[i] = 0;
    }

    template <int kChannels>
    void reassemble_row(Sum const* source, Sum const* weights, T* to) const {
        for_vectors<N>(tile_.columns(), [&](Index x) {
            Index first = 0;
            if (call_.s == 2) {
                Lanes sums[kChannels][4];
                sum_taps<kChannels, 4>(source + x, weights, sums);
                for (int c = 0; c < kChannels; ++c) {
                    store_two(sums[c][0], sums[c][1], to + c * call_.task.out.channel + 2 * x);
                    store_two(
                        sums[c][2], sums[c][3],
                        to + c * call_.task.out.channel + call_.task.out.row + 2 * x);
                }
                first = 4;
            }
            for (; first + 4 <= call_.outputs; first += 4) {
                reassemble_outputs<kChannels, 4>(source + x, weights, first, to + x * call_.s);
            }
            for (; first < call_.outputs; ++first) {
                reassemble_outputs<kChannels, 1>(source + x, weights, first, to + x * call_.s);
            }
            weights += call_.taps * call_.outputs * N;
        });
    }

    static void store_two(Lanes const& even, Lanes const& odd, T* to) {
        store<N>(to, in_turn<N, 0>(even, odd));
        store<N>(to + N, in_turn<N, 1>(even, odd));
    }

    /// Outputs [first, first + kOutputs) of N source pixels, s apart in the result.
    template <int kChannels, int kOutputs>
    void reassemble_outputs(Sum const* source, Sum const* weights, Index first, T* to) const {
        Lanes sums[kChannels][kOutputs];
        sum_taps<kChannels, kOutputs>(source, weights + first * N, sums);
        for (int c = 0; c < kChannels; ++c) {
            for (int i = 0; i < kOutputs; ++i) {
                Index const q = first + i;
                T* const at = to + c * call_.task.out.channel + q / call_.s * call_.task.out.row +
                              q % call_.s;
                if (call_.s == 1) {
                    store<N>(at, sums[c][i]);
                    continue;
                }
                for (int lane = 0; lane < N; ++lane) {
                    store<1>(at + lane * call_.s, Vector<Sum, 1>{sums[c][i][lane]});
                }
            }
        }
    }

    template <int kChannels, int kOutputs>
    __attribute__((always_inline)) void sum_taps(
        Sum const* source, Sum const* weights, Lanes (&result)[kChannels][kOutputs]) const {
        Index const k = call_.k, plane = plane_, pitch = pitch_, step = call_.outputs * N;
        Lanes sums[kChannels][kOutputs] = {};
        for (Index u = 0; u < k; ++u, source += pitch) {
            for (Index v = 0; v < k; ++v, weights += step) {
                Lanes values[kChannels];
                for (int c = 0; c < kChannels; ++c) {
                    values[c] = read<Lanes>(source + v + c * plane);
                    hold(values[c]);
                }
                for (int q = 0; q < kOutputs; ++q) {
                    Lanes weight = read<Lanes>(weights + q * N);
                    hold(weight);
                    for (int c = 0; c < kChannels; ++c) sums[c][q] += weight * values[c];
                }
            }
        }
        for (int c = 0; c < kChannels; ++c) {
            for (int q = 0; q < kOutputs; ++q) result[c][q] = sums[c][q];
        }
    }

    Call<T, Sum> call_;
    Tile const& tile_;
    Sum* staged_;
    Index pitch_, plane_;
    Index weights_of_row_;
};

}  // namespace carafe::CARAFE_ISA
