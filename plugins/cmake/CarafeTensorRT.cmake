# Finds TensorRT's headers and sets CARAFE_TENSORRT_INCLUDE. No library is needed: the plugins link
# none. Headers come from TENSORRT_ROOT, the system, else a wheel on PyPI that carries the
# Apache-2.0 headers of TensorRT 10.14; they serve TensorRT 10, 11 and TensorRT-RTX alike.

set(CARAFE_TENSORRT_INCLUDE "")
if(NOT CARAFE_TENSORRT)
  return()
endif()

set(CARAFE_HEADERS_WHEEL kernel-lens==2.0.1)
set(CARAFE_HEADERS_SHA256 07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0)

find_path(CARAFE_TENSORRT_HEADERS NvInferRuntime.h
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT
  PATH_SUFFIXES include include/x86_64-linux-gnu include/aarch64-linux-gnu)
if(NOT CARAFE_TENSORRT_HEADERS AND CARAFE_FETCH)
  set(folder "${CMAKE_BINARY_DIR}/tensorrt-headers")
  set(headers "${folder}/kernel_lens/include/tensorrt")
  if(NOT EXISTS "${headers}/NvInferRuntime.h")
    message(STATUS "No TensorRT headers in TENSORRT_ROOT or the system: fetching ${CARAFE_HEADERS_WHEEL}")
    carafe_pip(fetched download --no-deps --quiet --dest "${folder}" ${CARAFE_HEADERS_WHEEL})
    file(GLOB wheel "${folder}/kernel_lens-*.whl")
    if(wheel)
      file(SHA256 "${wheel}" found)
      if(NOT found STREQUAL CARAFE_HEADERS_SHA256)
        file(REMOVE "${wheel}")
        message(FATAL_ERROR
          "${wheel} has SHA-256 ${found}, expected ${CARAFE_HEADERS_SHA256}: "
          "set TENSORRT_ROOT to a TensorRT installation instead")
      endif()
      file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}")
    endif()
  endif()
  if(EXISTS "${headers}/NvInferRuntime.h")
    set(CARAFE_TENSORRT_HEADERS "${headers}" CACHE PATH "" FORCE)
  endif()
endif()

if(CARAFE_TENSORRT_HEADERS)
  set(CARAFE_TENSORRT_INCLUDE "${CARAFE_TENSORRT_HEADERS}")
  message(STATUS "TensorRT headers: ${CARAFE_TENSORRT_INCLUDE}")
elseif(CARAFE_TENSORRT STREQUAL "AUTO")
  message(NOTICE
    "carafe_deploy: no TensorRT headers found, so no TensorRT plugins are built. "
    "Set TENSORRT_ROOT to a TensorRT installation to change that.")
else()
  message(FATAL_ERROR
    "CARAFE_TENSORRT is ON but NvInferRuntime.h was not found: set TENSORRT_ROOT")
endif()
