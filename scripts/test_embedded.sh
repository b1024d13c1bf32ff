#!/usr/bin/env bash
# Compiles the operators, the runtime and sifa-run for 64-bit Arm, and compares sifa-run in qemu with the one of .venv:
#   test_embedded.sh
# build/embedded/root gets the system's own release for arm64 (C library, OpenCV, …), unpacked and not installed, and
# build/embedded/torch an Arm LibTorch: some 300 MB to download. A later run uses them again.
set -euo pipefail
cd "$(dirname "$0")/.."

# Newer ones crash in qemu. What 2.14 exports loads in it.
torch=2.10.0
packages=(zlib1g-dev nlohmann-json3-dev libcli11-dev libopencv-videoio-dev libopencv-imgcodecs-dev libopencv-imgproc-dev)

folder=build/embedded
root=$PWD/$folder/root
stop() {
  echo "SIFA: $*" >&2
  exit 1
}

# The network is asked only where something is missing; half a download does not count.
is_made() { [[ -e $1/.made && $(<"$1/.made") == "$2" ]]; }
begin() { rm -rf "$1" && mkdir -p "$1"; }

make_root() {
  ! is_made "$root" "${packages[*]}" || return 0
  local apt=$PWD/$folder/apt package
  echo "==> Downloading arm64 libraries into $folder/root"
  begin "$root"
  { scripts/private_apt.sh "$apt" arm64 &&
    APT_CONFIG=$apt/conf apt-get -q -y --download-only install "${packages[@]}" >>"$apt.log" 2>&1; } ||
    stop "the arm64 packages cannot be downloaded (log: $folder/apt.log): connect to the network, and name in" \
      "/etc/apt a mirror that has arm64 (Debian's all do; Ubuntu's is http://ports.ubuntu.com)"
  for package in "$apt"/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
  rm -rf "$apt"
  echo "${packages[*]}" >"$root/.made"
}

make_torch() {
  ! is_made "$folder/torch" "$torch" || return 0
  echo "==> Downloading LibTorch $torch for 64-bit Arm into $folder/torch"
  begin "$folder/torch"
  .venv/bin/python -m pip install -q --disable-pip-version-check --progress-bar off --no-deps --no-compile \
    --target "$folder/torch" --platform manylinux_2_28_aarch64 --python-version 3.11 --only-binary=:all: \
    "torch==$torch" >"$folder/pip.log" 2>&1 ||
    stop "torch $torch for aarch64 cannot be downloaded (log: $folder/pip.log): connect to PyPI, or to a mirror" \
      "of it that has wheels for manylinux_2_28_aarch64"
  echo "$torch" >"$folder/torch/.made"
}

make_root
make_torch
{ .venv/bin/cmake -S . -B "$folder/cmake" --toolchain cmake/aarch64.cmake -DCMAKE_SYSROOT="$root" \
  -DSIFA_TORCH_DIR="$PWD/$folder/torch/torch" -DSIFA_CUDA=OFF -DSIFA_RUNTIME=ON -DSIFA_PYTHON=OFF &&
  .venv/bin/cmake --build "$folder/cmake"; } >"$folder/build.log" 2>&1 ||
  { tail -n 60 "$folder/build.log" >&2 && stop "the build failed; the whole log is $folder/build.log"; }

# Debian links these two folders into its default ones when it configures the packages.
libraries=/usr/lib/aarch64-linux-gnu
SIFA_RUN_AARCH64="qemu-aarch64-static -cpu max -E LD_LIBRARY_PATH=$libraries/blas:$libraries/lapack -L $root
  $PWD/$folder/cmake/cpp/sifa-run" .venv/bin/python -m pytest tests/embedded
