#include "traffic.h"

#include <algorithm>
#include <set>

#include "cuda_runtime.h"

namespace carafe::emulator {

namespace {

constexpr std::uintptr_t kSector = 32, kLine = 128, kWord = 4, kBanks = 32;

TrafficRecorder* active = nullptr;

std::size_t running_thread() {
    return threadIdx.x + std::size_t{blockDim.x} * (threadIdx.y + blockDim.y * threadIdx.z);
}

Flow& flow_of(Traffic& traffic, bool is_store) {
    return is_store ? traffic.stores : traffic.loads;
}

}  // namespace

TrafficRecorder::TrafficRecorder() {
    active = this;
    set_observer(this);
}

TrafficRecorder::~TrafficRecorder() {
    set_observer(nullptr);
    active = nullptr;
}

void TrafficRecorder::add_array(std::string const& name, void const* begin, std::size_t bytes) {
    auto const first = reinterpret_cast<std::uintptr_t>(begin);
    Array array{{name, {}, {}}, first, first + bytes, {}};
    for (auto& seen : array.seen) seen.resize(bytes / kSector + 2);
    arrays_.push_back(std::move(array));
}

std::vector<Traffic> TrafficRecorder::traffic() const {
    std::vector<Traffic> all;
    for (Array const& array : arrays_) all.push_back(array.traffic);
    all.push_back(shared_);
    return all;
}

void TrafficRecorder::begin_launch(dim3 grid, dim3 block, std::size_t shared_bytes) {
    launches_.push_back({grid, block, shared_bytes});
    shared_begin_ = reinterpret_cast<std::uintptr_t>(detail::shared());
    shared_end_ = shared_begin_ + shared_bytes;
    std::size_t const threads = std::size_t{block.x} * block.y * block.z;
    executions_.resize(threads);
    calls_.resize(threads);
    requests_.resize((threads + 31) / 32);
}

void TrafficRecorder::begin_block() {
    ++block_;
    inside_ = true;
    for (auto& executions : executions_) std::fill(executions.begin(), executions.end(), 0u);
    for (auto& calls : calls_) calls.assign(1, 0);
}

void TrafficRecorder::end_block() {
    inside_ = false;
    for (auto& places : requests_) {
        for (auto& executions : places) {
            for (Request const& request : executions) count(request);
            executions.clear();
        }
    }
}

std::int32_t TrafficRecorder::array_of(std::uintptr_t address) const {
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
        if (address >= arrays_[i].begin && address < arrays_[i].end) {
            return static_cast<std::int32_t>(i);
        }
    }
    return -1;
}

void TrafficRecorder::record(
    std::uintptr_t place, std::uintptr_t address, std::size_t bytes, bool is_store) {
    if (!inside_) return;
    bool const is_shared = address >= shared_begin_ && address < shared_end_;
    std::int32_t const array = is_shared ? -1 : array_of(address);
    if (!is_shared && array < 0) return;
    std::size_t const thread = running_thread();
    // A function that was not inlined stands for a copy in each of its callers.
    std::uintptr_t const copy = calls_[thread].back() ^ place;
    std::size_t const number = places_.try_emplace(copy, places_.size()).first->second;
    auto& executions = executions_[thread];
    if (executions.size() <= number) executions.resize(number + 1);
    std::size_t const execution = executions[number]++;
    auto& places = requests_[thread / 32];
    if (places.size() <= number) places.resize(number + 1);
    if (places[number].size() <= execution) places[number].resize(execution + 1);
    Request& request = places[number][execution];
    request.lanes |= 1u << thread % 32;
    request.addresses[thread % 32] = address;
    request.bytes = static_cast<std::uint8_t>(bytes);
    request.is_store = is_store;
    request.array = array;
}

void TrafficRecorder::enter(std::uintptr_t caller) {
    if (!inside_) return;
    auto& calls = calls_[running_thread()];
    calls.push_back((calls.back() ^ caller) * 0x9e3779b97f4a7c15u);
}

void TrafficRecorder::leave() {
    if (inside_) calls_[running_thread()].pop_back();
}

void TrafficRecorder::count(Request const& request) {
    if (request.lanes == 0) return;
    Traffic& traffic =
        request.array < 0 ? shared_ : arrays_[static_cast<std::size_t>(request.array)].traffic;
    Flow& flow = flow_of(traffic, request.is_store);
    auto const lanes = static_cast<std::uint64_t>(__builtin_popcount(request.lanes));
    flow.accesses[__builtin_ctz(request.bytes)] += lanes;
    flow.bytes += lanes * request.bytes;
    ++flow.requests;
    flow.wavefronts += request.array < 0 ? bank_words(request) : lines(request);
    if (request.array < 0) return;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((request.lanes >> lane & 1u) == 0) continue;
        std::uintptr_t const first = request.addresses[lane];
        Array& array = arrays_[static_cast<std::size_t>(array_of(first))];
        std::uintptr_t const origin = array.begin / kSector;
        for (std::uintptr_t sector = first / kSector;
             sector <= (first + request.bytes - 1) / kSector; ++sector) {
            std::uint32_t& seen = array.seen[request.is_store][sector - origin];
            // Of the request's array, also where lanes read of several.
            flow.sectors += seen == 0;
            flow.block_sectors += seen != block_;
            seen = block_;
        }
    }
}

std::uint64_t TrafficRecorder::lines(Request const& request) {
    std::array<std::uintptr_t, 64> found;
    std::size_t count = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((request.lanes >> lane & 1u) == 0) continue;
        std::uintptr_t const first = request.addresses[lane];
        found[count++] = first / kLine;
        found[count++] = (first + request.bytes - 1) / kLine;
    }
    auto* const end = found.begin() + count;
    std::sort(found.begin(), end);
    return static_cast<std::uint64_t>(std::unique(found.begin(), end) - found.begin());
}

std::uint64_t TrafficRecorder::bank_words(Request const& request) {
    std::set<std::uintptr_t> words;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((request.lanes >> lane & 1u) == 0) continue;
        for (std::uintptr_t byte = 0; byte < request.bytes; byte += kWord) {
            words.insert((request.addresses[lane] + byte) / kWord);
        }
    }
    std::array<std::uint64_t, kBanks> banks{};
    for (std::uintptr_t const word : words) ++banks[word % kBanks];
    return *std::max_element(banks.begin(), banks.end());
}

}  // namespace carafe::emulator

// The names are the compiler's.
#define CARAFE_ACCESS(name, bytes, is_store)                               \
    void __tsan_##name(void* address) {                                    \
        if (carafe::emulator::active == nullptr) return;                   \
        carafe::emulator::active->record(                                  \
            reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)), \
            reinterpret_cast<std::uintptr_t>(address), bytes, is_store);   \
    }
#define CARAFE_ACCESSES(bytes)                         \
    CARAFE_ACCESS(read##bytes, bytes, false)           \
    CARAFE_ACCESS(unaligned_read##bytes, bytes, false) \
    CARAFE_ACCESS(write##bytes, bytes, true)           \
    CARAFE_ACCESS(unaligned_write##bytes, bytes, true)

extern "C" {
CARAFE_ACCESSES(1)
CARAFE_ACCESSES(2)
CARAFE_ACCESSES(4)
CARAFE_ACCESSES(8)
CARAFE_ACCESSES(16)

// Accesses of other widths are none that a GPU has: structures on the stack.
void __tsan_read_range(void*, std::size_t) {}
void __tsan_write_range(void*, std::size_t) {}
void __tsan_init() {}
void __tsan_func_entry(void* caller) {
    if (carafe::emulator::active == nullptr) return;
    carafe::emulator::active->enter(reinterpret_cast<std::uintptr_t>(caller));
}
void __tsan_func_exit() {
    if (carafe::emulator::active != nullptr) carafe::emulator::active->leave();
}
}
