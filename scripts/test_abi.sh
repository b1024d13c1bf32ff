#!/usr/bin/env bash
# Runs the operator's tests inside other torches, with the very libsifa_ops.so that was built against the torch of .venv:
#   test_abi.sh BUILD_DIR TORCH_VERSION…
# Each torch gets a venv of its own under build/abi-VERSION (some GB; a later run uses it again).
set -euo pipefail
cd "$(dirname "$0")/.."

build_dir=$1
shift
[[ $# -gt 0 ]] || { echo "SIFA: test_abi.sh needs at least one torch version" >&2 && exit 1; }
tests=(tests/python/test_operator*.py tests/python/test_reference.py tests/python/test_modules.py)

# The wheel without the runtime, from the objects that are already in BUILD_DIR.
wheels=build/abi-wheel
rm -rf "$wheels"
mkdir -p "$wheels"
.venv/bin/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w "$wheels" \
  --config-settings=build-dir="$build_dir" --config-settings=cmake.define.SIFA_RUNTIME=OFF .
wheel=("$wheels"/sifa-*-py3-none-*.whl)
built=$(.venv/bin/python -m zipfile -e "${wheel[0]}" "$wheels/content" && sha256sum <"$wheels/content/sifa/lib/libsifa_ops.so")
echo "==> ${wheel[0]##*/}, built against torch $(.venv/bin/python -c 'import torch; print(torch.__version__)')"

for version in "$@"; do
  venv=build/abi-$version
  echo "==> torch $version in $venv"
  [[ -x $venv/bin/python ]] || .venv/bin/python -m venv "$venv"
  # What the operator and its tests import: no timm, no torchvision, both of which follow one torch.
  pip_install=("$venv/bin/python" -m pip --disable-pip-version-check install -q --progress-bar off)
  grep -vE '^(torch|torchvision|torchcodec|setuptools)==' constraints.txt >"$venv/constraints.txt"
  "${pip_install[@]}" -c "$venv/constraints.txt" "torch==$version" numpy pytest hypothesis
  "${pip_install[@]}" --no-deps --force-reinstall "${wheel[0]}"

  loaded=$("$venv/bin/python" - <<'PYTHON'
import sifa
import torch

print(next(path for path in torch.ops.loaded_libraries if path.endswith("libsifa_ops.so")))
PYTHON
  )
  [[ $(sha256sum <"$loaded") == "$built" ]] ||
    { echo "SIFA: $loaded is not the libsifa_ops.so of ${wheel[0]}" >&2 && exit 1; }
  echo "==> torch $version loaded $loaded, sha256 ${built%% *}: the file of the wheel"
  "$venv/bin/pytest" -q -m "not slow" "${tests[@]}"
done
