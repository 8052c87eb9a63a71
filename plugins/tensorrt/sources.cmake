# The plugins' own sources; the library and the tests compile them.
set(CARAFE_TENSORRT_SOURCES
  fields.cpp tensors.cpp plugin.cpp carafe_plugin.cpp roi_align_plugin.cpp nms_plugin.cpp
  library.cpp)
list(TRANSFORM CARAFE_TENSORRT_SOURCES PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
