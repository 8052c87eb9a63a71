// Element types, memory layouts and the text of an error, shared by all operators.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

namespace carafe {

enum class DType : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

/// Order of the axes in memory; shapes are always written [N, C, H, W].
enum class Layout : std::int32_t { kNCHW = 0, kNHWC = 1 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
    return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

constexpr char const* name_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kFloat16:
            return "float16";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kFloat64:
            return "float64";
    }
    return "an unknown type";
}

/// Most elements of a tensor: more than any address space holds, and bytes of them fit in 64 bits.
constexpr std::int64_t kMostElements = std::int64_t{1} << 48;

/// Elements of a tensor whose sizes are at least 0; beyond kMostElements one more than that.
constexpr std::int64_t elements_of(std::initializer_list<std::int64_t> sizes) {
    std::int64_t product = 1;
    for (std::int64_t const size : sizes) {
        if (size == 0) return 0;
    }
    for (std::int64_t const size : sizes) {
        if (product > kMostElements / size) return kMostElements + 1;
        product *= size;
    }
    return product;
}

/// One error message in a fixed buffer: nothing here allocates or throws.
struct Message {
    char text[256] = {};

    /// Formats like printf; returns false, so that a check can end with `return message.set(...)`.
    __attribute__((format(printf, 2, 3))) bool set(char const* format, ...) {
        std::va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        return false;
    }
};

}  // namespace carafe
