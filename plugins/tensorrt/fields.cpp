#include "fields.h"

#include <cstring>

namespace carafe {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace {

char const* name_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kFLOAT16:
            return "FLOAT16";
        case PluginFieldType::kFLOAT32:
            return "FLOAT32";
        case PluginFieldType::kFLOAT64:
            return "FLOAT64";
        case PluginFieldType::kINT8:
            return "INT8";
        case PluginFieldType::kINT16:
            return "INT16";
        case PluginFieldType::kINT32:
            return "INT32";
        case PluginFieldType::kCHAR:
            return "CHAR";
        case PluginFieldType::kINT64:
            return "INT64";
        default:
            return "another type";
    }
}

/// ONNX nodes name their plugin by these two; they are no attributes of the operator.
bool names_plugin(char const* field) {
    return std::strcmp(field, "plugin_version") == 0 || std::strcmp(field, "plugin_namespace") == 0;
}

std::int32_t index_of(char const* field, Attributes const& attributes) {
    for (std::int32_t i = 0; i < attributes.count; ++i) {
        if (std::strcmp(field, attributes.at[i].name) == 0) return i;
    }
    return -1;
}

/// All attributes are INT32 or FLOAT32.
static_assert(sizeof(float) == sizeof(std::int32_t));

bool read(PluginField const& field, Attribute const& attribute, Message& message) {
    if (field.type != attribute.type) {
        return message.set(
            "field %s has type %s, expected %s", field.name, name_of(field.type),
            name_of(attribute.type));
    }
    if (attribute.length == nullptr && field.length != 1) {
        return message.set("field %s has %d values, expected 1", field.name, field.length);
    }
    if (field.length < 1 || field.length > attribute.capacity) {
        return message.set(
            "field %s has %d values, expected 1 to %d", field.name, field.length,
            attribute.capacity);
    }
    if (field.data == nullptr) return message.set("field %s has no data", field.name);
    std::memcpy(
        attribute.data, field.data, static_cast<std::size_t>(field.length) * sizeof(std::int32_t));
    if (attribute.length != nullptr) *attribute.length = field.length;
    return true;
}

}  // namespace

PluginFieldCollection const* FieldList::set(Attributes const& attributes, bool with_values) {
    for (std::int32_t i = 0; i < attributes.count; ++i) {
        Attribute const& attribute = attributes.at[i];
        std::int32_t const length = attribute.length == nullptr ? 1 : *attribute.length;
        fields_[i] = {
            attribute.name, with_values ? attribute.data : nullptr, attribute.type,
            with_values ? length : attribute.capacity};
    }
    collection_ = {attributes.count, fields_};
    return &collection_;
}

bool read(PluginFieldCollection const* fields, Attributes const& attributes, Message& message) {
    if (fields == nullptr) return message.set("no fields are given");
    if (fields->nbFields > 0 && fields->fields == nullptr) {
        return message.set("%d fields are counted and none is given", fields->nbFields);
    }
    bool given[kMaxFields] = {};
    for (std::int32_t i = 0; i < fields->nbFields; ++i) {
        PluginField const& field = fields->fields[i];
        if (field.name == nullptr) return message.set("field %d has no name", i);
        std::int32_t const index = index_of(field.name, attributes);
        if (index < 0) {
            if (names_plugin(field.name)) continue;
            return message.set("field %s is unknown", field.name);
        }
        if (given[index]) return message.set("field %s is given twice", field.name);
        given[index] = true;
        if (!read(field, attributes.at[index], message)) return false;
    }
    for (std::int32_t i = 0; i < attributes.count; ++i) {
        if (!given[i]) return message.set("field %s is missing", attributes.at[i].name);
    }
    return true;
}

void print(Attributes const& attributes, char* text, std::size_t size) {
    std::size_t used = 0;
    text[0] = '\0';
    auto const append = [&](char const* format, auto... values) {
        if (used >= size) return;
        int const written = std::snprintf(text + used, size - used, format, values...);
        if (written > 0) used += static_cast<std::size_t>(written);
    };
    for (std::int32_t i = 0; i < attributes.count; ++i) {
        Attribute const& attribute = attributes.at[i];
        append("%s%s=", i == 0 ? "" : " ", attribute.name);
        if (attribute.type == PluginFieldType::kFLOAT32) {
            append("%.9g", static_cast<double>(*static_cast<float const*>(attribute.data)));
            continue;
        }
        std::int32_t const length = attribute.length == nullptr ? 1 : *attribute.length;
        auto const* values = static_cast<std::int32_t const*>(attribute.data);
        for (std::int32_t j = 0; j < length; ++j) append("%s%d", j == 0 ? "" : ",", values[j]);
    }
}

}  // namespace carafe
