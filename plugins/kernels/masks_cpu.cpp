// Pasting and encoding masks. Operations and their order are those of carafe_deploy/masks.py, whose
// comments tell why, so that both give the same bytes.
#include "masks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace carafe {

namespace {

// --- COCO's encoding -----------------------------------------------------------------------------

/// Writes lengths of runs as pycocotools' rleToString does: each as its difference to the last but
/// one, in groups of five bits.
class Encoder {
  public:
    explicit Encoder(Encodings out) : out_(out) { out_.offsets[0] = 0; }

    void begin() {
        previous_[0] = previous_[1] = position_ = 0;
        lengths_ = 0;
        open_end_ = kNone;
    }

    /// The next run of mask pixels; one that begins where the last ended goes on with it.
    void add(std::int64_t first, std::int64_t end) {
        if (first != open_end_) {
            if (open_end_ != kNone) change(open_end_);
            change(first);
        }
        open_end_ = end;
    }

    /// After the last run of a mask.
    void end(std::int64_t pixels) {
        if (open_end_ != kNone) change(open_end_);
        if (pixels > position_) change(pixels);
        *++out_.offsets = size_;
    }

  private:
    static constexpr std::int64_t kNone = -1;

    void change(std::int64_t position) {
        std::int64_t const length = position - position_;
        position_ = position;
        // The third is written as it is, too.
        std::int64_t rest = lengths_ > 2 ? length - previous_[lengths_ & 1] : length;
        previous_[lengths_++ & 1] = length;
        bool more = true;
        while (more) {
            std::int64_t const bits = rest & 0x1f;
            rest >>= 5;
            more = (bits & 0x10) != 0 ? rest != -1 : rest != 0;
            if (size_ < out_.capacity) {
                out_.text[size_] = static_cast<char>((more ? bits | 0x20 : bits) + 48);
            }
            ++size_;
        }
    }

    Encodings out_;
    std::int64_t size_ = 0, position_ = 0, open_end_ = kNone;
    std::int64_t previous_[2] = {};
    std::int64_t lengths_ = 0;
};

// --- where pixels fall between cells -------------------------------------------------------------

/// Pixels from `first` on whose centres lie between the framed cells `cell` (0 is outside) and the
/// next one; the first and the last of them at these distances from it, in cells.
struct Stretch {
    std::int64_t first, pixels;
    std::int32_t cell;
    float begin, end;
};

struct Sample {
    std::int32_t cell;
    float fraction;
};

/// Pixels along one axis of a box.
class Axis {
  public:
    Axis(float low, float high, std::int32_t edge, std::int32_t cells, double threshold)
        : low_(low), extent_(high - low), cells_(static_cast<float>(cells)) {
        if (!(extent_ > 0 && extent_ < std::numeric_limits<float>::infinity())) return;
        double const reach = (0.5 - threshold) * static_cast<double>(extent_) / cells;
        double const limit = edge;
        double const first = std::floor(static_cast<double>(low) - reach) - 1;
        double const last = std::ceil(static_cast<double>(high) + reach) + 1;
        // Neither is NaN; both may lie anywhere.
        first_ = static_cast<std::int64_t>(std::clamp(first, 0.0, limit));
        last_ = static_cast<std::int64_t>(std::clamp(last, 0.0, limit));
        while (first_ < last_ && !(position(first_) >= -1)) ++first_;
    }

    std::int64_t first() const { return first_; }

    /// Calls use(pixel, sample) for each pixel that the mask can reach; returns the one after them.
    template <typename Use>
    std::int64_t each(Use const& use) const {
        std::int64_t pixel = first_;
        for (; pixel < last_; ++pixel) {
            float const at = position(pixel);
            if (!(at < cells_)) break;
            float const cell = std::floor(at);
            use(pixel, Sample{static_cast<std::int32_t>(cell) + 1, at - cell});
        }
        return pixel;
    }

  private:
    float position(std::int64_t pixel) const {
        float const centre = static_cast<float>(pixel) + 0.5f;
        float const grid = (centre - low_) / extent_ * 2.0f - 1.0f;
        return ((grid + 1.0f) * cells_ - 1.0f) / 2.0f;
    }

    float low_, extent_, cells_;
    std::int64_t first_ = 0, last_ = 0;
};

// --- one mask ------------------------------------------------------------------------------------

float lerp(float start, float stop, float at) {
    return (stop - start) * at + start;
}

/// States of several stretches.
using Word = std::uint64_t;

Word read_word(unsigned char const* from) {
    Word word = 0;
    std::memcpy(&word, from, sizeof word);
    return word;
}

float rounded(double value) {
    bool const fits = value <= static_cast<double>(std::numeric_limits<float>::max());
    return fits ? static_cast<float>(value) : std::numeric_limits<float>::infinity();
}

/// Memory for one mask at a time.
class Paster {
  public:
    Paster(PasteParams const& params, Encoder& encoder)
        : p_(params),
          encoder_(encoder),
          threshold_(rounded(params.threshold)),
          rows_(static_cast<std::size_t>(params.cells) + 2),
          frame_(rows_ * rows_),
          column_(rows_),
          above_(rows_),
          below_(rows_),
          begin_at_(rows_),
          end_at_(rows_),
          begins_(rows_),
          ends_(rows_),
          at_begin_(rows_ + sizeof(Word)),
          at_end_(1 + rows_ + sizeof(Word)) {
        stretches_.reserve(rows_);
    }

    void paste(float const* probability, float const* box) {
        Axis const across(box[0], box[2], p_.width, p_.cells, p_.threshold);
        Axis const down(box[1], box[3], p_.height, p_.cells, p_.threshold);
        set_stretches(down);
        encoder_.begin();
        if (!stretches_.empty()) {
            set_frame(probability);
            across.each([&](std::int64_t column, Sample at) { paste_column(column, at); });
        }
        encoder_.end(std::int64_t{p_.height} * p_.width);
    }

  private:
    void set_stretches(Axis const& down) {
        stretches_.clear();
        stop_ = down.each([&](std::int64_t row, Sample at) {
            if (stretches_.empty() || stretches_.back().cell != at.cell) {
                stretches_.push_back({row, 0, at.cell, at.fraction, at.fraction});
            }
            stretches_.back().pixels = row - stretches_.back().first;
            stretches_.back().end = at.fraction;
        });
        for (std::size_t i = 0; i < stretches_.size(); ++i) {
            begin_at_[i] = stretches_[i].begin;
            end_at_[i] = stretches_[i].end;
        }
    }

    /// Column by column; cell i of the mask is row and column i + 1, and outside all is zero.
    void set_frame(float const* probability) {
        for (std::int32_t row = 0; row < p_.cells; ++row) {
            for (std::int32_t column = 0; column < p_.cells; ++column) {
                frame_[(static_cast<std::size_t>(column) + 1) * rows_ + row + 1] =
                    probability[std::int64_t{row} * p_.cells + column];
            }
        }
    }

    void paste_column(std::int64_t column, Sample at) {
        float const* const left = frame_.data() + at.cell * rows_;
        float const* const right = left + rows_;
        for (std::size_t i = 0; i < rows_; ++i) column_[i] = lerp(left[i], right[i], at.fraction);
        std::size_t const count = stretches_.size();
        for (std::size_t i = 0; i < count; ++i) {
            above_[i] = column_[stretches_[i].cell];
            below_[i] = column_[stretches_[i].cell + 1];
        }
        // States at both ends of every stretch; before the first and after the last one zero.
        unsigned char* const at_begin = at_begin_.data();
        unsigned char* const at_end = at_end_.data() + 1;
        sample(begin_at_.data(), begins_.data(), at_begin);
        sample(end_at_.data(), ends_.data(), at_end);
        at_begin[count] = at_end[count] = 0;
        std::int64_t const top = column * p_.height;
        std::int64_t first = 0;
        auto const change = [&](std::int64_t row, bool begins) {
            if (begins) {
                first = top + row;
            } else {
                encoder_.add(first, top + row);
            }
        };
        for (std::size_t word = 0; word <= count; word += sizeof(Word)) {
            Word const begin = read_word(at_begin + word), end = read_word(at_end + word);
            if (begin == end && begin == read_word(at_end + word - 1)) continue;
            std::size_t const stop = std::min(count + 1, word + sizeof(Word));
            for (std::size_t i = word; i < stop; ++i) {
                if (at_begin[i] != at_end[i - 1]) {
                    change(i == count ? stop_ : stretches_[i].first, at_begin[i] != 0);
                }
                if (at_begin[i] != at_end[i]) change(row_within(i), at_end[i] != 0);
            }
        }
    }

    /// Values and states of all stretches at one of their ends.
    void sample(float const* at, float* __restrict values, unsigned char* __restrict states) const {
        float const *const above = above_.data(), *const below = below_.data();
        float const threshold = threshold_;
        std::size_t const count = stretches_.size();
        for (std::size_t i = 0; i < count; ++i) values[i] = lerp(above[i], below[i], at[i]);
        for (std::size_t i = 0; i < count; ++i) states[i] = values[i] >= threshold;
    }

    /// The first pixel of the state at the end of a stretch.
    std::int64_t row_within(std::size_t at) const {
        Stretch const& stretch = stretches_[at];
        double const begin = begins_[at], end = ends_[at];
        auto const pixels = static_cast<double>(stretch.pixels);
        double const crossing = (threshold_ - begin) / (end - begin) * pixels;
        double const after = end > begin ? std::ceil(crossing) : std::floor(crossing) + 1;
        // Where a probability was not finite, `after` is NaN.
        double const bounded = !(after >= 1) ? 1 : after > pixels ? pixels : after;
        return stretch.first + static_cast<std::int64_t>(bounded);
    }

    PasteParams const& p_;
    Encoder& encoder_;
    float threshold_;
    std::size_t rows_;
    std::int64_t stop_ = 0;
    std::vector<Stretch> stretches_;
    std::vector<float> frame_, column_, above_, below_, begin_at_, end_at_, begins_, ends_;
    std::vector<unsigned char> at_begin_, at_end_;
};

}  // namespace

void paste_masks_cpu(
    PasteParams const& p, float const* probabilities, float const* boxes, Encodings out) {
    Encoder encoder(out);
    Paster paster(p, encoder);
    for (std::int64_t mask = 0; mask < p.masks; ++mask) {
        paster.paste(probabilities + mask * p.cells * p.cells, boxes + 4 * mask);
    }
}

}  // namespace carafe
