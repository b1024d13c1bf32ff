#!/usr/bin/env bash
# Compiles the runtime, its video library, the C API and sifa-run for AddressSanitizer and
# UndefinedBehaviorSanitizer, and runs their tests; and again for ThreadSanitizer, for the tests with threads. LibTorch,
# OpenCV and the operators are as they are. $1 is the folder of the usual build, which makes the tests' data.
set -euo pipefail
cd "$(dirname "$0")/.."
usual=$PWD/$1

# compile SANITIZER TARGET…, in a folder of its own
compile() {
  local folder=build/sanitized-$1
  mkdir -p "$folder"
  { .venv/bin/cmake -S . -B "$folder" -DPython_EXECUTABLE="$PWD/.venv/bin/python" -DSIFA_CUDA=OFF -DSIFA_RUNTIME=ON \
    -DSIFA_PYTHON=OFF -DSIFA_TESTS=ON -DSIFA_SANITIZE=OFF -DSIFA_SANITIZER="$1" &&
    .venv/bin/cmake --build "$folder" --target "${@:2}"; } >"$folder/build.log" 2>&1 ||
    { tail -n 60 "$folder/build.log" >&2 && exit 1; }
}

# run SANITIZER TEST GOOGLETEST_FILTER; a filter that finds nothing would pass.
run() {
  local test=build/sanitized-$1/tests/cpp/$2
  echo "==> $2 under the $1 sanitizer"
  "$test" --gtest_filter="$3" --gtest_list_tests | grep '^  ' >/dev/null || { echo "$2 has no test $3" >&2 && exit 1; }
  "$test" --gtest_filter="$3" --gtest_brief=1
}

.venv/bin/ctest --test-dir "$usual" -R '^make_runtime_data$' --no-tests=error --output-on-failure
export SIFA_TEST_DATA=$usual/tests/cpp/runtime_data SIFA_TEST_GOLDEN=$PWD/tests/data

# Leaks of LibTorch's are not ours to find, and memory is measured without a sanitizer. A library of CUDA's that torch
# brings (cusparseLt) has an operator new of its own, by malloc, which what is loaded after it may get.
# The exit code is none of sifa-run's.
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:exitcode=99
compile address test_runtime test_streams test_c_api sifa_run sifa_video
for test in test_runtime test_streams test_c_api; do
  run address "$test" '-*Long*:*Unloads*'
done
echo "==> sifa-run under the address sanitizer"
SIFA_TEST_RUN=$PWD/build/sanitized-address/cpp/sifa-run .venv/bin/python -m pytest -q tests/python/test_sifa_run.py \
  tests/python/test_follow.py -k 'not in_memory and not nothing_grows and not lies_beside'

export TSAN_OPTIONS="suppressions=$PWD/tests/cpp/thread_sanitizer.supp halt_on_error=1"
compile thread test_runtime test_streams test_c_api
run thread test_runtime 'Concurrency.*'
run thread test_streams 'Concurrency.*'
run thread test_c_api 'C.TheLastErrorIsItsThreads'
