# Fetching from PyPI at configure time, into the build folder only.

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)

# carafe_pip(<result variable> <pip arguments>...): true on success, else the output is shown.
function(carafe_pip result)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check --no-input ${ARGN}
    RESULT_VARIABLE status
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(status EQUAL 0)
    set(${result} TRUE PARENT_SCOPE)
  else()
    message(STATUS "pip ${ARGN} failed:\n${output}")
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()
