// Registers the operators with torch when the library is loaded, by its stable C interface: one
// library for torch 2.11 and newer. STABLE_TORCH_LIBRARY of torch/csrc/stable/library.h does the
// same, but takes no notice of an operator that is there already.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "adapters.h"
#include "kernels.h"
#include "operators.h"

namespace carafe::torch_adapter {
namespace {

// --- arguments and results -----------------------------------------------------------------------

template <typename T>
struct Value;

template <>
struct Value<std::int64_t> {
    static std::int64_t take(StableIValue value) { return static_cast<std::int64_t>(value); }
    static StableIValue give(std::int64_t number) { return static_cast<StableIValue>(number); }
};

template <>
struct Value<double> {
    static double take(StableIValue value) {
        double number = 0;
        std::memcpy(&number, &value, sizeof number);
        return number;
    }
    static StableIValue give(double number) {
        StableIValue value = 0;
        std::memcpy(&value, &number, sizeof number);
        return value;
    }
};

template <>
struct Value<Tensor> {
    static Tensor take(StableIValue value) {
        return Tensor(reinterpret_cast<AtenTensorHandle>(value));
    }
    static StableIValue give(Tensor const& tensor) {
        return reinterpret_cast<StableIValue>(tensor.share());
    }
};

void require_there(std::int64_t) {}

/// Torch moves tensors out of a list that a TorchScript program owns, so a second call with the
/// same list finds none. Python's calls have lists of their own, see _registry.py.
void require_there(Tensor const& tensor) {
    if (tensor.is_defined()) return;
    throw std::runtime_error(
        "a list of tensors is empty, since an earlier call was given the same list: torch's stable "
        "interface moves tensors out of lists. Export the detector again, so that each call has a "
        "list of its own");
}

template <typename T>
struct Value<std::vector<T>> {
    static std::vector<T> take(StableIValue value) {
        auto* const list = reinterpret_cast<StableListHandle>(value);
        std::size_t size = 0;
        torch_list_size(list, &size);
        std::vector<T> items;
        items.reserve(size);
        for (std::size_t i = 0; i < size; ++i) {
            StableIValue item = 0;
            torch_list_get_item(list, i, &item);
            items.push_back(Value<T>::take(item));
        }
        torch_delete_list(list);
        for (T const& item : items) require_there(item);
        return items;
    }
    static StableIValue give(std::vector<T> const& items) {
        StableListHandle list = nullptr;
        succeeded(torch_new_list_reserve_size(items.size(), &list), "torch_new_list_reserve_size");
        for (T const& item : items) torch_list_push_back(list, Value<T>::give(item));
        return reinterpret_cast<StableIValue>(list);
    }
};

void put(StableIValue* stack, Tensor& result) {
    stack[0] = reinterpret_cast<StableIValue>(result.release());
}

template <typename... Results>
void put(StableIValue* stack, std::tuple<Results...>& results) {
    std::apply([&](auto&... each) { (put(stack++, each), ...); }, results);
}

template <typename Result>
constexpr std::size_t kResults = 1;
template <typename... Results>
constexpr std::size_t kResults<std::tuple<Results...>> = sizeof...(Results);

/// Takes the arguments off the stack and leaves the results there: the operator's own or, where
/// PyTorch has to compute, those of the operator `instead`.
template <typename Result, typename... Arguments, std::size_t... kIndices>
void call(
    std::optional<Result> (*function)(Arguments...), char const* instead, StableIValue* stack,
    std::index_sequence<kIndices...>) {
    std::tuple<std::decay_t<Arguments>...> const arguments{
        Value<std::decay_t<Arguments>>::take(stack[kIndices])...};
    std::optional<Result> result = std::apply(function, arguments);
    if (result.has_value()) return put(stack, *result);
    std::array<StableIValue, std::max(sizeof...(Arguments), kResults<Result>)> again{
        Value<std::decay_t<Arguments>>::give(std::get<kIndices>(arguments))...};
    succeeded(torch_call_dispatcher(instead, "", again.data(), kTorchVersion), instead);
    std::copy_n(again.begin(), kResults<Result>, stack);
}

/// It takes a list of tensors.
template <typename Result, typename... Arguments>
constexpr bool takes_tensors(std::optional<Result> (*)(Arguments...)) {
    return (std::is_same_v<std::decay_t<Arguments>, std::vector<Tensor>> || ...);
}

template <typename Result, typename... Arguments>
void call(
    std::optional<Result> (*function)(Arguments...), char const* instead, StableIValue* stack) {
    call(function, instead, stack, std::index_sequence_for<Arguments...>());
}

namespace boxed {

#define CARAFE_BOX(name, plugin, stem)                                     \
    void name(StableIValue* stack, std::uint64_t, std::uint64_t) {         \
        call(&torch_adapter::name, "carafe::" #name "_in_pytorch", stack); \
    }
CARAFE_OPERATORS(CARAFE_BOX)
#undef CARAFE_BOX

}  // namespace boxed

// --- registration --------------------------------------------------------------------------------

constexpr char const* kFile = "libcarafe_torch.so";

/// Torch forgets the operators when the handles die, at the end of the process.
class Registration {
  public:
    Registration() {
        is_done_ = aoti_torch_library_init_fragment("carafe", kFile, 0, &definitions_) == 0 &&
                   aoti_torch_library_init_impl("carafe", kDevices, kFile, 0, &kernels_) == 0;
#define CARAFE_ADD(name, plugin, stem)                                     \
    is_done_ = is_done_ && add(#name, schemas::name, &boxed::name);        \
    if (is_done_ && takes_tensors(&torch_adapter::name)) {                 \
        is_done_ = add(#name "_of_own_list", schemas::name, &boxed::name); \
    }
        CARAFE_OPERATORS(CARAFE_ADD)
#undef CARAFE_ADD
        if (is_done_) return;
        forget();
        std::fputs(
            "libcarafe_torch.so: torch did not take its operators, see the message above; most "
            "likely the Python package carafe_deploy.ops or another libcarafe_torch.so has "
            "registered them already. Those operators stay and this library registers none.\n",
            stderr);
    }
    ~Registration() { forget(); }
    Registration(Registration const&) = delete;
    Registration& operator=(Registration const&) = delete;

    bool has(char const* operator_name) const {
        bool found = false;
#define CARAFE_FIND(name, plugin, stem) found = found || std::strcmp(operator_name, #name) == 0;
        CARAFE_OPERATORS(CARAFE_FIND)
#undef CARAFE_FIND
        return is_done_ && found;
    }

  private:
    /// All devices: where no kernel computes, PyTorch does or the call is refused. So Python may
    /// put a kernel of its own before ours.
    static constexpr char const* kDevices = "CompositeExplicitAutograd";

    bool add(
        char const* name, char const* schema,
        void (*boxed)(StableIValue*, std::uint64_t, std::uint64_t)) {
        return aoti_torch_library_def(definitions_, Text(name, schema).c_str()) == 0 &&
               torch_library_impl(kernels_, name, boxed, kTorchVersion) == 0;
    }

    void forget() {
        for (TorchLibraryHandle* library : {&kernels_, &definitions_}) {
            if (*library != nullptr) aoti_torch_delete_library_object(*library);
            *library = nullptr;
        }
    }

    TorchLibraryHandle definitions_ = nullptr;
    TorchLibraryHandle kernels_ = nullptr;
    bool is_done_ = false;
};

Registration const registration;

}  // namespace
}  // namespace carafe::torch_adapter

// --- for carafe_deploy/ops/_torch_library.py -----------------------------------------------------

#define CARAFE_API __attribute__((visibility("default")))

extern "C" {

CARAFE_API std::int32_t carafe_torch_abi_version() {
    return 1;
}

/// 1 where this library has registered an operator of that name.
CARAFE_API std::int32_t carafe_torch_has(char const* name) {
    return carafe::torch_adapter::registration.has(name) ? 1 : 0;
}

/// Python has registered operators NAME_in_pytorch, for calls that the kernels do not serve.
CARAFE_API void carafe_torch_offer_pytorch() {
    carafe::torch_adapter::offer_pytorch();
}

/// They compute all calls of this thread from now on, or no longer do.
CARAFE_API void carafe_torch_prefer_pytorch(std::int32_t wanted) {
    carafe::torch_adapter::prefer_pytorch(wanted != 0);
}

}  // extern "C"
