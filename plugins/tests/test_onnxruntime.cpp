// The operators of ONNX Runtime's library on CUDA, as far as it goes without a GPU: ONNX Runtime is
// a table of functions made up here, the kernels run on the emulator, and the CPU twins say what is
// right. Which stream and which memory they are given is written down.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"

namespace carafe::ort {
namespace {

struct FakeValue {
    Shape shape;
    int element;
    std::vector<std::byte> bytes;

    template <typename T>
    T* data() {
        return reinterpret_cast<T*>(bytes.data());
    }
};

std::size_t size_of(int element) {
    return element == kInt64 ? 8 : element == kHalf || element == kBFloat16 ? 2 : 4;
}

FakeValue made(Shape const& shape, int element) {
    std::size_t count = 1;
    for (std::int64_t const size : shape) count *= static_cast<std::size_t>(size);
    return {shape, element, std::vector<std::byte>(count * size_of(element))};
}

/// Of one node that runs once.
struct FakeContext {
    std::vector<FakeValue> inputs;
    std::vector<int> output_elements;
    std::map<std::size_t, FakeValue> outputs;
    std::vector<std::byte> scratch;
    int streams = 0;
    int scratch_device = -1;
};

constexpr int kDevice = 1;
char stream_address;

struct FakeAttributes {
    std::map<std::string, std::int64_t> numbers;
    std::map<std::string, float> reals;
    std::map<std::string, std::vector<std::int64_t>> lists;
};

template <typename Real, typename Fake>
Fake& fake(Real const* pointer) {
    return *const_cast<Fake*>(reinterpret_cast<Fake const*>(pointer));
}

FakeContext& context_of(KernelContext const* context) {
    return fake<KernelContext, FakeContext>(context);
}

template <typename Position, typename Made>
void put(std::array<Function, 300>& table, Made function) {
    table[Position::position] = reinterpret_cast<Function>(function);
}

Api const* api() {
    static std::array<Function, 300> const table = [] {
        std::array<Function, 300> all{};
        put<InputCount>(
            all, +[](KernelContext const* context, std::size_t* count) -> Status* {
                *count = context_of(context).inputs.size();
                return nullptr;
            });
        put<Input>(
            all, +[](KernelContext const* context, std::size_t i, Value const** value) -> Status* {
                *value = reinterpret_cast<Value const*>(&context_of(context).inputs.at(i));
                return nullptr;
            });
        put<Output>(
            all,
            +[](KernelContext* context, std::size_t i, std::int64_t const* shape, std::size_t axes,
                Value** value) -> Status* {
                FakeContext& node = context_of(context);
                FakeValue fresh = made(Shape(shape, shape + axes), node.output_elements.at(i));
                *value = reinterpret_cast<Value*>(&(node.outputs[i] = std::move(fresh)));
                return nullptr;
            });
        put<TensorData>(
            all, +[](Value const* value, void** data) -> Status* {
                *data = fake<Value, FakeValue>(value).bytes.data();
                return nullptr;
            });
        put<ParallelFor>(
            all,
            +[](KernelContext const*, void (*work)(void*, std::size_t), std::size_t pieces,
                std::size_t, void* data) -> Status* {
                for (std::size_t piece = pieces; piece-- > 0;) work(data, piece);
                return nullptr;
            });
        put<ShapeOf>(
            all, +[](Value const* value, TypeAndShape** shape) -> Status* {
                *shape = reinterpret_cast<TypeAndShape*>(&fake<Value, FakeValue>(value));
                return nullptr;
            });
        put<ReleaseShape>(all, +[](TypeAndShape*) {});
        put<ElementOf>(
            all, +[](TypeAndShape const* shape, int* element) -> Status* {
                *element = fake<TypeAndShape, FakeValue>(shape).element;
                return nullptr;
            });
        put<DimensionCount>(
            all, +[](TypeAndShape const* shape, std::size_t* count) -> Status* {
                *count = fake<TypeAndShape, FakeValue>(shape).shape.size();
                return nullptr;
            });
        put<Dimensions>(
            all, +[](TypeAndShape const* shape, std::int64_t* sizes, std::size_t) -> Status* {
                Shape const& known = fake<TypeAndShape, FakeValue>(shape).shape;
                std::copy(known.begin(), known.end(), sizes);
                return nullptr;
            });
        put<Stream>(
            all, +[](KernelContext const* context, void** stream) -> Status* {
                ++context_of(context).streams;
                *stream = &stream_address;
                return nullptr;
            });
        put<MemoryOf>(
            all, +[](Value const*, MemoryInfo const** info) -> Status* {
                static int const here = kDevice;
                *info = reinterpret_cast<MemoryInfo const*>(&here);
                return nullptr;
            });
        put<DeviceNumber>(
            all, +[](MemoryInfo const* info, int* device) -> Status* {
                *device = fake<MemoryInfo, int>(info);
                return nullptr;
            });
        put<CreateMemoryInfo>(
            all,
            +[](char const* name, int allocator, int device, int memory,
                MemoryInfo** info) -> Status* {
                EXPECT_STREQ(name, "Cuda");
                EXPECT_EQ(allocator, kArena);
                EXPECT_EQ(memory, kDefault);
                *info = reinterpret_cast<MemoryInfo*>(new int(device));
                return nullptr;
            });
        put<ReleaseMemoryInfo>(all, +[](MemoryInfo* info) { delete reinterpret_cast<int*>(info); });
        put<ScratchBuffer>(
            all,
            +[](KernelContext const* context, MemoryInfo const* info, std::size_t size,
                void** memory) -> Status* {
                FakeContext& node = context_of(context);
                node.scratch_device = fake<MemoryInfo, int>(info);
                node.scratch.assign(size, std::byte{0xff});
                *memory = node.scratch.data();
                return nullptr;
            });
        put<IntAttribute>(
            all, +[](KernelInfo const* info, char const* name, std::int64_t* value) -> Status* {
                *value = fake<KernelInfo, FakeAttributes>(info).numbers.at(name);
                return nullptr;
            });
        put<FloatAttribute>(
            all, +[](KernelInfo const* info, char const* name, float* value) -> Status* {
                *value = fake<KernelInfo, FakeAttributes>(info).reals.at(name);
                return nullptr;
            });
        put<IntsAttribute>(
            all,
            +[](KernelInfo const* info, char const* name, std::int64_t* values,
                std::size_t* count) -> Status* {
                auto const& list = fake<KernelInfo, FakeAttributes>(info).lists.at(name);
                *count = list.size();
                if (values != nullptr) std::copy(list.begin(), list.end(), values);
                return nullptr;
            });
        return all;
    }();
    return reinterpret_cast<Api const*>(table.data());
}

/// Numbers around zero; halves are taken for their bit patterns, of which these are small ones.
FakeValue random(Shape const& shape, int element, unsigned seed) {
    FakeValue value = made(shape, element);
    std::mt19937 generator(seed);
    if (size_of(element) == 2) {
        // 0.5 to 2, of either sign.
        int const one = element == kHalf ? 0x3c00 : 0x3f80;
        std::uniform_int_distribution<int> bits(one - 0x80, one + 0x7f), sign(0, 1);
        auto* const halves = value.data<std::uint16_t>();
        for (std::size_t i = 0; i < value.bytes.size() / 2; ++i) {
            halves[i] = static_cast<std::uint16_t>(bits(generator) | (sign(generator) << 15));
        }
        return value;
    }
    std::normal_distribution<float> normal;
    auto* const floats = value.data<float>();
    for (std::size_t i = 0; i < value.bytes.size() / 4; ++i) floats[i] = normal(generator);
    return value;
}

/// Corners in order, of an image of about 64 pixels.
FakeValue boxes(Shape const& shape, unsigned seed) {
    FakeValue value = random(shape, kFloat, seed);
    auto* const floats = value.data<float>();
    for (std::size_t i = 0; i < value.bytes.size() / 4; i += 4) {
        for (std::size_t axis = 0; axis < 2; ++axis) {
            float const center = 32 + 10 * floats[i + axis];
            float const half = 4 + std::abs(floats[i + 2 + axis]) * 8;
            floats[i + axis] = center - half, floats[i + 2 + axis] = center + half;
        }
    }
    return value;
}

/// Images of 60 by 62 pixels.
FakeValue sizes(std::int64_t batch) {
    FakeValue value = made({batch, 2}, kFloat);
    for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(batch); ++i) {
        value.data<float>()[i] = i % 2 == 0 ? 60.0F : 62.0F;
    }
    return value;
}

FakeValue counts(Shape const& shape, std::int32_t number) {
    FakeValue value = made(shape, kInt32);
    std::fill_n(value.data<std::int32_t>(), value.bytes.size() / 4, number);
    return value;
}

float as_float(FakeValue& value, std::size_t i) {
    if (value.element == kHalf) {
        std::uint16_t const bits = value.data<std::uint16_t>()[i];
        int const exponent = (bits >> 10) & 31;
        float const fraction = static_cast<float>(bits & 1023) / 1024;
        float const size =
            exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
        return bits & 0x8000 ? -size : size;
    }
    if (value.element == kBFloat16) {
        std::uint32_t const bits = std::uint32_t{value.data<std::uint16_t>()[i]} << 16;
        float number;
        std::memcpy(&number, &bits, 4);
        return number;
    }
    return value.data<float>()[i];
}

struct Case {
    char const* name;
    FakeAttributes attributes;
    std::vector<FakeValue> inputs;
};

std::vector<Case> cases(int element) {
    FakeAttributes const carafe{
        {{"kernel_size", 3}, {"group_size", 2}, {"scale_factor", 2}}, {}, {}};
    return {
        {"Carafe", carafe, {random({2, 4, 5, 6}, element, 1), random({2, 18, 10, 12}, element, 2)}},
        {"CarafeEncoded",
         carafe,
         {random({2, 4, 5, 6}, element, 3), random({2, 72, 5, 6}, element, 4)}},
        {"MultilevelRoiAlign",
         {{{"output_size", 3}, {"sampling_ratio", 0}, {"finest_scale", 14}},
          {},
          {{"strides", {4, 8}}}},
         {boxes({2, 7, 4}, 5), random({2, 3, 16, 16}, element, 6),
          random({2, 3, 8, 8}, element, 7)}},
        {"RpnCandidates",
         {{{"num_candidates", 30}}, {{"min_size", 0.0F}}, {{"strides", {4, 8}}}},
         {sizes(2), boxes({2, 3, 4}, 11), random({2, 4}, kFloat, 12),
          random({2, 3, 6, 7}, element, 13), random({2, 3, 3, 4}, element, 14),
          random({2, 12, 6, 7}, element, 15), random({2, 12, 3, 4}, element, 16)}},
        {"BoxCandidates",
         {},
         {random({2, 9, 6}, element, 17), random({2, 9, 20}, element, 18), boxes({2, 9, 4}, 19),
          counts({2, 1}, 7), sizes(2), random({2, 4}, kFloat, 21)}},
        {"BatchedNms",
         {{{"max_output", 12}}, {{"iou_threshold", 0.5F}, {"score_threshold", -0.5F}}, {}},
         {boxes({2, 3, 40, 4}, 8), random({2, 3, 40}, kFloat, 9)}},
    };
}

FakeContext computed(Case const& each, int element, bool on_gpu) {
    for (Operator const& op : operators()) {
        if (std::string(op.name) != each.name) continue;
        FakeContext context;
        context.inputs = each.inputs;
        for (int const wanted : op.outputs) {
            context.output_elements.push_back(wanted == 0 ? element : wanted);
        }
        auto const* const info = reinterpret_cast<KernelInfo const*>(&each.attributes);
        std::unique_ptr<Kernel> const kernel(op.create(Attributes(api(), info)));
        kernel->compute(Run(api(), reinterpret_cast<KernelContext*>(&context), on_gpu));
        return context;
    }
    throw std::runtime_error(std::string("no operator is ") + each.name);
}

void expect_equal(FakeValue& found, FakeValue& expected) {
    ASSERT_EQ(found.shape, expected.shape);
    ASSERT_EQ(found.bytes.size(), expected.bytes.size());
    if (found.element == kInt32 || found.element == kInt64) {
        EXPECT_EQ(found.bytes, expected.bytes);
        return;
    }
    float const tolerance = size_of(found.element) == 2 ? 2e-2F : 1e-5F;
    for (std::size_t i = 0; i < found.bytes.size() / size_of(found.element); ++i) {
        if (as_float(found, i) == as_float(expected, i)) continue;  // infinities
        ASSERT_NEAR(as_float(found, i), as_float(expected, i), tolerance) << i;
    }
}

TEST(OnnxRuntimeOnCuda, EqualsTheTwins) {
    for (int const element : {kFloat, kHalf, kBFloat16}) {
        for (Case const& each : cases(element)) {
            SCOPED_TRACE(std::string(each.name) + " " + std::to_string(element));
            FakeContext expected = computed(each, element, false);
            FakeContext found = computed(each, element, true);
            EXPECT_EQ(expected.streams, 0);
            EXPECT_EQ(found.streams, 1);
            ASSERT_EQ(found.outputs.size(), expected.outputs.size());
            for (auto& [index, value] : expected.outputs) expect_equal(found.outputs[index], value);
        }
    }
}

TEST(OnnxRuntimeOnCuda, WorkspaceIsMemoryOfTheInputsDevice) {
    for (Case const& each : cases(kFloat)) {
        FakeContext const found = computed(each, kFloat, true);
        bool const wanted = std::string(each.name) == "BatchedNms";
        EXPECT_EQ(found.scratch_device, wanted ? kDevice : -1) << each.name;
        EXPECT_EQ(found.scratch.empty(), !wanted);
        EXPECT_EQ(computed(each, kFloat, false).scratch_device, -1);
    }
}

TEST(OnnxRuntimeOnCuda, EmptyInputsGiveEmptyResults) {
    for (Case each : cases(kFloat)) {
        bool const has_constants = std::string(each.name).find("Candidates") != std::string::npos;
        for (FakeValue& input : each.inputs) {
            Shape shape = input.shape;
            if (has_constants && (shape == Shape{2, 4} || shape == Shape{2, 3, 4})) continue;
            shape[0] = 0;
            input = made(shape, input.element);
        }
        FakeContext const found = computed(each, kFloat, true);
        ASSERT_FALSE(found.outputs.empty()) << each.name;
        for (auto const& [index, value] : found.outputs) {
            EXPECT_EQ(value.shape[0], 0) << each.name << index;
        }
    }
}

}  // namespace
}  // namespace carafe::ort
