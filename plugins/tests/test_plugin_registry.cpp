// The registry's methods are found in both forms of its virtual table.
#include <gtest/gtest.h>

#include "../tensorrt/registry.h"

#include <cstring>

#include "plugin_testing.h"

namespace carafe::testing {
namespace {

/// What a registry was asked.
struct Calls {
    std::string loaded;
    std::string sought;
};

/// The virtual table since TensorRT 11 and in TensorRT-RTX.
class LaterRegistry {
  public:
    explicit LaterRegistry(Calls& calls) : calls_(calls) {}
    virtual ~LaterRegistry() = default;
    virtual void set_error_recorder(void*) {}
    virtual void* error_recorder() const { return nullptr; }
    virtual bool is_parent_search_enabled() const { return false; }
    virtual void set_parent_search_enabled(bool) {}
    virtual void* load_library(char const* path) {
        calls_.loaded = path;
        return nullptr;
    }
    virtual void deregister_library(void*) {}
    virtual bool register_creator(void*, char const*) { return false; }
    virtual void* all_creators(std::int32_t*) const { return nullptr; }
    virtual void* get_creator(char const* name, char const* version, char const* plugin_namespace) {
        calls_.sought = std::string(name) + '/' + version + '/' + plugin_namespace;
        return nullptr;
    }

  private:
    Calls& calls_;
};

/// Where a virtual method stands in its class's virtual table.
template <typename Method>
std::size_t slot_of(Method method) {
    std::intptr_t words[2];
    static_assert(sizeof method == sizeof words);
    std::memcpy(words, &method, sizeof words);
    return static_cast<std::size_t>(words[0]) / sizeof(void*);
}

void* load_library(Calls** registry, char const* path) {
    registry[1]->loaded = path;
    return nullptr;
}

void* get_creator(
    Calls** registry, char const* name, char const* version, char const* plugin_namespace) {
    registry[1]->sought = std::string(name) + '/' + version + '/' + plugin_namespace;
    return registry;
}

/// With the TensorRT headers at hand, whichever version that is.
TEST(Registry, IsCalledWhereTheHeadersSay) {
    Calls calls;
    void* table[32] = {};
    table[slot_of(&nvinfer1::IPluginRegistry::loadLibrary)] =
        reinterpret_cast<void*>(&load_library);
    table[slot_of(&nvinfer1::IPluginRegistry::getCreator)] = reinterpret_cast<void*>(&get_creator);
    void* fake[] = {table, &calls};
    Registry const registry(fake, static_cast<std::int32_t>(NV_TENSORRT_VERSION));
    registry.load_library("/a/b.so");
    EXPECT_EQ(calls.loaded, "/a/b.so");
    EXPECT_TRUE(registry.has("Carafe", "1", "carafe"));
    EXPECT_EQ(calls.sought, "Carafe/1/carafe");
}

TEST(Registry, IsCalledInItsLaterForm) {
    for (std::int32_t const version : {10701, 110400}) {
        Calls calls;
        LaterRegistry fake(calls);
        Registry const registry(&fake, version);
        registry.load_library("/a/b.so");
        EXPECT_EQ(calls.loaded, "/a/b.so");
        EXPECT_FALSE(registry.has("Carafe", "1", "carafe"));
        EXPECT_EQ(calls.sought, "Carafe/1/carafe");
    }
}

TEST(Registry, OtherVersionsAreNotCalled) {
    for (std::int32_t const version : {10000, 10701, 100001, 101401, 110400}) {
        EXPECT_TRUE(Registry::knows(version)) << version;
    }
    for (std::int32_t const version : {0, 8601, 9300, 20000, 120000}) {
        EXPECT_FALSE(Registry::knows(version)) << version;
    }
}

}  // namespace
}  // namespace carafe::testing
