// CARAFE on the CPU, compiled once for each instruction set: before including this, a source names
// its namespace (CARAFE_ISA) and the length of a vector (CARAFE_VECTOR_BYTES).
//
// A tile of source pixels is done in two steps:
//   1. The weights of all its outputs, converted and normalised once for all channels, are packed
//      in the order in which step 2 reads them.
//   2. NCHW: vectors lie along the result's rows. Each channel's source rows are staged with
//      zeros around and every pixel repeated `scale` times, so that the taps of neighbouring
//      outputs are neighbours too; four channels share each load of weights.
//      Channels-last: vectors lie along the channels; the outputs of one source pixel share each
//      load of features.
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

template <int N, typename T>
auto load_some(T const* from, Index count) {
    T elements[N] = {};
    __builtin_memcpy(elements, from, static_cast<std::size_t>(count) * sizeof(T));
    return load<N>(elements);
}

template <int N, typename T, typename V>
void store_some(T* to, V const& value, Index count) {
    T elements[N];
    store<N>(elements, value);
    __builtin_memcpy(to, elements, static_cast<std::size_t>(count) * sizeof(T));
}

/// Converts `count` elements; `to` takes whole vectors.
template <typename T, typename Sum>
void convert(T const* from, Index count, Sum* to) {
    constexpr int N = kLanes<Sum>;
    Index i = 0;
    for (; i + N <= count; i += N) write(to + i, load<N>(from + i));
    if (i < count) write(to + i, load_some<N>(from + i, count - i));
}

template <typename T, typename Sum>
class Rows {
  public:
    Rows(CarafeTask const& task, unsigned char* workspace)
        : task_(task),
          p_(task.params),
          k_(p_.kernel_size),
          taps_(k_ * k_),
          s_(p_.scale),
          group_channels_(p_.channels / p_.groups),
          features_(static_cast<T const*>(task.feature_data)),
          masks_(static_cast<T const*>(task.mask_data)),
          out_(static_cast<T*>(task.out_data)),
          weights_(reinterpret_cast<Sum*>(workspace)),
          packed_(reinterpret_cast<Sum*>(workspace + task.weight_bytes)),
          staged_(workspace + task.weight_bytes + task.packed_bytes),
          line_(staged_ + task.staged_bytes) {}

    void run(Index begin, Index end) {
        while (begin < end) {
            Tile tile{};
            tile.image = begin / p_.height;
            tile.first_row = begin % p_.height;
            tile.last_row = tile.first_row + least(task_.tile_rows, end - begin);
            tile.last_row = least<Index>(tile.last_row, p_.height);
            for (Index x = 0; x < p_.width; x += task_.tile_columns) {
                tile.first_column = x;
                tile.last_column = least<Index>(p_.width, x + task_.tile_columns);
                compute(tile);
            }
            begin += tile.rows();
        }
    }

  private:
    static constexpr int N = kLanes<Sum>;
    using Lanes = Vector<Sum, N>;

    void compute(Tile const& tile) {
        for (Index group = 0; group < p_.groups; ++group) {
            Index const length = round_up(tile.columns() * s_, N);
            for (Index y = tile.first_row; y < tile.last_row; ++y) {
                read_weights(tile, group, y, length);
                if (p_.source == MaskSource::kEncoded) normalise(length);
                Sum* const packed = packed_ + (y - tile.first_row) * taps_ * s_ * length;
                if (p_.layout == Layout::kNHWC) {
                    pack_pixels(tile, length, packed);
                } else {
                    pack_lanes(length, packed);
                }
            }
            if (p_.layout == Layout::kNHWC) {
                reassemble_channels_last(tile, group, length);
            } else {
                reassemble_planes(tile, group, length);
            }
        }
        if (task_.out_padding > 0) clear_padding(tile);
    }

    // --- weights ---------------------------------------------------------------------------------

    /// Row y's weights into weights_: [tap][dy][length], along a row of the result.
    void read_weights(Tile const& tile, Index group, Index y, Index length) {
        Strides const& strides = task_.masks;
        bool const encoded = p_.source == MaskSource::kEncoded;
        T const* const image = masks_ + tile.image * strides.image;
        Index const count = tile.columns() * s_;
        for (Index tap = 0; tap < taps_; ++tap) {
            for (Index dy = 0; dy < s_; ++dy) {
                Sum* const to = weights_ + (tap * s_ + dy) * length;
                if (encoded) {
                    T const* const row = image +
                                         ((group * taps_ + tap) * s_ + dy) * s_ * strides.channel +
                                         y * strides.row + tile.first_column * strides.column;
                    shuffle(row, tile.columns(), to);
                } else {
                    T const* const row = image + (group * taps_ + tap) * strides.channel +
                                         (y * s_ + dy) * strides.row +
                                         tile.first_column * s_ * strides.column;
                    gather(row, count, to, 1);
                }
                for (Index i = count; i < length; ++i) to[i] = 0;
            }
        }
    }

    /// The s channels of one row of outputs, interleaved.
    void shuffle(T const* from, Index count, Sum* to) {
        for (Index dx = 0; dx < s_; ++dx) {
            gather(from + dx * task_.masks.channel, count, to + dx, s_);
        }
    }

    /// to[i * step] = from[i * stride of a column of the masks]
    void gather(T const* from, Index count, Sum* to, Index step) {
        Index const stride = task_.masks.column;
        if (stride == 1) {
            Sum* const line = step == 1 && count % N == 0 ? to : reinterpret_cast<Sum*>(line_);
            convert(from, count, line);
            if (line == to) return;
            for (Index i = 0; i < count; ++i) to[i * step] = line[i];
        } else {
            for (Index i = 0; i < count; ++i) to[i * step] = load<1>(from + i * stride)[0];
        }
    }

    /// Softmax over the taps of weights_.
    void normalise(Index length) {
        Index const row = s_ * length;
        for (Index i = 0; i < row; i += N) {
            Sum* const column = weights_ + i;
            Lanes top = read<Lanes>(column);
            for (Index tap = 1; tap < taps_; ++tap) {
                Lanes const value = read<Lanes>(column + tap * row);
                top = value > top ? value : top;
            }
            Lanes total{};
            for (Index tap = 0; tap < taps_; ++tap) {
                Lanes const value = exponential<N>(read<Lanes>(column + tap * row) - top);
                write(column + tap * row, value);
                total += value;
            }
            Lanes const factor = 1 / total;
            for (Index tap = 0; tap < taps_; ++tap) {
                write(column + tap * row, read<Lanes>(column + tap * row) * factor);
            }
        }
    }

    /// [length / N][tap][dy][N]
    void pack_lanes(Index length, Sum* packed) {
        for (Index i = 0; i < length; i += N) {
            for (Index j = 0; j < taps_ * s_; ++j, packed += N) {
                write(packed, read<Lanes>(weights_ + j * length + i));
            }
        }
    }

    /// [column][tap][dy][dx]
    void pack_pixels(Tile const& tile, Index length, Sum* packed) {
        Index const columns = tile.columns();
        for (Index x = 0; x < columns; ++x) {
            for (Index j = 0; j < taps_ * s_; ++j) {
                for (Index dx = 0; dx < s_; ++dx) {
                    *packed++ = weights_[j * length + x * s_ + dx];
                }
            }
        }
    }

    // --- NCHW ------------------------------------------------------------------------------------

    void reassemble_planes(Tile const& tile, Index group, Index length) {
        constexpr Index kBlock = kCarafeChannelBlock;
        // The last vector of a row reads as far as length + the taps beyond it.
        Index const pitch = round_up(length + (k_ - 1) * s_, N);
        Index const last = (group + 1) * group_channels_;
        Index channel = group * group_channels_;
        for (; channel + kBlock <= last; channel += kBlock) {
            reassemble_planes<kBlock>(tile, channel, length, pitch);
        }
        for (; channel < last; ++channel) reassemble_planes<1>(tile, channel, length, pitch);
    }

    template <int kChannels>
    void reassemble_planes(Tile const& tile, Index channel, Index length, Index pitch) {
        Sum* const staged = reinterpret_cast<Sum*>(staged_);
        Index const plane = (tile.rows() + k_ - 1) * pitch;
        for (int c = 0; c < kChannels; ++c) {
            T const* const from = features_ + tile.image * task_.features.image +
                                  (channel + c) * task_.features.channel;
            for (Index row = 0; row < tile.rows() + k_ - 1; ++row) {
                stage(
                    tile, from, tile.first_row + row - k_ / 2, staged + c * plane + row * pitch,
                    pitch);
            }
        }
        for (Index row = 0; row < tile.rows(); ++row) {
            Sum const* const source = staged + row * pitch;
            Sum const* const weights = packed_ + row * taps_ * s_ * length;
            T* const to = out_ + tile.image * task_.out.image + channel * task_.out.channel +
                          (tile.first_row + row) * s_ * task_.out.row + tile.first_column * s_;
            Index dy = 0;
            for (; dy + 2 <= s_; dy += 2) {
                reassemble_rows<kChannels, 2>(
                    tile, source, plane, pitch, weights + dy * N, to + dy * task_.out.row);
            }
            if (dy < s_) {
                reassemble_rows<kChannels, 1>(
                    tile, source, plane, pitch, weights + dy * N, to + dy * task_.out.row);
            }
        }
    }

    /// One source row of a channel from r pixels left of the tile on, every pixel s times.
    void stage(Tile const& tile, T const* plane, Index y, Sum* to, Index pitch) {
        if (y < 0 || y >= p_.height) return clear(to, pitch);
        Index const r = k_ / 2;
        Index const first = tile.first_column > r ? tile.first_column - r : 0;
        Index const last = least<Index>(p_.width, tile.last_column + r);
        Index const skipped = (first + r - tile.first_column) * s_;
        clear(to, skipped);
        to += skipped;
        Sum const* const line = as_line(plane + y * task_.features.row + first, last - first);
        repeat(line, last - first, to);
        clear(to + (last - first) * s_, pitch - skipped - (last - first) * s_);
    }

    Sum const* as_line(T const* from, Index count) {
        Sum* const line = reinterpret_cast<Sum*>(line_);
        convert(from, count, line);
        return line;
    }

    void repeat(Sum const* from, Index count, Sum* to) const {
        if (s_ == 2) {
            for (Index i = 0; i < count; ++i) {
                Sum const value = from[i];
                to[2 * i] = value;
                to[2 * i + 1] = value;
            }
            return;
        }
        for (Index i = 0; i < count; ++i) {
            for (Index dx = 0; dx < s_; ++dx) *to++ = from[i];
        }
    }

    static void clear(Sum* to, Index count) {
        for (Index i = 0; i < count; ++i) to[i] = 0;
    }

    /// kRows rows of the result under one source row, for kChannels channels.
    template <int kChannels, int kRows>
    void reassemble_rows(
        Tile const& tile, Sum const* source, Index plane, Index pitch, Sum const* weights, T* to) {
        Index const count = tile.columns() * s_;
        Lanes sums[kChannels][kRows];
        Index x = 0;
        for (; x + N <= count; x += N, weights += taps_ * s_ * N) {
            sum_taps<kChannels, kRows>(source + x, plane, pitch, weights, sums);
            for (int c = 0; c < kChannels; ++c) {
                for (int dy = 0; dy < kRows; ++dy) {
                    store<N>(to + c * task_.out.channel + dy * task_.out.row + x, sums[c][dy]);
                }
            }
        }
        if (x < count) {
            reassemble_end<kChannels, kRows>(source + x, plane, pitch, weights, to + x, count - x);
        }
    }

    /// The last, incomplete vector of each row. Apart, since a call of memcpy beside the loop
    /// over taps costs it registers.
    template <int kChannels, int kRows>
    __attribute__((noinline)) void reassemble_end(
        Sum const* source, Index plane, Index pitch, Sum const* weights, T* to, Index count) {
        Lanes sums[kChannels][kRows];
        sum_taps<kChannels, kRows>(source, plane, pitch, weights, sums);
        for (int c = 0; c < kChannels; ++c) {
            for (int dy = 0; dy < kRows; ++dy) {
                store_some<N>(to + c * task_.out.channel + dy * task_.out.row, sums[c][dy], count);
            }
        }
    }

    template <int kChannels, int kRows>
    __attribute__((always_inline)) void sum_taps(
        Sum const* source, Index plane, Index pitch, Sum const* weights,
        Lanes (&result)[kChannels][kRows]) const {
        Index const k = k_, s = s_;
        Lanes sums[kChannels][kRows] = {};
        for (Index u = 0; u < k; ++u, source += pitch) {
            Sum const* tap = source;
            for (Index v = 0; v < k; ++v, tap += s, weights += s * N) {
                Lanes taps[kRows];
                for (int dy = 0; dy < kRows; ++dy) taps[dy] = read<Lanes>(weights + dy * N);
                for (int c = 0; c < kChannels; ++c) {
                    Lanes value = read<Lanes>(tap + c * plane);
                    hold(value);
                    for (int dy = 0; dy < kRows; ++dy) sums[c][dy] += taps[dy] * value;
                }
            }
        }
        for (int c = 0; c < kChannels; ++c) {
            for (int dy = 0; dy < kRows; ++dy) result[c][dy] = sums[c][dy];
        }
    }

    // --- channels-last ---------------------------------------------------------------------------

    void reassemble_channels_last(Tile const& tile, Index group, Index length) {
        T const** const sources = reinterpret_cast<T const**>(staged_);
        T* const zeros = reinterpret_cast<T*>(line_);
        for (Index c = 0; c < group_channels_; ++c) zeros[c] = T{};
        Index const first = group * group_channels_;
        for (Index y = tile.first_row; y < tile.last_row; ++y) {
            Sum const* weights = packed_ + (y - tile.first_row) * taps_ * s_ * length;
            for (Index x = tile.first_column; x < tile.last_column; ++x) {
                find_sources(tile.image, y, x, first, zeros, sources);
                T* const to = out_ + tile.image * task_.out.image + y * s_ * task_.out.row +
                              x * s_ * task_.out.column + first;
                reassemble_pixel(sources, weights, to);
                weights += taps_ * s_ * s_;
            }
        }
    }

    /// Where each tap of a pixel finds its channels.
    void find_sources(
        Index image, Index y, Index x, Index channel, T const* zeros, T const** sources) {
        T const* const map = features_ + image * task_.features.image + channel;
        for (Index u = 0; u < k_; ++u) {
            Index const row = y + u - k_ / 2;
            for (Index v = 0; v < k_; ++v) {
                Index const column = x + v - k_ / 2;
                bool const inside = row >= 0 && row < p_.height && column >= 0 && column < p_.width;
                *sources++ = inside
                                 ? map + row * task_.features.row + column * task_.features.column
                                 : zeros;
            }
        }
    }

    /// All outputs of one source pixel.
    void reassemble_pixel(T const* const* sources, Sum const* weights, T* to) {
        Index const outputs = s_ * s_;
        Index first = 0;
        for (; first + 4 <= outputs; first += 4) {
            reassemble_outputs<4>(sources, weights + first, first, to);
        }
        for (; first < outputs; ++first) {
            reassemble_outputs<1>(sources, weights + first, first, to);
        }
    }

    template <int kOutputs>
    void reassemble_outputs(T const* const* sources, Sum const* weights, Index first, T* to) {
        T* at[kOutputs];
        for (int q = 0; q < kOutputs; ++q) {
            Index const output = first + q;
            at[q] = to + output / s_ * task_.out.row + output % s_ * task_.out.column;
        }
        Index c = 0;
        for (; c + 2 * N <= group_channels_; c += 2 * N) {
            reassemble_lanes<kOutputs, 2, N>(sources, weights, at, c);
        }
        for (; c + N <= group_channels_; c += N) {
            reassemble_lanes<kOutputs, 1, N>(sources, weights, at, c);
        }
        for (; c < group_channels_; ++c) {
            reassemble_lanes<kOutputs, 1, 1>(sources, weights, at, c);
        }
    }

    template <int kOutputs, int kVectors, int kCount>
    void reassemble_lanes(T const* const* sources, Sum const* weights, T* const* to, Index c) {
        Vector<Sum, kCount> sums[kOutputs][kVectors] = {};
        for (Index tap = 0; tap < taps_; ++tap, weights += s_ * s_) {
            T const* const source = sources[tap] + c;
            Vector<Sum, kCount> values[kVectors];
            for (int i = 0; i < kVectors; ++i) values[i] = load<kCount>(source + i * kCount);
            for (int q = 0; q < kOutputs; ++q) {
                for (int i = 0; i < kVectors; ++i) sums[q][i] += values[i] * weights[q];
            }
        }
        for (int q = 0; q < kOutputs; ++q) {
            for (int i = 0; i < kVectors; ++i) store<kCount>(to[q] + c + i * kCount, sums[q][i]);
        }
    }

    void clear_padding(Tile const& tile) {
        for (Index y = tile.first_row * s_; y < tile.last_row * s_; ++y) {
            for (Index x = tile.first_column * s_; x < tile.last_column * s_; ++x) {
                T* const to = out_ + tile.image * task_.out.image + y * task_.out.row +
                              x * task_.out.column + p_.channels;
                for (Index c = 0; c < task_.out_padding; ++c) to[c] = T{};
            }
        }
    }

    CarafeTask const& task_;
    CarafeParams const& p_;
    Index k_, taps_, s_, group_channels_;
    T const* features_;
    T const* masks_;
    T* out_;
    Sum* weights_;
    Sum* packed_;
    unsigned char* staged_;
    unsigned char* line_;
};

void carafe_rows(CarafeTask const& task, Index begin, Index end, unsigned char* workspace) {
    switch (task.params.dtype) {
        case DType::kFloat32:
            return Rows<float, float>(task, workspace).run(begin, end);
        case DType::kFloat16:
            return Rows<Half, float>(task, workspace).run(begin, end);
        case DType::kBFloat16:
            return Rows<BFloat16, float>(task, workspace).run(begin, end);
        case DType::kFloat64:
            return Rows<double, double>(task, workspace).run(begin, end);
    }
}

}  // namespace carafe::CARAFE_ISA
