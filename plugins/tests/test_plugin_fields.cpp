// Creators: what they announce, which fields they take and refuse, serialisation and clones.
#include <gtest/gtest.h>

#include "operators.h"
#include "plugin_testing.h"

namespace carafe::testing {
namespace {

#define CARAFE_PLUGIN_NAME(name, plugin, stem) #plugin,
std::vector<std::string> const kPlugins = {CARAFE_OPERATORS(CARAFE_PLUGIN_NAME)};
#undef CARAFE_PLUGIN_NAME

/// What createPlugin writes to stderr as it refuses these fields.
std::string refusal(std::string const& plugin, Fields const& fields) {
    ::testing::internal::CaptureStderr();
    bool const made = static_cast<bool>(PluginHandle(plugin, fields));
    std::string const text = ::testing::internal::GetCapturedStderr();
    return made ? "not refused" : text;
}

std::string metadata(PluginHandle const& plugin) {
    return plugin.build->getMetadataString();
}

TEST(PluginCreators, AreTheFourOperators) {
    std::int32_t count = 0;
    auto* const* creators = getCreators(count);
    std::vector<std::string> names;
    for (std::int32_t i = 0; i < count; ++i) {
        EXPECT_STREQ(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE");
        auto* const one = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        names.emplace_back(one->getPluginName());
        EXPECT_STREQ(one->getPluginVersion(), "1");
        EXPECT_STREQ(one->getPluginNamespace(), "carafe");
    }
    EXPECT_EQ(names, kPlugins);
}

TEST(PluginCreators, AnnounceTheAttributesOfTheContract) {
    auto const names = [](std::string const& plugin) {
        nvinfer1::PluginFieldCollection const& fields = *creator(plugin).getFieldNames();
        std::vector<std::string> found;
        for (std::int32_t i = 0; i < fields.nbFields; ++i) {
            bool const real = fields.fields[i].type == PluginFieldType::kFLOAT32;
            found.push_back(std::string(fields.fields[i].name) + (real ? ": float" : ": int"));
        }
        return found;
    };
    std::vector<std::string> const carafe = {
        "kernel_size: int", "group_size: int", "scale_factor: int"};
    EXPECT_EQ(names("Carafe"), carafe);
    EXPECT_EQ(names("CarafeEncoded"), carafe);
    EXPECT_EQ(
        names("MultilevelRoiAlign"),
        (std::vector<std::string>{
            "output_size: int", "sampling_ratio: int", "strides: int", "finest_scale: int"}));
    EXPECT_EQ(
        names("BatchedNms"),
        (std::vector<std::string>{
            "iou_threshold: float", "score_threshold: float", "max_output: int"}));
    EXPECT_EQ(
        names("RpnCandidates"),
        (std::vector<std::string>{"num_candidates: int", "min_size: float", "strides: int"}));
    EXPECT_EQ(names("BoxCandidates"), std::vector<std::string>{});
}

TEST(PluginFields, AreReadIntoTheAttributes) {
    EXPECT_EQ(
        metadata(PluginHandle("Carafe", *carafe_fields(5, 4, 3))),
        "kernel_size=5 group_size=4 scale_factor=3");
    EXPECT_EQ(
        metadata(PluginHandle("MultilevelRoiAlign", *roi_align_fields({4, 8, 16, 32}))),
        "output_size=2 sampling_ratio=0 strides=4,8,16,32 finest_scale=56");
    EXPECT_EQ(
        metadata(PluginHandle("BatchedNms", *nms_fields(7))),
        "iou_threshold=0.5 score_threshold=0.100000001 max_output=7");
    EXPECT_EQ(
        metadata(PluginHandle("RpnCandidates", *rpn_candidates_fields(50))),
        "num_candidates=50 min_size=0 strides=4,8");
    EXPECT_EQ(metadata(PluginHandle("BoxCandidates", *fields_of("BoxCandidates"))), "");
}

TEST(PluginFields, MissingOnesAreNamed) {
    for (std::string const& plugin : kPlugins) {
        nvinfer1::PluginFieldCollection const all = *creator(plugin).getFieldNames();
        for (std::int32_t i = 0; i < all.nbFields; ++i) {
            std::string const name = all.fields[i].name;
            auto const fields = fields_of(plugin);
            fields->remove(name);
            EXPECT_EQ(
                refusal(plugin, *fields),
                "carafe: " + plugin + ": field " + name + " is missing\n");
        }
    }
}

TEST(PluginFields, WrongTypesAreNamed) {
    std::int64_t const wide = 3;
    float const real = 3;
    std::int32_t const integer = 1;
    auto fields = carafe_fields();
    fields->remove("kernel_size").add("kernel_size", &wide, PluginFieldType::kINT64, 1);
    EXPECT_EQ(
        refusal("Carafe", *fields),
        "carafe: Carafe: field kernel_size has type INT64, expected INT32\n");
    fields->remove("kernel_size").add("kernel_size", &real, PluginFieldType::kFLOAT32, 1);
    EXPECT_EQ(
        refusal("Carafe", *fields),
        "carafe: Carafe: field kernel_size has type FLOAT32, expected INT32\n");
    fields = nms_fields();
    fields->remove("iou_threshold").add("iou_threshold", &integer, PluginFieldType::kINT32, 1);
    EXPECT_EQ(
        refusal("BatchedNms", *fields),
        "carafe: BatchedNms: field iou_threshold has type INT32, expected FLOAT32\n");
}

TEST(PluginFields, WrongLengthsAreNamed) {
    auto fields = carafe_fields();
    fields->remove("scale_factor").add("scale_factor", std::vector<std::int32_t>{2, 2});
    EXPECT_EQ(
        refusal("CarafeEncoded", *fields),
        "carafe: CarafeEncoded: field scale_factor has 2 values, expected 1\n");
    EXPECT_EQ(
        refusal("MultilevelRoiAlign", *roi_align_fields({})),
        "carafe: MultilevelRoiAlign: field strides has 0 values, expected 1 to 16\n");
    EXPECT_EQ(
        refusal("MultilevelRoiAlign", *roi_align_fields(std::vector<std::int32_t>(17, 4))),
        "carafe: MultilevelRoiAlign: field strides has 17 values, expected 1 to 16\n");
    fields = carafe_fields();
    fields->remove("group_size").add("group_size", nullptr, PluginFieldType::kINT32, 1);
    EXPECT_EQ(refusal("Carafe", *fields), "carafe: Carafe: field group_size has no data\n");
}

TEST(PluginFields, UnknownAndRepeatedOnesAreRefused) {
    auto fields = carafe_fields();
    fields->add("up_factor", std::vector<std::int32_t>{2});
    EXPECT_EQ(refusal("Carafe", *fields), "carafe: Carafe: field up_factor is unknown\n");
    fields = carafe_fields();
    fields->add("kernel_size", std::vector<std::int32_t>{5});
    EXPECT_EQ(refusal("Carafe", *fields), "carafe: Carafe: field kernel_size is given twice\n");
    EXPECT_EQ(
        creator("Carafe").createPlugin("test", nullptr, nvinfer1::TensorRTPhase::kRUNTIME),
        nullptr);
}

TEST(PluginFields, WhatIsCountedMustBeThereAndNamed) {
    for (std::string const& name : kPlugins) {
        auto const fields = fields_of(name);
        fields->add(nullptr, nullptr, PluginFieldType::kINT32, 1);
        auto const count = std::to_string(fields->collection().nbFields - 1);
        EXPECT_EQ(
            refusal(name, *fields), "carafe: " + name + ": field " + count + " has no name\n");
        nvinfer1::PluginFieldCollection const absent{3, nullptr};
        EXPECT_EQ(
            creator(name).createPlugin("test", &absent, nvinfer1::TensorRTPhase::kRUNTIME),
            nullptr);
    }
}

TEST(PluginFields, NamesOfThePluginAreNoAttributes) {
    auto const fields = carafe_fields();
    fields->add("plugin_version", "1", PluginFieldType::kCHAR, 1);
    fields->add("plugin_namespace", "carafe", PluginFieldType::kCHAR, 6);
    EXPECT_TRUE(PluginHandle("Carafe", *fields));
}

/// Values that the contract excludes are refused with the operator, the field and the value.
TEST(PluginFields, ValuesOutOfRangeAreNamed) {
    struct Case {
        char const* plugin;
        char const* field;
        std::int32_t value;
    };
    for (auto const& [plugin, field, value] :
         {Case{"Carafe", "kernel_size", 4}, Case{"Carafe", "kernel_size", -1},
          Case{"Carafe", "kernel_size", 2147483647}, Case{"Carafe", "group_size", 0},
          Case{"CarafeEncoded", "scale_factor", 0},
          Case{"CarafeEncoded", "scale_factor", 2147483647},
          Case{"MultilevelRoiAlign", "output_size", 0},
          Case{"MultilevelRoiAlign", "sampling_ratio", -1},
          Case{"MultilevelRoiAlign", "strides", 0}, Case{"MultilevelRoiAlign", "finest_scale", 0},
          Case{"RpnCandidates", "num_candidates", 0}, Case{"RpnCandidates", "num_candidates", 4097},
          Case{"RpnCandidates", "strides", 0}, Case{"BatchedNms", "max_output", 0}}) {
        auto const fields = fields_of(plugin);
        fields->remove(field).add(field, std::vector<std::int32_t>{value});
        std::string const message = refusal(plugin, *fields);
        std::string const named = std::string(field) == "strides" ? "stride" : field;
        EXPECT_EQ(message.rfind(std::string("carafe: ") + plugin + ": ", 0), 0u) << message;
        EXPECT_NE(message.find(named), std::string::npos) << message;
        EXPECT_NE(message.find(std::to_string(value)), std::string::npos) << message;
        EXPECT_EQ(message.find('\n'), message.size() - 1) << message;
    }
    for (float const value : {-0.1f, 1.1f, std::numeric_limits<float>::quiet_NaN()}) {
        auto const fields = nms_fields();
        fields->remove("iou_threshold").add("iou_threshold", value);
        EXPECT_NE(refusal("BatchedNms", *fields).find("iou_threshold"), std::string::npos);
    }
    for (float const value :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        auto const fields = nms_fields();
        fields->remove("score_threshold").add("score_threshold", value);
        EXPECT_NE(refusal("BatchedNms", *fields).find("score_threshold"), std::string::npos);
    }
}

TEST(PluginSerialisation, FieldsMakeAnEqualPlugin) {
    for (std::string const& name : kPlugins) {
        PluginHandle const plugin(name, *fields_of(name));
        PluginHandle const again(creator(name).createPlugin(
            "again", plugin.runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
        ASSERT_TRUE(again) << name;
        EXPECT_EQ(metadata(again), metadata(plugin));
        EXPECT_STREQ(again.core->getPluginName(), name.c_str());
        EXPECT_STREQ(again.core->getPluginVersion(), "1");
        EXPECT_STREQ(again.core->getPluginNamespace(), "carafe");
    }
}

TEST(PluginSerialisation, ClonesAreEqualAndOutliveTheOriginal) {
    for (std::string const& name : kPlugins) {
        auto plugin = std::make_unique<PluginHandle>(name, *fields_of(name));
        std::string const attributes = metadata(*plugin);
        plugin->runtime->getFieldsToSerialize();
        PluginHandle const clone((**plugin).clone());
        PluginHandle const attached(plugin->runtime->attachToContext(nullptr));
        plugin.reset();
        for (PluginHandle const* copy : {&clone, &attached}) {
            EXPECT_EQ(metadata(*copy), attributes);
            nvinfer1::PluginFieldCollection const* fields = copy->runtime->getFieldsToSerialize();
            PluginHandle const again(
                creator(name).createPlugin("again", fields, nvinfer1::TensorRTPhase::kRUNTIME));
            ASSERT_TRUE(again) << name;
            EXPECT_EQ(metadata(again), attributes);
        }
    }
}

TEST(PluginTiming, DiffersWithTheAttributesOnly) {
    auto const id = [](Fields const& fields) {
        return std::string(PluginHandle("Carafe", fields).build->getTimingCacheID());
    };
    EXPECT_EQ(id(*carafe_fields(3)), id(*carafe_fields(3)));
    EXPECT_NE(id(*carafe_fields(3)), id(*carafe_fields(5)));
    EXPECT_EQ(PluginHandle("Carafe", *carafe_fields()).build->getNbTactics(), 0);
}

}  // namespace
}  // namespace carafe::testing
