# One command per wish; `make` alone lists them. Set-up logic that does not fit in a line is in scripts/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# PYTHON=python3.12      the interpreter that .venv is made from (default: python3)
# TORCH=existing         use the torch that this interpreter has, replace nothing of it
# TORCH_INDEX=URL        the package index that torch comes from (default: pip's own)
# TORCH_VERSIONS="…"     the versions that `make test-abi` runs with
PYTHON ?=
TORCH ?=
TORCH_INDEX ?=
TORCH_VERSIONS ?= 2.13.0
FUZZ_SECONDS ?= 60
export PYTHON TORCH TORCH_INDEX

BIN := .venv/bin
# What `make build` and `make test` compile in, so that the second only adds the tests to the first.
BUILD_DIR := build/cmake
# Directories are listed too: a file added or removed changes the time of its directory.
CXX_SOURCES := CMakeLists.txt pyproject.toml scripts/sifa_build_backend.py \
               $(shell find kernels cpp cmake python/bindings 2>/dev/null)
PYTEST := $(BIN)/python -m pytest
# The servers, encoders and windows that streams are tested with.
TEST_PACKAGES := gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-tools gstreamer1.0-x xvfb openssl \
                 $(addprefix gstreamer1.0-plugins-,base good bad ugly)

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1 \t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22
	@echo "PYTHON=python3.12, TORCH=existing or TORCH_INDEX=URL choose what .venv is made with (see CONTRIBUTING.md)."

# The machine is looked at every time (it takes no time); only what is missing is installed.
.PHONY: machine
machine:
	@scripts/setup.sh machine

.venv/.dependencies: pyproject.toml constraints.txt scripts/setup.sh | machine
	@scripts/setup.sh venv
	@touch $@

# CMAKE_ARGS as last given. CMake remembers options, so without them a later build goes on as it was begun.
.PHONY: FORCE
FORCE:
build/cmake-args: FORCE
	@mkdir -p build
	@[[ -e $@ && ( -z "$${CMAKE_ARGS:-}" || "$$CMAKE_ARGS" == "$$(<$@)" ) ]] || echo "$${CMAKE_ARGS:-}" >$@

# An editable install: a changed .py needs nothing, a changed C++ source is compiled again and installed.
.venv/.build: .venv/.dependencies $(CXX_SOURCES) build/cmake-args | machine
	@scripts/setup.sh build $(BUILD_DIR)
	@touch $@

.PHONY: build
build: .venv/.build ## set up .venv and compile the operators, the C++ runtime and sifa-run into it

.PHONY: demo
demo: build ## classify a rendered video with the C++ program and draw where the attention looked
	@$(BIN)/sifa demo

.PHONY: build-tests
build-tests: build
	@scripts/setup.sh packages $(TEST_PACKAGES)
	@scripts/setup.sh build-tests $(BUILD_DIR)

.PHONY: test
test: build-tests ## the C++ and the Python tests, with coverage (30 minutes on 2 cores at most)
	@$(BIN)/ctest --test-dir $(BUILD_DIR) --no-tests=error --output-on-failure
	@$(PYTEST) -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

.PHONY: test-all
test-all: build-tests ## the same and the long matrix
	@SIFA_TEST_ALL=1 $(BIN)/ctest --test-dir $(BUILD_DIR) --no-tests=error --output-on-failure
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

.PHONY: test-packages
test-packages: build-tests ## the wheel, the .deb, the tarball and the runtime without OpenCV, built and used (10 minutes); 10,000 steps
	@$(PYTEST) -m slow tests/packaging tests/python/test_cpp_library.py tests/python/test_streaming.py

.PHONY: test-sanitizers
test-sanitizers: build-tests ## the runtime, its C API and sifa-run under the address, undefined-behaviour and thread sanitizers
	@scripts/test_sanitizers.sh $(BUILD_DIR)

.PHONY: test-aarch64
test-aarch64: .venv/.dependencies ## the CPU kernels' tests, cross-compiled for 64-bit Arm (NEON) and run in qemu
	@scripts/setup.sh packages g++-aarch64-linux-gnu qemu-user-static
	@$(BIN)/cmake -S . -B build/aarch64 --toolchain cmake/aarch64.cmake --log-level=ERROR \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DSIFA_CUDA=OFF -DSIFA_TESTS=ON -DSIFA_SANITIZE=OFF
	@$(BIN)/cmake --build build/aarch64 --target test_kernels test_motion_kernels >/dev/null
	@$(BIN)/ctest --test-dir build/aarch64 -R '^test_(motion_)?kernels$$' --no-tests=error --output-on-failure

.PHONY: test-embedded
test-embedded: build ## sifa-run, cross-compiled for 64-bit Arm and run in qemu, against the one of .venv
	@scripts/setup.sh packages g++-aarch64-linux-gnu qemu-user-static
	@scripts/test_embedded.sh

.PHONY: test-camera
test-camera: build ## sifa-run on a camera: Linux's own driver for tests, in a machine in qemu (x86-64, Debian)
	@scripts/setup.sh packages qemu-system-x86 v4l-utils xz-utils
	@scripts/test_camera.sh

.PHONY: fuzz
fuzz: build ## fuzz what reads model files and URIs, for FUZZ_SECONDS=60 in all
	@scripts/setup.sh packages clang
	@scripts/fuzz.sh $(FUZZ_SECONDS)

.PHONY: test-abi
test-abi: build ## the operator, as built here, inside other torches: TORCH_VERSIONS="2.10.0 2.13.0"
	@scripts/test_abi.sh $(BUILD_DIR) $(TORCH_VERSIONS)

CXX_FILES = $(shell find kernels cpp python/bindings tests benchmarks -regex '.*\.\(h\|cpp\|cu\|cuh\)')

.PHONY: lint
lint: .venv/.dependencies ## ruff, clang-format, mypy and shellcheck, as pre-commit runs them
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/shellcheck scripts/*.sh .ci/run

.PHONY: package
package: .venv/.dependencies ## the C++ runtime and sifa-run as a .deb and a tarball, in build/package
	@$(BIN)/cmake -S . -B build/package --log-level=ERROR -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DSIFA_RUNTIME=ON -DSIFA_PYTHON=OFF -DSIFA_RELOCATABLE=ON $(CMAKE_ARGS)
	@$(BIN)/cmake --build build/package >/dev/null
	@$(BIN)/cpack --config build/package/CPackConfig.cmake -B build/package >/dev/null
	@ls build/package/sifa[-_]*.tar.gz build/package/sifa_*.deb

.PHONY: bench
bench: build ## measure the operator, what it adds to networks, and C++ against Python (40 minutes); results in build/benchmarks
	@mkdir -p build/benchmarks
	@$(BIN)/python benchmarks/attention.py --json build/benchmarks/attention.json | tee build/benchmarks/attention.md
	@$(BIN)/python benchmarks/models.py --rounds 15 --json build/benchmarks/models.json \
	  | tee build/benchmarks/models.md
	@$(BIN)/python benchmarks/runtime.py --files build/benchmarks/models --json build/benchmarks/runtime.json \
	  | tee build/benchmarks/runtime.md

.PHONY: clean
clean: ## remove what was built (the packages in .venv stay: rm -rf .venv removes those)
	rm -rf build .venv/.build .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
