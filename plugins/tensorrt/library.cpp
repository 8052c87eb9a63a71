// The two functions by which TensorRT takes plugins from a library.
#include "plugin.h"

#define CARAFE_ENTRY extern "C" __attribute__((visibility("default")))

CARAFE_ENTRY nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
#define CARAFE_CREATOR(name, plugin, stem) static carafe::Creator name(carafe::name##_prototype());
#define CARAFE_ADDRESS(name, plugin, stem) &name,
    CARAFE_OPERATORS(CARAFE_CREATOR)
    static nvinfer1::IPluginCreatorInterface* const creators[] = {CARAFE_OPERATORS(CARAFE_ADDRESS)};
#undef CARAFE_CREATOR
#undef CARAFE_ADDRESS
    count = sizeof creators / sizeof *creators;
    return creators;
}

/// Errors go to stderr, so no logger is ever asked for.
CARAFE_ENTRY void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
