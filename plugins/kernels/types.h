// Element types, memory layouts and the text of an error, shared by all operators.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

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
