// ucontext makes the stack; _setjmp and _longjmp switch, since swapcontext calls the kernel twice.
// The checked longjmp of fortified builds takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE

#include "fiber.h"

#include <sys/mman.h>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace carafe::emulator {

namespace {

constexpr std::size_t kGuardBytes = 64 * 1024;  // at least a page on every machine
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

// What AddressSanitizer needs to know around every switch; nothing in other builds.
void before_switch(
    [[maybe_unused]] void** fake_stack, [[maybe_unused]] void const* bottom,
    [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#endif
}

void after_switch(
    [[maybe_unused]] void* fake_stack, [[maybe_unused]] void const** old_bottom,
    [[maybe_unused]] std::size_t* old_size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_size);
#endif
}

}  // namespace

Fiber::Fiber(Entry entry, void* argument) : entry_(entry), argument_(argument) {
    void* const memory = mmap(
        nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) std::abort();
    memory_ = static_cast<std::byte*>(memory);
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_ + kGuardBytes;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    auto const self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(
        &context_, reinterpret_cast<void (*)()>(&Fiber::start), 2,
        static_cast<unsigned>(static_cast<std::uint64_t>(self) >> 32), static_cast<unsigned>(self));
}

Fiber::~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(memory_ + kGuardBytes, kStackBytes);
#endif
    munmap(memory_, kGuardBytes + kStackBytes);
}

void Fiber::start(unsigned high, unsigned low) {  // makecontext hands over ints, not pointers
    auto* const self = reinterpret_cast<Fiber*>(
        static_cast<std::uintptr_t>(static_cast<std::uint64_t>(high) << 32 | low));
    after_switch(nullptr, &self->outside_bottom_, &self->outside_size_);
    self->entry_(self->argument_);
    std::abort();
}

void Fiber::resume() {
    before_switch(&fake_outside_, memory_ + kGuardBytes, kStackBytes);
    if (_setjmp(outside_) == 0) {
        if (started_) _longjmp(inside_, 1);
        started_ = true;
        setcontext(&context_);
    }
    after_switch(fake_outside_, nullptr, nullptr);
}

void Fiber::suspend() {
    before_switch(&fake_inside_, outside_bottom_, outside_size_);
    if (_setjmp(inside_) == 0) _longjmp(outside_, 1);
    after_switch(fake_inside_, &outside_bottom_, &outside_size_);
}

}  // namespace carafe::emulator
