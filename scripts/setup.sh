#!/usr/bin/env bash
# Sets a Debian or Ubuntu machine up for the Makefile, in steps that it calls in this order:
#   setup.sh machine                system packages that are missing, and whether .venv fits what was asked for
#   setup.sh venv                   .venv with torch, the other dependencies and the development tools
#   setup.sh build BUILD_DIR        the package in .venv: editable, with the C++ runtime
#   setup.sh build-tests BUILD_DIR  the C++ tests
#   setup.sh packages NAME…         further system packages that a target needs
# PYTHON, TORCH and TORCH_INDEX come from the Makefile, empty where not given. Whatever is missing and cannot be
# installed stops with one sentence that names it.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-}
TORCH=${TORCH:-}
TORCH_INDEX=${TORCH_INDEX:-}

say() { echo "==> $*"; }
stop() {
  echo "SIFA: $*" >&2
  exit 1
}

# An existing .venv has already chosen its Python.
interpreter() {
  if [[ -n $PYTHON ]]; then
    echo "$PYTHON"
  elif [[ -x .venv/bin/python ]]; then
    echo .venv/bin/python
  else
    echo python3
  fi
}

check_python() {
  local python=$1
  "$python" -c '' 2>/dev/null ||
    stop "the command $python is missing: install Python 3.10 to 3.13, or name one with make PYTHON=…"
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
    stop "$python is $("$python" --version 2>&1), and Python 3.10 to 3.13 is needed: name one with make PYTHON=…"
}

check_system() {
  local id_like
  # shellcheck source=/dev/null
  id_like=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${ID_LIKE:-}") || true
  if [[ " $id_like " != *" debian "* ]] || ! command -v apt-get >/dev/null; then
    stop "this set-up needs Debian or Ubuntu, whose apt-get has its system packages, and this is: ${id_like:-unknown}"
  fi
  command -v g++ >/dev/null || stop "the C++ compiler g++ is missing: apt-get install g++"
}

is_installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# The packages that are missing, one per line. $1 is the Python that .venv is or will be made from.
missing_packages() {
  local package version
  for package in ffmpeg libcli11-dev libgtest-dev nlohmann-json3-dev zlib1g-dev; do
    is_installed "$package" || echo "$package"
  done
  # A full OpenCV, such as NVIDIA's for Jetson, already has these parts and conflicts with Debian's.
  for package in libopencv-videoio-dev libopencv-imgcodecs-dev libopencv-imgproc-dev; do
    is_installed libopencv-dev || is_installed "$package" || echo "$package"
  done
  # Debian splits Python; an interpreter from elsewhere has venv and headers, or its owner must add them.
  version=$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  if [[ $("$1" -c 'import sys; print(sys.base_prefix)') == /usr ]]; then
    "$1" -c 'import ensurepip, venv' 2>/dev/null || echo "$version-venv"
    has_headers "$1" || echo "$version-dev"
  fi
}

packages() {
  local package missing=()
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"
}

has_headers() {
  [[ -e $("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]
}

install_packages() {
  local sudo=()
  if [[ $(id -u) != 0 ]]; then
    # Without a terminal sudo cannot ask for a password.
    if ! command -v sudo >/dev/null || ! { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
      stop "system packages are missing, which only root can install; run as root:
apt-get update && apt-get install -y --no-install-recommends $*"
    fi
    sudo=(sudo)
  fi
  say "Installing system packages with apt-get: $*"
  local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
  # The package lists of a fresh machine are empty or old.
  if ! apt-get install -s --no-install-recommends "$@" >/dev/null 2>&1 || ! "${install[@]}" >/dev/null; then
    "${sudo[@]}" apt-get update -qq
    "${install[@]}" >/dev/null || stop "apt-get could not install: $*"
  fi
}

machine() {
  local python packages
  [[ -z $TORCH || $TORCH == existing ]] || stop "TORCH must be \"existing\" or not given, got \"$TORCH\""
  [[ -z $TORCH || -z $TORCH_INDEX ]] || stop "TORCH=existing and TORCH_INDEX exclude each other"
  check_system
  python=$(interpreter)
  check_python "$python"
  mapfile -t packages < <(missing_packages "$python")
  [[ ${#packages[@]} == 0 ]] || install_packages "${packages[@]}"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || stop "$python has no venv module: install it, or name another with make PYTHON=…"
  has_headers "$python" || stop "$python has no Python.h: install its development files, or name another with make PYTHON=…"
  check_venv "$python"
}

# .venv stays as it was made: its Python and its torch are changed only by removing it. .venv/.settings holds TORCH and
# TORCH_INDEX, a line each.
check_venv() {
  [[ -x .venv/bin/python ]] || return 0
  local wanted existing torch='' torch_index=''
  wanted=$("$1" -c 'import sys; print(sys.version.split()[0])')
  existing=$(.venv/bin/python -c 'import sys; print(sys.version.split()[0])')
  [[ $wanted == "$existing" ]] ||
    stop ".venv was made with Python $existing, not $wanted: remove it (rm -rf .venv) to make another."
  [[ ! -e .venv/.settings ]] || { read -r torch && read -r torch_index; } <.venv/.settings
  if [[ -n $TORCH && $TORCH != "$torch" ]] || [[ -n $TORCH_INDEX && $TORCH_INDEX != "$torch_index" ]]; then
    stop ".venv was made with TORCH=\"$torch\" and TORCH_INDEX=\"$torch_index\": remove it (rm -rf .venv) to make another."
  fi
}

pip_install() { .venv/bin/python -m pip --disable-pip-version-check install -q --progress-bar off "$@"; }

# constraints.txt for an interpreter that has packages already: torch and what must match it stay at the version that
# is there, what must match another torch than the pinned one is left to pip, and of any other package that is there
# nothing is asked.
constraints_beside_existing() {
  .venv/bin/python - <<'EOF'
import re
from importlib.metadata import PackageNotFoundError, version

lines = open("constraints.txt").read().splitlines()
has_pinned_torch = f"torch=={version('torch').partition('+')[0]}" in lines
for line in lines:
    name = re.match(r"[\w.-]*", line).group()
    try:
        found = version(name) if name else None
    except PackageNotFoundError:
        found = None
    if found and name in ("torch", "torchvision", "torchcodec", "numpy"):
        print(f"{name}=={found}")
    elif not found and (has_pinned_torch or name not in ("torchvision", "torchcodec")):
        print(line)
EOF
}

# What the package needs, or what one of its extras adds, from pyproject.toml. "dev" names "sifa[train]", which is
# asked for by itself: it stands on torch, and is installed as what the package needs is.
requirements() {
  .venv/bin/python - "$@" <<'EOF'
import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    pyproject = tomllib.load(file)
if sys.argv[1:]:
    extra = pyproject["project"]["optional-dependencies"][sys.argv[1]]
    print(*(name for name in extra if not name.startswith("sifa[")), sep="\n")
else:
    print(*pyproject["tool"]["dynamic-metadata"][0]["dependencies"], sep="\n")
EOF
}

# --system-site-packages shows .venv what the system's interpreter has; if $1 is that of a virtual environment, a path
# file shows it what is there.
share_packages() {
  local site_packages
  site_packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$1" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")' \
    >"$site_packages/existing.pth"
}

make_venv() {
  local python dependencies tools
  python=$(interpreter)
  if [[ ! -x .venv/bin/python ]]; then
    local options=()
    if [[ $TORCH == existing ]]; then
      "$python" -c 'import torch' 2>/dev/null || stop "TORCH=existing, but $python cannot import torch."
      options=(--system-site-packages)
    fi
    say "Making .venv with $("$python" --version)"
    "$python" -m venv "${options[@]}" .venv || { rm -rf .venv && stop "$python -m venv failed."; }
    [[ $TORCH != existing ]] || share_packages "$python"
    printf '%s\n' "$TORCH" "$TORCH_INDEX" >.venv/.settings
  elif [[ -e .venv/.settings ]]; then
    # Without the variables a later call goes on as .venv was begun.
    { read -r TORCH && read -r TORCH_INDEX; } <.venv/.settings
  fi
  say "Installing Python packages into .venv (the first time this downloads several GB)"
  mapfile -t dependencies < <(requirements && requirements train)
  mapfile -t tools < <(requirements dev)
  if [[ $TORCH == existing ]]; then
    constraints_beside_existing >.venv/.constraints
    pip_install -c .venv/.constraints "${dependencies[@]}"
    # A tool that is installed elsewhere already has its command elsewhere too; those of .venv are in .venv/bin.
    pip_install --ignore-installed -c constraints.txt "${tools[@]}"
  else
    # All that is compiled for one torch comes from the index of that torch.
    [[ -z $TORCH_INDEX ]] ||
      pip_install -c constraints.txt --index-url "$TORCH_INDEX" torch torchvision torchcodec
    pip_install -c constraints.txt "${dependencies[@]}" "${tools[@]}"
  fi
}

# Runs a command with its output in a log, whose end is shown if it fails.
logged() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 || {
    tail -n 60 "$log" >&2
    stop "the build failed; the whole log is $log"
  }
}

build() {
  local directory=$1
  mkdir -p "$directory"
  say "Compiling into .venv (log: $directory/build.log)"
  # --no-deps and --no-build-isolation: the packages of .venv are the ones to build with, and none is replaced.
  logged "$directory/build.log" .venv/bin/python -m pip install -v --disable-pip-version-check --no-deps \
    --no-build-isolation --config-settings=build-dir="$directory" --config-settings=cmake.define.SIFA_RUNTIME=ON \
    --editable .
  # What was decided about the machine: which torch, and whether the CUDA kernels are built.
  sed -nE 's/^ *-- ((torch|CUDA kernels).*)/    \1/p' "$directory/build.log"
}

# The same build with its tests switched on. SIFA_RUNTIME is named because test_abi.sh builds here without it.
build_tests() {
  local directory=$1
  say "Compiling the C++ tests (log: $directory/tests.log)"
  logged "$directory/tests.log" .venv/bin/cmake -S . -B "$directory" -DSIFA_TESTS=ON -DSIFA_RUNTIME=ON
  logged "$directory/tests.log" .venv/bin/cmake --build "$directory"
}

CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_BUILD_PARALLEL_LEVEL

case ${1:-} in
  machine) machine ;;
  venv) make_venv ;;
  build) build "$2" ;;
  build-tests) build_tests "$2" ;;
  packages) packages "${@:2}" ;;
  *) stop "usage: scripts/setup.sh machine | venv | build BUILD_DIR | build-tests BUILD_DIR | packages NAME…" ;;
esac
