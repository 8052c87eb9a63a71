// The two functions by which TensorRT takes plugins from a library.
#include "plugin.h"

#define CARAFE_ENTRY extern "C" __attribute__((visibility("default")))

CARAFE_ENTRY nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static carafe::Creator carafe(carafe::carafe_prototype());
    static carafe::Creator carafe_encoded(carafe::carafe_encoded_prototype());
    static carafe::Creator roi_align(carafe::multilevel_roi_align_prototype());
    static carafe::Creator nms(carafe::batched_nms_prototype());
    static nvinfer1::IPluginCreatorInterface* const creators[] = {
        &carafe, &carafe_encoded, &roi_align, &nms};
    count = 4;
    return creators;
}

/// Errors go to stderr, so no logger is ever asked for.
CARAFE_ENTRY void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
