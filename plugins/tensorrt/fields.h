// An operator's attributes as TensorRT's plugin fields: read, listed, serialised, printed.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "types.h"

namespace carafe {

/// Most attributes an operator has.
constexpr std::int32_t kMaxFields = 8;

/// One attribute, tied to where its value lives.
struct Attribute {
    char const* name = nullptr;
    nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kUNKNOWN;
    void* data = nullptr;
    std::int32_t* length = nullptr;  ///< lists only: number of values
    std::int32_t capacity = 1;       ///< most values
};

inline Attribute attribute(char const* name, std::int32_t& value) {
    return {name, nvinfer1::PluginFieldType::kINT32, &value};
}

inline Attribute attribute(char const* name, float& value) {
    return {name, nvinfer1::PluginFieldType::kFLOAT32, &value};
}

template <int capacity>
Attribute attribute(char const* name, std::int32_t (&values)[capacity], std::int32_t& length) {
    return {name, nvinfer1::PluginFieldType::kINT32, values, &length, capacity};
}

struct Attributes {
    std::int32_t count = 0;
    Attribute at[kMaxFields];
};

/// The attributes as fields; `data` points at the values themselves, or is null in a mere list.
class FieldList {
  public:
    FieldList() = default;
    FieldList(FieldList const&) : FieldList() {}  // a copy's fields are its own: set them again
    FieldList& operator=(FieldList const&) = delete;

    nvinfer1::PluginFieldCollection const* set(Attributes const& attributes, bool with_values);

  private:
    nvinfer1::PluginField fields_[kMaxFields];
    nvinfer1::PluginFieldCollection collection_;
};

/// Sets every attribute from `fields`; false when one is missing, unknown, given twice, or has the
/// wrong type or length.
bool read(
    nvinfer1::PluginFieldCollection const* fields, Attributes const& attributes, Message& message);

/// "kernel_size=5 group_size=1 scale_factor=2"
void print(Attributes const& attributes, char* text, std::size_t size);

}  // namespace carafe
