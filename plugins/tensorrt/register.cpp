// libcarafe_tensorrt_register.so: for programs that can only dlopen a plugin library (polygraphy
// --plugins). When loaded, it has the registry of each TensorRT in the process load
// libcarafe_tensorrt.so, which lies beside it, and readies TensorRT-RTX for it (rtx_alias.cpp).
#include <dlfcn.h>
#include <limits.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "registry.h"

namespace {

/// Most TensorRT libraries in one process that are looked at.
constexpr int kMaxLibraries = 8;

/// Paths of the TensorRT libraries that the process has loaded.
struct Libraries {
    int count = 0;
    char const* paths[kMaxLibraries];
};

bool is_tensorrt(char const* path) {
    char const* slash = std::strrchr(path, '/');
    char const* name = slash == nullptr ? path : slash + 1;
    for (char const* prefix :
         {"libnvinfer.so", "libnvinfer_lean.so", "libnvinfer_dispatch.so", "libtensorrt_rtx.so"}) {
        if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
    }
    return false;
}

Libraries loaded_tensorrts() {
    Libraries libraries;
    auto const collect = [](dl_phdr_info* library, std::size_t, void* data) {
        auto& found = *static_cast<Libraries*>(data);
        if (found.count < kMaxLibraries && is_tensorrt(library->dlpi_name)) {
            found.paths[found.count++] = library->dlpi_name;
        }
        return 0;
    };
    dl_iterate_phdr(collect, &libraries);
    return libraries;
}

template <typename Function>
Function* find(void* library, char const* name) {
    return reinterpret_cast<Function*>(dlsym(library, name));
}

/// Absolute path of a file beside this library; empty when it is too long.
struct Path {
    explicit Path(char const* file) {
        Dl_info self{};
        dladdr(reinterpret_cast<void const*>(&is_tensorrt), &self);
        if (realpath(self.dli_fname, text) == nullptr) text[0] = '\0';
        char* const slash = std::strrchr(text, '/');
        std::size_t const folder =
            slash == nullptr ? 0 : static_cast<std::size_t>(slash + 1 - text);
        int const length = std::snprintf(text + folder, sizeof text - folder, "%s", file);
        if (folder + static_cast<std::size_t>(length) >= sizeof text) text[0] = '\0';
    }

    char text[PATH_MAX];
};

void register_with(carafe::Registry const& registry, char const* tensorrt) {
    auto const has_plugins = [&] { return registry.has("Carafe", "1", "carafe"); };
    if (has_plugins()) return;
    Path const plugins("libcarafe_tensorrt.so");
    registry.load_library(plugins.text);
    if (!has_plugins()) {
        std::fprintf(stderr, "carafe: %s could not load %s\n", tensorrt, plugins.text);
    }
}

/// Registers with one TensorRT; false when the library proves to be none.
bool register_with(char const* tensorrt) {
    // Its functions are found by name: these libraries are seldom loaded for all to see.
    void* const library = dlopen(tensorrt, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return false;
    auto* const registry = find<void*()>(library, "getPluginRegistry");
    auto* const version = find<std::int32_t()>(library, "getInferLibVersion");
    dlclose(library);  // the process still holds it
    if (registry == nullptr || version == nullptr) return false;
    if (!carafe::Registry::knows(version())) {
        std::fprintf(
            stderr,
            "carafe: %s has version %d, for which there are no plugins: use TensorRT 10 or 11, or "
            "TensorRT-RTX 1\n",
            tensorrt, static_cast<int>(version()));
        return true;
    }
    void* const plugins = registry();
    if (plugins == nullptr) return false;
    register_with(carafe::Registry(plugins, version()), tensorrt);
    return true;
}

__attribute__((constructor)) void register_plugins() {
    Libraries const tensorrts = loaded_tensorrts();
    bool registered = false;
    for (int i = 0; i < tensorrts.count; ++i) {
        if (!register_with(tensorrts.paths[i])) continue;
        registered = true;
        if (std::strstr(tensorrts.paths[i], "libtensorrt_rtx.so") != nullptr) {
            dlopen(Path("rtx/libtensorrt_rtx.so").text, RTLD_LAZY);
        }
    }
    if (!registered) {
        std::fprintf(
            stderr,
            "carafe: no TensorRT is loaded in this process, so no plugins were registered: load "
            "libnvinfer.so or libtensorrt_rtx.so first (polygraphy: name its path before this "
            "library's in --plugins)\n");
    }
}

}  // namespace
