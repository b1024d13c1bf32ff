# Toolchain: compiles for 64-bit Arm on another Linux machine (g++-aarch64-linux-gnu) and runs tests in qemu-user-static.
# The runtime also needs the libraries of the other machine: CMAKE_SYSROOT is a copy of its root folder, SIFA_TORCH_DIR of
# its torch (scripts/test_embedded.sh makes both).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static;-cpu;max;-L;/usr/aarch64-linux-gnu)
# Nothing of this machine's, where there is a root of the other's.
if(CMAKE_SYSROOT)
  foreach(_kind LIBRARY INCLUDE PACKAGE)
    set(CMAKE_FIND_ROOT_PATH_MODE_${_kind} ONLY)
  endforeach()
endif()
