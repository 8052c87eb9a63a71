# The plugins' own sources; the library and the tests compile them.
carafe_sources(CARAFE_TENSORRT_SOURCES "${CMAKE_CURRENT_LIST_DIR}" _plugin.cpp)
foreach(source fields.cpp tensors.cpp plugin.cpp library.cpp)
  list(APPEND CARAFE_TENSORRT_SOURCES "${CMAKE_CURRENT_LIST_DIR}/${source}")
endforeach()
