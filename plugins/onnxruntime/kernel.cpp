#include "kernel.h"

#include <atomic>

namespace carafe::ort {
namespace {

Shape dimensions(Api const* api, TypeAndShape const* info) {
    std::size_t count = 0;
    require(DimensionCount::call(api, info, &count));
    Shape shape(count);
    require(Dimensions::call(api, info, shape.data(), count));
    return shape;
}

/// Frees what ONNX Runtime has made for us.
struct OwnedShape {
    Api const* api;
    TypeAndShape* info = nullptr;

    explicit OwnedShape(Api const* table) : api(table) {}
    ~OwnedShape() {
        if (info != nullptr) ReleaseShape::call<void>(api, info);
    }
    OwnedShape(OwnedShape const&) = delete;
    OwnedShape& operator=(OwnedShape const&) = delete;
};

}  // namespace

std::vector<std::int32_t> Attributes::numbers(char const* name) const {
    std::size_t count = 0;
    require(IntsAttribute::call(api_, info_, name, nullptr, &count));
    std::vector<std::int64_t> values(count);
    require(IntsAttribute::call(api_, info_, name, values.data(), &count));
    std::vector<std::int32_t> result;
    for (std::int64_t const value : values) result.push_back(narrow(name, value));
    return result;
}

std::size_t Run::input_count() const {
    std::size_t count = 0;
    require(InputCount::call(api_, context_, &count));
    return count;
}

Tensor Run::input(std::size_t index) const {
    Value const* value = nullptr;
    require(Input::call(api_, context_, index, &value));
    OwnedShape shape(api_);
    require(ShapeOf::call(api_, value, &shape.info));
    Tensor tensor{dimensions(api_, shape.info), 0, nullptr};
    require(ElementOf::call(api_, shape.info, &tensor.element));
    require(TensorData::call(api_, value, &tensor.data));
    return tensor;
}

void* Run::output(std::size_t index, Shape const& shape) const {
    Value* value = nullptr;
    require(Output::call(api_, context_, index, shape.data(), shape.size(), &value));
    void* data = nullptr;
    require(TensorData::call(api_, value, &data));
    return data;
}

void* Run::stream() const {
    void* stream = nullptr;
    if (on_gpu_) require(Stream::call(api_, context_, &stream));
    return stream;
}

void* Run::scratch(std::size_t bytes) const {
    if (!on_gpu_ || bytes == 0) return nullptr;
    Value const* value = nullptr;
    MemoryInfo const* beside = nullptr;
    int device = 0;
    require(Input::call(api_, context_, 0, &value));
    require(MemoryOf::call(api_, value, &beside));
    require(DeviceNumber::call(api_, beside, &device));
    MemoryInfo* info = nullptr;
    require(CreateMemoryInfo::call(api_, "Cuda", kArena, device, kDefault, &info));
    void* memory = nullptr;
    Status* const status = ScratchBuffer::call(api_, context_, info, bytes, &memory);
    ReleaseMemoryInfo::call<void>(api_, info);
    require(status);
    return memory;
}

void Run::parallel_for(
    void* run, std::int64_t pieces, void (*work)(void*, std::int64_t), void* data) {
    struct Task {
        void (*work)(void*, std::int64_t);
        void* data;
    } task{work, data};
    auto const& self = *static_cast<Run const*>(run);
    Status* const status = ParallelFor::call(
        self.api_, self.context_,
        [](void* given, std::size_t piece) {
            auto const& todo = *static_cast<Task const*>(given);
            todo.work(todo.data, static_cast<std::int64_t>(piece));
        },
        static_cast<std::size_t>(pieces), 0, &task);
    if (status == nullptr) return;
    ReleaseStatus::call<void>(self.api_, status);  // nothing has run then
    for (std::int64_t piece = 0; piece < pieces; ++piece) work(data, piece);
}

bool ShapeRun::input(
    std::size_t index, std::size_t axes, std::vector<Size>& shape, int& element) const {
    TypeAndShape* info = nullptr;  // the context's own
    if (Status* const status = ShapeInput::call(api_, context_, index, &info); status != nullptr) {
        ReleaseStatus::call<void>(api_, status);
        return false;
    }
    require(ElementOf::call(api_, info, &element));
    Shape const numbers = dimensions(api_, info);
    std::vector<char const*> symbols(numbers.size());
    require(Symbols::call(api_, info, symbols.data(), symbols.size()));
    shape.clear();
    for (std::size_t axis = 0; axis < numbers.size(); ++axis) {
        shape.emplace_back(numbers[axis], symbols[axis]);
    }
    return shape.size() == axes;
}

std::int64_t ShapeRun::number(char const* name) const {
    Attribute const* attribute = nullptr;
    require(ShapeAttribute::call(api_, context_, name, &attribute));
    std::int64_t value = 0;
    std::size_t size = 0;
    require(ReadAttribute::call(api_, attribute, kInt, &value, sizeof value, &size));
    return value;
}

void ShapeRun::output(std::size_t index, std::vector<Size> const& shape, int element) const {
    // Equal symbols are equal sizes to ONNX Runtime, so a size that nothing is known of has its
    // own.
    static std::atomic<std::int64_t> unknown{0};
    Shape numbers;
    std::vector<std::string> names;
    for (Size const& size : shape) {
        numbers.push_back(size.number);
        bool const unnamed = size.number < 0 && size.symbol.empty();
        names.push_back(unnamed ? "carafe_" + std::to_string(unknown++) : size.symbol);
    }
    std::vector<char const*> symbols;
    for (std::string const& name : names) symbols.push_back(name.c_str());
    OwnedShape made(api_);
    require(CreateShape::call(api_, &made.info));
    require(SetElement::call(api_, made.info, element));
    require(SetDimensions::call(api_, made.info, numbers.data(), numbers.size()));
    require(SetSymbols::call(api_, made.info, symbols.data(), symbols.size()));
    require(SetShapeOutput::call(api_, context_, index, made.info));
}

}  // namespace carafe::ort
