# Enables CUDA and sets CARAFE_HAVE_CUDA. The compiler comes from CMAKE_CUDA_COMPILER, CUDACXX,
# CUDA_HOME or PATH, else from NVIDIA's wheels on PyPI.

set(CARAFE_HAVE_CUDA FALSE)
if(NOT CARAFE_CUDA)
  return()
endif()

# NVIDIA's compiler as wheels; they agree only within one CUDA minor version.
set(CARAFE_CUDA_WHEELS
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CARAFE_NVCC nvcc
    HINTS ENV CUDA_HOME ENV CUDA_PATH ENV CUDAToolkit_ROOT
    PATH_SUFFIXES bin
    NO_CMAKE_PATH NO_CMAKE_SYSTEM_PATH NO_CMAKE_INSTALL_PREFIX)
  if(NOT CARAFE_NVCC AND CARAFE_FETCH)
    set(wheels "${CMAKE_BINARY_DIR}/cuda-from-pypi")
    set(root "${wheels}/nvidia/cu13")
    if(NOT EXISTS "${root}/bin/nvcc")
      message(STATUS "No nvcc on PATH or in CUDA_HOME: fetching CUDA 13.0's compiler from PyPI")
      carafe_pip(fetched install --no-deps --quiet --target "${wheels}" ${CARAFE_CUDA_WHEELS})
    endif()
    if(EXISTS "${root}/bin/nvcc")
      # The wheels keep libraries in lib and only with their version; nvcc and CMake look in lib64
      # for plain names.
      file(CREATE_LINK lib "${root}/lib64" SYMBOLIC)
      file(CREATE_LINK libcudart.so.13 "${root}/lib/libcudart.so" SYMBOLIC)
      set(CARAFE_NVCC "${root}/bin/nvcc" CACHE FILEPATH "" FORCE)
    endif()
  endif()
  if(CARAFE_NVCC)
    set(CMAKE_CUDA_COMPILER "${CARAFE_NVCC}")
  endif()
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  if(CARAFE_CUDA STREQUAL "AUTO")
    message(NOTICE
      "carafe_deploy: no CUDA compiler found, so this build is for the CPU only: no CUDA kernels, "
      "no TensorRT plugins. Put nvcc (CUDA 12.4 or newer) on PATH or set CUDA_HOME to change that.")
    return()
  endif()
  message(FATAL_ERROR
    "CARAFE_CUDA is ON but no CUDA compiler was found: put nvcc (CUDA 12.4 or newer) on PATH, set "
    "CUDA_HOME or CMAKE_CUDA_COMPILER, or configure with -DCARAFE_CUDA=OFF")
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CARAFE_DEFAULT_ARCHITECTURES TRUE)
  set(CMAKE_CUDA_ARCHITECTURES 75-real)  # for the compiler's own check; chosen below
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR
    "${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}: 12.4 or newer is needed")
endif()
if(CARAFE_DEFAULT_ARCHITECTURES)
  unset(CMAKE_CUDA_ARCHITECTURES)
  set(architectures 75-real 80-real 86-real 87-real 89-real 90)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND architectures 100-real 120)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES "${architectures}" CACHE STRING
    "CUDA architectures; N-real is machine code only, N adds PTX" FORCE)
endif()
find_package(CUDAToolkit REQUIRED)
set(CARAFE_HAVE_CUDA TRUE)
