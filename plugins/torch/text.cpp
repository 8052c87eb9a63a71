#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "shim.h"

namespace carafe::torch_adapter {
namespace {

struct TypeName {
    std::int32_t (*number)();
    char const* name;
    bool is_floating_point;
};

constexpr TypeName kTypes[] = {
    {aoti_torch_dtype_float16, "torch.float16", true},
    {aoti_torch_dtype_float32, "torch.float32", true},
    {aoti_torch_dtype_float64, "torch.float64", true},
    {aoti_torch_dtype_bfloat16, "torch.bfloat16", true},
    {aoti_torch_dtype_float8_e5m2, "torch.float8_e5m2", true},
    {aoti_torch_dtype_float8_e4m3fn, "torch.float8_e4m3fn", true},
    {aoti_torch_dtype_float8_e5m2fnuz, "torch.float8_e5m2fnuz", true},
    {aoti_torch_dtype_float8_e4m3fnuz, "torch.float8_e4m3fnuz", true},
    {aoti_torch_dtype_uint8, "torch.uint8", false},
    {aoti_torch_dtype_uint16, "torch.uint16", false},
    {aoti_torch_dtype_uint32, "torch.uint32", false},
    {aoti_torch_dtype_uint64, "torch.uint64", false},
    {aoti_torch_dtype_int8, "torch.int8", false},
    {aoti_torch_dtype_int16, "torch.int16", false},
    {aoti_torch_dtype_int32, "torch.int32", false},
    {aoti_torch_dtype_int64, "torch.int64", false},
    {aoti_torch_dtype_bool, "torch.bool", false},
    {aoti_torch_dtype_complex32, "torch.complex32", false},
    {aoti_torch_dtype_complex64, "torch.complex64", false},
    {aoti_torch_dtype_complex128, "torch.complex128", false},
};

TypeName const* name_of(Type type) {
    for (TypeName const& each : kTypes) {
        if (each.number() == type.number) return &each;
    }
    return nullptr;
}

char const* name_of_device(std::int32_t type) {
    if (type == aoti_torch_device_type_cpu()) return "cpu";
    if (type == aoti_torch_device_type_cuda()) return "cuda";
    if (type == aoti_torch_device_type_meta()) return "meta";
    if (type == aoti_torch_device_type_mps()) return "mps";
    if (type == aoti_torch_device_type_xpu()) return "xpu";
    if (type == aoti_torch_device_type_privateuse1()) return "privateuseone";
    return "another device";
}

}  // namespace

bool Type::is_floating_point() const {
    TypeName const* const found = name_of(*this);
    return found != nullptr && found->is_floating_point;
}

void Text::append(char const* text) {
    std::size_t const room = sizeof text_ - 1 - length_;
    std::size_t const taken = std::min(room, std::strlen(text));
    std::memcpy(text_ + length_, text, taken);
    length_ += taken;
}

void Text::append_integer(std::int64_t number) {
    char digits[24];
    std::snprintf(digits, sizeof digits, "%lld", static_cast<long long>(number));
    append(digits);
}

void Text::append(double number) {
    if (std::isnan(number)) return append("nan");
    if (std::isinf(number)) return append(number < 0 ? "-inf" : "inf");
    char digits[40];
    int precision = 0;  // of the fewest digits that are read as the same number
    do {
        std::snprintf(digits, sizeof digits, "%.*e", precision, number);
    } while (std::strtod(digits, nullptr) != number && ++precision < 17);
    int const exponent = std::atoi(std::strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        std::snprintf(digits, sizeof digits, "%.*f", std::max(1, precision - exponent), number);
    }
    append(digits);
}

void Text::append_numbers(Sizes sizes) {
    for (std::int64_t i = 0; i < sizes.count; ++i) {
        if (i > 0) append(", ");
        append_integer(sizes[i]);
    }
}

void Text::append(Sizes sizes) {
    append("(");
    append_numbers(sizes);
    append(sizes.count == 1 ? ",)" : ")");
}

void Text::append(Listed list) {
    append("[");
    append_numbers(list.numbers);
    append("]");
}

void Text::append(Type type) {
    TypeName const* const found = name_of(type);
    append(found == nullptr ? "another type" : found->name);
}

void Text::append(Device device) {
    append(name_of_device(device.type));
    if (device.type == aoti_torch_device_type_cpu()) return;
    append(":");
    append_integer(device.index);
}

}  // namespace carafe::torch_adapter
