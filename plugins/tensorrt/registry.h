// TensorRT's plugin registry, called without TensorRT's headers. TensorRT 11 and TensorRT-RTX
// dropped the methods of IPluginRegistry that were deprecated in TensorRT 10, so the others stand
// elsewhere in its virtual table; a binary for all of them picks the place by version.
#pragma once

#include <cstdint>

namespace carafe {

/// A view of the registry that getPluginRegistry() returns.
class Registry {
  public:
    /// Whether the places below hold for what getInferLibVersion() returns: 101401 is TensorRT
    /// 10.14.1, 110400 TensorRT 11.4.0, 10701 TensorRT-RTX 1.7.1. TensorRT 8.6.1 is 8601.
    static bool knows(std::int32_t version) {
        std::int32_t const major = version / 10000;
        return major == 1 || major == 10 || major == 11;
    }

    /// `version` is one that it knows.
    Registry(void* registry, std::int32_t version)
        : registry_(registry), slots_(version / 10000 == 10 ? kTensorRT10 : kLater) {}

    void load_library(char const* path) const {
        slot<LoadLibrary>(slots_.load_library)(registry_, path);
    }

    bool has(char const* plugin, char const* version, char const* plugin_namespace) const {
        return slot<GetCreator>(slots_.get_creator)(registry_, plugin, version, plugin_namespace) !=
               nullptr;
    }

  private:
    using LoadLibrary = void* (*)(void* registry, char const* path);
    using GetCreator = void* (*)(
        void* registry, char const* name, char const* version, char const* plugin_namespace);

    struct Slots {
        int load_library, get_creator;
    };
    static constexpr Slots kTensorRT10{10, 14};
    static constexpr Slots kLater{6, 10};

    template <typename Function>
    Function slot(int index) const {
        return reinterpret_cast<Function>((*static_cast<void***>(registry_))[index]);
    }

    void* registry_;
    Slots slots_;
};

}  // namespace carafe
