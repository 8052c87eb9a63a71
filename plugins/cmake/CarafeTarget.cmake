# What all our targets have in common.

find_package(Threads REQUIRED)

# Made by glibc_stubs.py; the libraries then run on glibc 2.28 and newer.
set(CARAFE_GLIBC_STUBS "" CACHE PATH "Folder of glibc stubs to link against; empty: the system's")

function(carafe_target target)
  target_compile_features(${target} PUBLIC cxx_std_17)
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    CXX_EXTENSIONS OFF
    CUDA_STANDARD 17)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror --Werror=all-warnings>)
  if(CARAFE_SANITIZE)
    set(sanitizers address,undefined)
    if(CARAFE_SANITIZE STREQUAL "THREAD")
      set(sanitizers thread)
      # GCC then takes vectors that it has just written for uninitialised.
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    # Checks in every vectorised loop take the compiler minutes at -O3.
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-O1 -fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${sanitizers})
  endif()
endfunction()

# A shared library that exports the symbols of its version script and nothing else, finds its
# neighbours beside it, and needs no C++ runtime of a certain compiler: it has its own, unless
# SYSTEM_RUNTIME is said.
function(carafe_library target exports)
  carafe_target(${target})
  target_link_options(${target} PRIVATE
    "LINKER:--version-script=${exports}" LINKER:--no-undefined LINKER:--as-needed)
  if(NOT CARAFE_SANITIZE AND NOT "SYSTEM_RUNTIME" IN_LIST ARGN)
    target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc)
  endif()
  if(CARAFE_GLIBC_STUBS)
    target_link_options(${target} PRIVATE "-L${CARAFE_GLIBC_STUBS}")
    target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/plugins/cmake/glibc_compat.cpp")
  endif()
  set_target_properties(${target} PROPERTIES
    LINK_DEPENDS "${exports}"
    BUILD_RPATH "$ORIGIN"
    INSTALL_RPATH "$ORIGIN"
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
endfunction()
