// Turns findings of the compiler's checks in kernels (-fsanitize=alignment and the like) into
// errors of the launch, as a GPU reports a misaligned access. Built only where no sanitizer's own
// runtime does this.
#include "emulator.h"

namespace {

struct Place {
    char const* file;
    std::uint32_t line;
    std::uint32_t column;
};

/// Every finding's data starts with its place in the source.
[[noreturn]] void fail(cudaError_t error, void const* data, char const* what) {
    Place const& place = *static_cast<Place const*>(data);
    carafe::emulator::detail::fail(error, "%s:%u: %s", place.file, place.line, what);
}

}  // namespace

// The names are the compiler's.
extern "C" {

void __ubsan_handle_type_mismatch_v1(void* data, std::uintptr_t) {
    fail(cudaErrorMisalignedAddress, data, "access through a misaligned pointer");
}

void __ubsan_handle_out_of_bounds(void* data, std::uintptr_t) {
    fail(cudaErrorIllegalAddress, data, "index beyond an array");
}

void __ubsan_handle_shift_out_of_bounds(void* data, std::uintptr_t, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "shift by a negative or too large number");
}

void __ubsan_handle_divrem_overflow(void* data, std::uintptr_t, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "integer division by zero");
}

void __ubsan_handle_add_overflow(void* data, std::uintptr_t, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "signed overflow in an addition");
}

void __ubsan_handle_sub_overflow(void* data, std::uintptr_t, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "signed overflow in a subtraction");
}

void __ubsan_handle_mul_overflow(void* data, std::uintptr_t, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "signed overflow in a multiplication");
}

void __ubsan_handle_negate_overflow(void* data, std::uintptr_t) {
    fail(cudaErrorLaunchFailure, data, "signed overflow in a negation");
}
}
