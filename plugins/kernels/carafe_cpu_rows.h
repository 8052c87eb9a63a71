// CARAFE on the CPU, compiled once for each instruction set: before including this, a source names
// its namespace (CARAFE_ISA) and the length of a vector (CARAFE_VECTOR_BYTES).
//
// A tile of source pixels is done in two steps:
//   1. The weights of all its outputs, converted and normalised once for all channels, are packed
//      in the order in which step 2 reads them.
//   2. All outputs of a source pixel are summed together, so that they share each load of features:
//      vectors lie along the source's rows (NCHW, carafe_cpu_planes.h) or along the channels
//      (channels-last, carafe_cpu_pixels.h).
// A row of elements that no number of whole vectors fills ends with a vector that overlaps the one
// before it. Rows shorter than a vector take shorter vectors.
//
// Versions, CarafeEncoded in float32, NCHW, k = 5, s = 2, two cores of Zen 4, milliseconds
// (benchmarks/results/operators_cpu.json, v1 in an earlier state of that file):
//
//                                                   v1     v2  floor
//   256 x 52 x 84                                  2.55   2.64   1.09
//   256 x 104 x 168                                30.4   9.84   4.34
//   1 x 14 x 14, 100 maps                          2.81   1.49   0.05
//
//   v1  vectors along the result's rows: source rows staged with every pixel repeated, weights
//       shuffled into the result's order. 8 multiply-adds took 6 loads.
//   v2  vectors along the source's rows: nothing is repeated or shuffled but the results. With
//       AVX2, 12 multiply-adds take 7 loads and all 16 registers (3 channels x 4 outputs, 3
//       features, one weight). One thread, memory at hand: 3.8 to 3.6 ms on the first line.
//
// Most of the second line's gain is no arithmetic: faulting in the 72 MB of its result took longer
// than computing it. They now lie in huge pages (huge_pages.h), and v2 was measured in a process
// that keeps freed memory.
#pragma once

#include "carafe_cpu_pixels.h"
#include "carafe_cpu_planes.h"

namespace carafe::CARAFE_ISA {

template <typename Compute>
void for_tiles(CarafeTask const& task, Index begin, Index end, Compute const& compute) {
    CarafeParams const& p = task.params;
    while (begin < end) {
        Tile tile{};
        tile.image = begin / p.height;
        tile.first_row = begin % p.height;
        tile.last_row = tile.first_row + least(task.tile_rows, end - begin);
        tile.last_row = least<Index>(tile.last_row, p.height);
        for (Index x = 0; x < p.width; x += task.tile_columns) {
            tile.first_column = x;
            tile.last_column = least<Index>(p.width, x + task.tile_columns);
            compute(tile);
        }
        begin += tile.rows();
    }
}

/// `length` elements with vectors of at most N lanes.
template <template <typename, typename, int> class Compute, typename T, typename Sum, int N>
void with_lanes(CarafeTask const& task, Tile const& tile, Index length, unsigned char* workspace) {
    if constexpr (N > 1) {
        if (length < N) return with_lanes<Compute, T, Sum, N / 2>(task, tile, length, workspace);
    }
    Compute<T, Sum, N>(task, tile, workspace).run();
}

template <typename T, typename Sum>
void compute_rows(CarafeTask const& task, Index begin, Index end, unsigned char* workspace) {
    CarafeParams const& p = task.params;
    for_tiles(task, begin, end, [&](Tile const& tile) {
        if (p.layout == Layout::kNHWC) {
            with_lanes<Pixels, T, Sum, kLanes<Sum>>(task, tile, p.channels / p.groups, workspace);
        } else {
            with_lanes<Planes, T, Sum, kLanes<Sum>>(task, tile, tile.columns(), workspace);
        }
    });
}

void carafe_rows(CarafeTask const& task, Index begin, Index end, unsigned char* workspace) {
    switch (task.params.dtype) {
        case DType::kFloat32:
            return compute_rows<float, float>(task, begin, end, workspace);
        case DType::kFloat16:
            return compute_rows<Half, float>(task, begin, end, workspace);
        case DType::kBFloat16:
            return compute_rows<BFloat16, float>(task, begin, end, workspace);
        case DType::kFloat64:
            return compute_rows<double, double>(task, begin, end, workspace);
    }
}

}  // namespace carafe::CARAFE_ISA
