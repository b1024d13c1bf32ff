#!/usr/bin/env bash
# Fuzzes what reads model files and URIs, with AddressSanitizer and UndefinedBehaviorSanitizer:
#   fuzz.sh SECONDS      in all; what was found on the way stays in build/fuzz/corpus
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(archive metadata uri)
folder=build/fuzz
mkdir -p "$folder"

# Debian keeps clang's sanitizers and libFuzzer in a package of their own.
runtime=libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev
! apt-cache show "$runtime" >/dev/null 2>&1 || scripts/setup.sh packages "$runtime"

{ .venv/bin/cmake -S tests/fuzz -B "$folder/cmake" -DCMAKE_CXX_COMPILER=clang++ &&
  .venv/bin/cmake --build "$folder/cmake"; } >"$folder/build.log" 2>&1 ||
  { tail -n 60 "$folder/build.log" >&2 && echo "SIFA: the fuzzers do not build (log: $folder/build.log)" >&2 && exit 1; }
PYTHONPATH=tests/python .venv/bin/python tests/fuzz/make_corpus.py "$folder/corpus"
for target in "${targets[@]}"; do
  echo "==> fuzz_$target"
  dictionary=()
  [[ ! -e $folder/corpus/$target.dict ]] || dictionary=("-dict=$folder/corpus/$target.dict")
  "$folder/cmake/fuzz_$target" -max_total_time=$(($1 / ${#targets[@]})) -timeout=10 \
    -artifact_prefix="$folder/$target-" "${dictionary[@]}" "$folder/corpus/$target" >"$folder/$target.log" 2>&1 ||
    { tail -n 60 "$folder/$target.log" >&2 &&
      echo "SIFA: fuzz_$target found something: run it on the file named above (log: $folder/$target.log)" >&2 &&
      exit 1; }
  grep -E '^#[0-9]+.DONE' "$folder/$target.log"
done
