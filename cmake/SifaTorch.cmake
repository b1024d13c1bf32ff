# Finds torch and describes it as two targets that must never meet in one binary: with TORCH_TARGET_VERSION set, the
# headers of LibTorch's C++ API refuse to compile.
#
#   sifa::torch_stable   the stable ABI, pinned to torch 2.10: one binary for every torch from 2.10 on
#   sifa::torch          LibTorch's C++ API: a binary for this torch
#
# Headers and libraries are named directly. torch's own find_package(Torch) stops where a CUDA torch has no CUDA toolkit
# beside it, or one without nvrtc.
#
# Reads SIFA_TORCH_DIR (a folder with include/ and lib/, such as an unpacked libtorch), else asks Python_EXECUTABLE.
# Sets SIFA_TORCH_DIR, SIFA_TORCH_LIBRARY_DIR, SIFA_TORCH_VERSION, SIFA_TORCH_HAS_CUDA and SIFA_RPATH.

set(SIFA_TORCH_DIR "" CACHE PATH "Folder of torch, with include/ and lib/ (default: the torch of Python_EXECUTABLE)")

if(NOT SIFA_TORCH_DIR)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE SIFA_TORCH_DIR
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT SIFA_TORCH_DIR)
    message(FATAL_ERROR "No torch in ${Python_EXECUTABLE}: install torch >= 2.10 there, or set SIFA_TORCH_DIR to an "
                        "unpacked libtorch.")
  endif()
endif()

set(SIFA_TORCH_LIBRARY_DIR "${SIFA_TORCH_DIR}/lib")
set(_version_header "${SIFA_TORCH_DIR}/include/torch/headeronly/version.h")
if(NOT EXISTS "${_version_header}")
  message(FATAL_ERROR "${SIFA_TORCH_DIR} is no torch >= 2.10: ${_version_header} is missing.")
endif()
file(STRINGS "${_version_header}" _version_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
string(REGEX REPLACE "[^0-9]*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" SIFA_TORCH_VERSION
                     "${_version_lines}")
if(SIFA_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${SIFA_TORCH_VERSION} in ${SIFA_TORCH_DIR} is too old: the stable ABI used here is that of "
                      "torch 2.10.")
endif()
set(SIFA_TORCH_HAS_CUDA OFF)
if(EXISTS "${SIFA_TORCH_LIBRARY_DIR}/libtorch_cuda.so")
  set(SIFA_TORCH_HAS_CUDA ON)
endif()
message(STATUS "torch ${SIFA_TORCH_VERSION} (CUDA: ${SIFA_TORCH_HAS_CUDA}) in ${SIFA_TORCH_DIR}")

add_library(sifa_torch_stable INTERFACE)
add_library(sifa::torch_stable ALIAS sifa_torch_stable)
target_include_directories(sifa_torch_stable SYSTEM INTERFACE "${SIFA_TORCH_DIR}/include")
target_compile_definitions(sifa_torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_libraries(sifa_torch_stable INTERFACE "${SIFA_TORCH_LIBRARY_DIR}/libtorch_cpu.so"
                                                  "${SIFA_TORCH_LIBRARY_DIR}/libc10.so")

add_library(sifa_torch INTERFACE)
add_library(sifa::torch ALIAS sifa_torch)
target_include_directories(sifa_torch SYSTEM INTERFACE "${SIFA_TORCH_DIR}/include"
                                                       "${SIFA_TORCH_DIR}/include/torch/csrc/api/include")
# libtorch.so is named by AOTInductor packages and the CUDA libraries only register kernels: no symbol of theirs is used,
# so the linker would leave them out.
set(_torch_libraries "${SIFA_TORCH_LIBRARY_DIR}/libtorch.so")
if(SIFA_TORCH_HAS_CUDA)
  list(APPEND _torch_libraries "${SIFA_TORCH_LIBRARY_DIR}/libtorch_cuda.so" "${SIFA_TORCH_LIBRARY_DIR}/libc10_cuda.so")
endif()
target_link_libraries(
  sifa_torch INTERFACE "${SIFA_TORCH_LIBRARY_DIR}/libtorch_cpu.so" "${SIFA_TORCH_LIBRARY_DIR}/libc10.so"
                       -Wl,--push-state,--no-as-needed ${_torch_libraries} -Wl,--pop-state)

# A linker with a system root looks there for what our libraries need, whatever folder they name.
if(CMAKE_CROSSCOMPILING)
  target_link_options(sifa_options INTERFACE "-Wl,-rpath-link,${SIFA_TORCH_LIBRARY_DIR}")
endif()

# Where the installed libraries (sifa/lib in site-packages) find their own kind and torch. A build in place and an editable
# install also name the torch they were built with; what goes to other machines (a wheel, a package) does not.
option(SIFA_RELOCATABLE "Name no folder of this machine in what is installed: torch is then looked for beside sifa/" OFF)
set(SIFA_RPATH "$ORIGIN" "$ORIGIN/../../torch/lib")
if(NOT SIFA_RELOCATABLE AND NOT SKBUILD_STATE STREQUAL "wheel")
  list(APPEND SIFA_RPATH "${SIFA_TORCH_LIBRARY_DIR}")
endif()
