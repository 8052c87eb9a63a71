// The part of ONNX Runtime's C interface that custom operators need.
//
// OrtApi is a table of function pointers that only grows, and OrtCustomOp a structure of which an
// older runtime reads only what it knows, so positions and offsets hold in every release from 1.20
// on. headers.cpp compares them with the header of a release where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace carafe::ort {

struct Status;
struct Value;
struct TypeAndShape;
struct MemoryInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct Attribute;
struct Domain;
struct SessionOptions;

using Function = void (*)();

/// `OrtApi`: a table of pointers, see Entry.
struct Api;

/// `OrtApiBase`.
struct ApiBase {
    Api const* (*api)(std::uint32_t version);
    char const* (*version)();
};

/// What the table is asked for: that of 1.18. Newer runtimes have it as well.
constexpr std::uint32_t kVersion = 18;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum Element { kFloat = 1, kInt32 = 6, kInt64 = 7, kHalf = 10, kBFloat16 = 16 };
enum Characteristic { kRequired = 0, kVariadic = 2 };
enum Allocator { kArena = 1 };
enum Memory { kDefault = 0 };
enum AttributeType { kInt = 1, kInts = 2, kFloatNumber = 3 };

/// A function of the table: its position and its type.
template <std::size_t kPosition, typename... Arguments>
struct Entry {
    static constexpr std::size_t position = kPosition;

    template <typename Result = Status*>
    static Result call(Api const* api, Arguments... arguments) {
        auto const* const table = reinterpret_cast<Function const*>(api);
        return reinterpret_cast<Result (*)(Arguments...)>(table[kPosition])(arguments...);
    }
};

using CreateStatus = Entry<0, int, char const*>;
using CreateDomain = Entry<26, char const*, Domain**>;
using AddToDomain = Entry<27, Domain*, struct CustomOp const*>;
using AddDomain = Entry<28, SessionOptions*, Domain*>;
using TensorData = Entry<51, Value const*, void**>;
using CreateShape = Entry<57, TypeAndShape**>;
using SetElement = Entry<58, TypeAndShape*, int>;
using SetDimensions = Entry<59, TypeAndShape*, std::int64_t const*, std::size_t>;
using ElementOf = Entry<60, TypeAndShape const*, int*>;
using DimensionCount = Entry<61, TypeAndShape const*, std::size_t*>;
using Dimensions = Entry<62, TypeAndShape const*, std::int64_t*, std::size_t>;
using Symbols = Entry<63, TypeAndShape const*, char const**, std::size_t>;
using ShapeOf = Entry<65, Value const*, TypeAndShape**>;
using CreateMemoryInfo = Entry<68, char const*, int, int, int, MemoryInfo**>;
using DeviceNumber = Entry<72, MemoryInfo const*, int*>;
using FloatAttribute = Entry<85, KernelInfo const*, char const*, float*>;
using IntAttribute = Entry<86, KernelInfo const*, char const*, std::int64_t*>;
using InputCount = Entry<88, KernelContext const*, std::size_t*>;
using Input = Entry<90, KernelContext const*, std::size_t, Value const**>;
using Output = Entry<91, KernelContext*, std::size_t, std::int64_t const*, std::size_t, Value**>;
using ReleaseStatus = Entry<93, Status*>;
using ReleaseMemoryInfo = Entry<94, MemoryInfo*>;
using ReleaseShape = Entry<99, TypeAndShape*>;
using AvailableProviders = Entry<125, char***, int*>;
using ReleaseProviders = Entry<126, char**, int>;
using IntsAttribute = Entry<163, KernelInfo const*, char const*, std::int64_t*, std::size_t*>;
using Stream = Entry<193, KernelContext const*, void**>;
using MemoryOf = Entry<194, Value const*, MemoryInfo const**>;
using ShapeInputCount = Entry<267, ShapeContext const*, std::size_t*>;
using ShapeInput = Entry<268, ShapeContext const*, std::size_t, TypeAndShape**>;
using ShapeAttribute = Entry<269, ShapeContext const*, char const*, Attribute const**>;
using SetShapeOutput = Entry<270, ShapeContext const*, std::size_t, TypeAndShape const*>;
using SetSymbols = Entry<271, TypeAndShape*, char const**, std::size_t>;
using ReadAttribute = Entry<272, Attribute const*, int, void*, std::size_t, std::size_t*>;
using ParallelFor =
    Entry<274, KernelContext const*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*>;
using ScratchBuffer = Entry<277, KernelContext const*, MemoryInfo const*, std::size_t, void**>;

/// `OrtCustomOp`: one operator for one element type and one provider.
struct CustomOp {
    std::uint32_t version;
    Function create_without_status;
    char const* (*name)(CustomOp const*);
    char const* (*provider)(CustomOp const*);  ///< null: the CPU
    int (*input_element)(CustomOp const*, std::size_t);
    std::size_t (*input_count)(CustomOp const*);
    int (*output_element)(CustomOp const*, std::size_t);
    std::size_t (*output_count)(CustomOp const*);
    Function compute_without_status;
    void (*destroy)(void* kernel);
    int (*input_characteristic)(CustomOp const*, std::size_t);
    int (*output_characteristic)(CustomOp const*, std::size_t);
    int (*input_memory)(CustomOp const*, std::size_t);
    int (*variadic_input_arity)(CustomOp const*);
    int (*variadic_input_homogeneity)(CustomOp const*);
    int (*variadic_output_arity)(CustomOp const*);
    int (*variadic_output_homogeneity)(CustomOp const*);
    Status* (*create)(CustomOp const*, Api const*, KernelInfo const*, void** kernel);
    Status* (*compute)(void* kernel, KernelContext*);
    Status* (*infer_shapes)(CustomOp const*, ShapeContext*);
    int (*start_version)(CustomOp const*);
    int (*end_version)(CustomOp const*);
    Function may_inplace, release_may_inplace, alias_map, release_alias_map;
};
static_assert(sizeof(CustomOp) == 208 && offsetof(CustomOp, create) == 136);

}  // namespace carafe::ort
