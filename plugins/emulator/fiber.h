// A stack of its own that a function runs on, with switches to and fro by hand. The threads of an
// emulated block are fibers: one stops at a barrier and another goes on.
#pragma once

#include <ucontext.h>
#include <csetjmp>
#include <cstddef>

namespace carafe::emulator {

class Fiber {
  public:
    using Entry = void (*)(void*);

    /// `entry` must not return: it suspends instead.
    Fiber(Entry entry, void* argument);
    ~Fiber();
    Fiber(Fiber const&) = delete;
    Fiber& operator=(Fiber const&) = delete;

    /// Goes on inside the fiber until it suspends.
    void resume();

    /// Goes back to where resume() was called; called on the fiber itself.
    void suspend();

  private:
    static void start(unsigned high, unsigned low);

    Entry entry_;
    void* argument_;
    std::byte* memory_;  // a guard page, then the stack
    ucontext_t context_;
    bool started_ = false;
    std::jmp_buf inside_, outside_;
    // AddressSanitizer's view of the two stacks.
    void* fake_inside_ = nullptr;
    void* fake_outside_ = nullptr;
    void const* outside_bottom_ = nullptr;
    std::size_t outside_size_ = 0;
};

}  // namespace carafe::emulator
