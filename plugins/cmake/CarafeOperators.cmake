# What CMake takes from the list of operators, kernels/operators.h: CARAFE_STEMS, the stems of their
# source files. carafe_sources(variable folder suffix...) sets paths of those that there are.

set(operators_header "${CMAKE_CURRENT_LIST_DIR}/../kernels/operators.h")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${operators_header}")
file(READ "${operators_header}" text)
string(REGEX MATCHALL "X\\([a-z_]+, [A-Za-z]+, [a-z_]+\\)" CARAFE_STEMS "${text}")
list(TRANSFORM CARAFE_STEMS REPLACE ".*, ([a-z_]+)\\)" "\\1")
list(REMOVE_DUPLICATES CARAFE_STEMS)

function(carafe_sources variable folder)
  set(found "")
  foreach(stem IN LISTS CARAFE_STEMS)
    foreach(suffix IN LISTS ARGN)
      if(EXISTS "${folder}/${stem}${suffix}")
        list(APPEND found "${folder}/${stem}${suffix}")
      endif()
    endforeach()
  endforeach()
  set(${variable} "${found}" PARENT_SCOPE)
endfunction()
