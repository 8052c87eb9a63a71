// Messages as the Python package writes them: shapes are tuples, types torch.float32, numbers as
// Python prints them. Nothing here needs a C++ library newer than torch's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace carafe::torch_adapter {

/// Printed as a tuple.
struct Sizes {
    std::int64_t const* data;
    std::int64_t count;

    std::int64_t operator[](std::int64_t axis) const { return data[axis]; }
    Sizes first(std::int64_t axes) const { return {data, axes}; }
};

/// Printed as a list.
struct Listed {
    Sizes numbers;
};

/// A torch.dtype, by its number in torch.
struct Type {
    std::int32_t number;

    bool operator==(Type other) const { return number == other.number; }
    bool operator!=(Type other) const { return number != other.number; }
    bool is_floating_point() const;
};

/// A torch.device, by its numbers in torch.
struct Device {
    std::int32_t type, index;

    bool operator==(Device other) const { return type == other.type && index == other.index; }
    bool operator!=(Device other) const { return !(*this == other); }
};

/// All parts one after the other; what exceeds the buffer is cut off.
class Text {
  public:
    template <typename... Parts>
    explicit Text(Parts const&... parts) {
        (append(parts), ...);
    }
    char const* c_str() const { return text_; }

  private:
    void append(char const* text);
    void append(double number);
    void append(Sizes sizes);
    void append(Listed list);
    void append(Type type);
    void append(Device device);
    template <typename Number, std::enable_if_t<std::is_integral_v<Number>, int> = 0>
    void append(Number number) {
        append_integer(static_cast<std::int64_t>(number));
    }
    void append_integer(std::int64_t number);
    void append_numbers(Sizes sizes);

    char text_[1024] = {};
    std::size_t length_ = 0;
};

}  // namespace carafe::torch_adapter
