// CARAFE on the CPU: prepares a call, chooses the instruction set and shares out the rows.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <thread>

#include "carafe.h"
#include "carafe_cpu_task.h"
#include "cpu_isa.h"
#include "huge_pages.h"
#include "threads.h"

namespace carafe {
namespace {

constexpr std::int64_t kMaxLanes = 16;            // floats in the longest vector
constexpr std::int64_t kPackedBytes = 256 << 10;  // weights of a tile: they stay in an L2 cache
constexpr std::int64_t kThreadWork = 1 << 18;     // multiply-adds that are worth a thread

constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) {
    return (value + step - 1) / step * step;
}

CarafeTask prepare(CarafeParams const& p, void const* features, void const* masks, void* out) {
    bool const encoded = p.source == MaskSource::kEncoded;
    std::int64_t const s = p.scale, taps = std::int64_t{p.kernel_size} * p.kernel_size;
    std::int64_t const out_height = s * p.height, out_width = s * p.width;
    CarafeTask task{};
    task.params = p;
    task.features = strides_of(p.layout, p.channels, p.height, p.width, p.feature_pitch);
    task.masks = strides_of(
        p.layout, mask_channels(p), encoded ? p.height : out_height, encoded ? p.width : out_width,
        p.mask_pitch);
    task.out = strides_of(p.layout, p.channels, out_height, out_width, p.out_pitch);
    task.out_padding = p.layout == Layout::kNHWC ? task.out.column - p.channels : 0;
    task.feature_data = features;
    task.mask_data = masks;
    task.out_data = out;

    std::int64_t const size = p.dtype == DType::kFloat64 ? 8 : 4;
    std::int64_t const weights = taps * s * s * size;  // of a source pixel
    // Even columns, whose weights fit for one row.
    std::int64_t const fitting =
        std::max(kPackedBytes / weights / kMaxLanes * kMaxLanes, kMaxLanes);
    std::int64_t const pieces = (p.width + fitting - 1) / fitting;
    task.tile_columns = (p.width + pieces - 1) / pieces;
    std::int64_t const vectors = round_up(task.tile_columns, kMaxLanes);
    std::int64_t const halo = p.kernel_size - 1;
    if (p.layout == Layout::kNHWC) {
        task.tile_rows = p.height;
        task.packed_bytes = round_up(task.tile_columns * weights, kCarafeAlignment);
        task.source_bytes = round_up(taps * std::int64_t{sizeof(void*)}, kCarafeAlignment);
        task.zero_bytes = round_up(p.channels / p.groups * size, kCarafeAlignment);
        task.staged_bytes = task.source_bytes + task.zero_bytes +
                            taps * round_up(task.tile_columns * s * s, kMaxLanes) * size;
    } else {
        task.tile_rows = std::clamp<std::int64_t>(kPackedBytes / (vectors * weights), 1, p.height);
        task.packed_bytes = task.tile_rows * vectors * weights;
        task.staged_bytes = kCarafeChannelBlock * (task.tile_rows + halo) *
                            round_up(task.tile_columns + halo, kMaxLanes) * size;
    }
    return task;
}

CarafeRows choose() {
    switch (cpu_isa()) {
#if defined(__x86_64__)
        case CpuIsa::kAvx512:
            return avx512::carafe_rows;
        case CpuIsa::kAvx2:
            return avx2::carafe_rows;
#endif
        default:
            return baseline::carafe_rows;
    }
}

struct Free {
    void operator()(unsigned char* memory) const {
        ::operator delete[](memory, std::align_val_t{kCarafeAlignment});
    }
};

}  // namespace

void carafe_cpu(
    CarafeParams const& p, void const* features, void const* masks, void* out, int threads) {
    static CarafeRows const compute_rows = choose();
    auto const bytes_written = static_cast<std::size_t>(out_elements(p)) * size_of(p.dtype);
    if (bytes_written == 0) return;
    use_huge_pages(out, bytes_written);
    if (p.channels == 0) {  // nothing but padding
        std::memset(out, 0, bytes_written);
        return;
    }
    std::int64_t const rows = std::int64_t{p.batch} * p.height;
    CarafeTask const task = prepare(p, features, masks, out);

    if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    std::int64_t const row_work =
        elements_of({p.channels, p.width, p.kernel_size, p.kernel_size, p.scale, p.scale});
    std::int64_t const grain = std::max<std::int64_t>(kThreadWork / row_work, 1);
    threads = static_cast<int>(std::clamp<std::int64_t>(rows / grain, 1, threads));
    // No more than this many workspaces, the largest of which has 2^40 bytes, can be had.
    threads = std::min(threads, 1 << 20);
    // All memory before the first thread: an allocation that fails may then throw.
    std::int64_t const bytes = round_up(task.packed_bytes + task.staged_bytes, kCarafeAlignment);
    std::unique_ptr<unsigned char[], Free> const workspace(new (std::align_val_t{
        kCarafeAlignment}) unsigned char[static_cast<std::size_t>(threads * bytes)]);
    std::atomic<int> next{0};
    parallel_for(rows, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        compute_rows(task, begin, end, workspace.get() + next++ * bytes);
    });
}

}  // namespace carafe
