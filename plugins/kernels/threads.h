// Threads of the CPU twins: a caller's pool, else threads that are started for one call and joined,
// so that nothing outlives a call or a fork.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace carafe {

/// A caller's pool: `run` calls work(data, i) for each i below `pieces` and returns after the last.
struct Pool {
    void (*run)(
        void* pool, std::int64_t pieces, void (*work)(void* data, std::int64_t piece), void* data);
    void* pool;
};

/// Of the calling thread; without `run` there is none.
inline Pool& current_pool() {
    static thread_local Pool pool{};
    return pool;
}

/// How many pieces parallel_for() makes, so that each can have memory of its own.
inline std::int64_t pieces_of(std::int64_t count, std::int64_t grain, int threads) {
    if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, threads);
}

/// Calls `work(begin, end)` over [0, count) cut into at most `threads` contiguous pieces of at
/// least `grain` items; the calling thread takes the first. `threads` 0: one a processor. `work`
/// does not throw, hence does not allocate: in a thread that would end the process.
template <typename Work>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, Work const& work) {
    if (count <= 0) return;
    std::int64_t const pieces = pieces_of(count, grain, threads);
    if (Pool const pool = current_pool(); pool.run != nullptr && pieces > 1) {
        auto piece_of = [&](std::int64_t piece) {
            work(count * piece / pieces, count * (piece + 1) / pieces);
        };
        pool.run(
            pool.pool, pieces,
            [](void* data, std::int64_t piece) {
                (*static_cast<decltype(piece_of)*>(data))(piece);
            },
            &piece_of);
        return;
    }
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(pieces - 1));
    std::int64_t piece = 1;
    try {
        for (; piece < pieces; ++piece) {
            others.emplace_back([&work, first = count * piece / pieces,
                                 last = count * (piece + 1) / pieces] { work(first, last); });
        }
    } catch (std::exception const&) {  // no thread, or no memory for one: the caller does the rest
        work(count * piece / pieces, count);
    }
    work(std::int64_t{0}, count / pieces);
    for (std::thread& other : others) other.join();
}

}  // namespace carafe
