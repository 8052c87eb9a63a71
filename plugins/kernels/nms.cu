// Batched NMS, exact for any number of candidates a label.
//
// suppress_labels, one block a label of an image: collects the candidates above the score threshold
// as 64-bit keys (score, index) with warp ballots and sorts as many as there are (bitonic, in
// shared memory; a warp sorts 64 by shuffles), then goes through them in tiles of 64. A warp takes
// four of a tile's candidates, whose boxes stay in registers, and compares them with all boxes kept
// so far, 32 at a time until all four are suppressed, then with the tile itself; so every candidate
// gets the bits of the earlier ones that suppress it. Each warp settles the tile from those bits by
// itself: a candidate with a kept suppressor goes, one whose suppressors are all gone is kept. The
// label ends with its max_output-th kept box. Nothing is quadratic in memory, and no order of
// atomics shows in the result, because keys are distinct and sorted.
//
// Labels of more than 4,096 candidates keep their keys in the workspace. sort_runs: a block sorts a
// run of 1,024. merge_runs: 16 lanes a key find by binary search how many keys of 16 runs are
// below, which is the key's rank among them; one merge serves 16,384 candidates, two 262,144.
// suppress_window then does as suppress_labels, one window after the other: up to the 1,024th
// candidate, the 4,096th, the 16,384th and so on. Before each but the first, strike_keys clears on
// all of the GPU what is suppressed already, so that the one block sees little else than what it
// keeps.
//
// A few labels of 129 to 1,024 candidates, as the RPN's levels, would leave most of the GPU idle
// with a block each. So rank_spread sorts them, mark_suppressors finds on all of the GPU which
// better candidates suppress each, 64 a word, and walk_suppressors goes through these bits with a
// block a label: the words of the next tile come while the last one is settled, so a tile costs no
// access to memory that anything waits for.
//
// rank_kept: the rank of a kept box among those of all labels is the number of better keys in each
// label's sorted list. Up to 32 lanes share the labels of one key and stop at max_output.
//
// Versions                               v1                          v2 (this file)
//   barriers to sort 1,024 / 4,096       55 / 78                     11 / 19
//   sort of 10,000                       one block: 105 steps over   ten blocks: 11 barriers; then
//                                        16,384 keys in L2, 27 MB    one search of 10 steps a key
//   instructions a pair of boxes         48, and many divisions      20.5; divides near threshold
//   barriers a tile of 64                3                           2
//   settling a tile                      a step a kept box, one      a round of four ballots a link
//                                        thread (up to 64)           of its longest chain
//   rank of a key among L labels         L searches, one by one      ceil(L / 32), up to 32 at once
//   kernels: short, few / 10,000         2 / 2                       2, 4 / 8
//   registers sm_75, sm_90, sm_120       45, 32, 55                  64, 64, 64; others up to 64,
//                                                                    58, 61
//   threads an SM, of suppress_labels    1,024; 2,048; 1,024         1,024 each
//   shared memory at 1,000 / 10,000      9.8 / 33.8 KB               9.6 / 33.6 KB
// No local memory, no spills. A block reads 20 bytes a candidate at most: 0.1 MB for 5 x 1,000, 1.6
// MB for 80 x 1,000: latency and comparisons take the time, not bytes.
//
// Microseconds on an H100: in a CUDA graph (benchmarks/results/h100/peer.json), what counting
// instructions and latencies had promised, too little wherever few blocks work, and torchvision's
// batched_nms, by events (operators_gpu.json beside it):
//                                         measured   promised   torchvision
//   RPN 5 x 1,000, keep 1,000                  106         44         1,934
//   box head 80 x 1,000, keep 100               20         10           817
//     with all scores above                     37         12        26,275
//   1 x 10,000, keep 100                        28         20         2,402
// The RPN's was before it was spread: 5 blocks left 127 of 132 multiprocessors idle
// (suppress_labels issued in 2 % of all cycles: ncu.json beside it). Spread, 5 x 1,000 are 680
// blocks that compare 4,096 pairs each, and 16 tiles of three barriers; not measured yet.
#include "cuda_kernels.h"
#include "nms_rank.cuh"
#include "nms_spread.cuh"

namespace carafe {

cudaError_t launch_nms(
    NmsParams const& p, float const* boxes, float const* scores, std::int32_t* num_dets,
    std::int64_t* indices, void* workspace, cudaStream_t stream) {
    if (p.batch == 0) return cudaSuccess;
    NmsWorkspace const layout(p);
    auto* const bytes = static_cast<unsigned char*>(workspace);
    Lists const lists{
        reinterpret_cast<PackedBox*>(bytes + layout.kept_boxes),
        reinterpret_cast<std::uint64_t*>(bytes + layout.kept_keys),
        reinterpret_cast<std::int32_t*>(bytes + layout.counts)};
    auto const runs_at = [&](int half) -> Runs {
        return {
            reinterpret_cast<std::uint64_t*>(bytes + layout.keys[half]),
            reinterpret_cast<std::int32_t*>(bytes + layout.run_counts[half])};
    };
    std::int64_t const blocks = std::int64_t{p.batch} * p.labels;
    if (blocks > 0) {
        dim3 const grid(static_cast<std::uint32_t>(blocks));
        cudaError_t error = cudaSuccess;
        if (runs_of(p) > 0) {
            Runs runs[2] = {runs_at(0), runs_at(1)};
            error = sort_long_labels(p, runs, scores, stream);
            if (error == cudaSuccess) {
                error = suppress_long_labels(p, lists, runs[0], boxes, stream);
            }
        } else if (is_spread(p)) {
            Spread const spread{
                reinterpret_cast<PackedBox*>(bytes + layout.spread_boxes),
                reinterpret_cast<std::uint64_t*>(bytes + layout.spread_keys),
                reinterpret_cast<std::uint64_t*>(bytes + layout.suppressors),
                reinterpret_cast<std::int32_t*>(bytes + layout.spread_counts)};
            error = suppress_spread(p, lists, spread, boxes, scores, stream);
        } else {
            std::uint32_t const keys =
                power_of_two_from(static_cast<std::uint32_t>(p.candidates), kChunk);
            error = launch(
                suppress_labels, grid, dim3(kThreads), sizeof(Tile) + keys * sizeof(std::uint64_t),
                stream, p, lists, boxes, scores);
        }
        if (error != cudaSuccess) return error;
    }
    auto const labels = static_cast<std::uint32_t>(p.labels < 32 ? p.labels : 32);
    std::uint32_t const lanes = power_of_two_from(labels, 1);
    return launch(
        rank_kept, grid_of(std::int64_t{p.labels} * most_kept(p), kSmallThreads / lanes, p.batch),
        dim3(kSmallThreads), std::size_t{0}, stream, p, lists, static_cast<std::int32_t>(lanes),
        num_dets, indices);
}

}  // namespace carafe
