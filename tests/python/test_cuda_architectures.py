"""The GPUs that the CUDA kernels are compiled for, Jetson's among them. Needs nvcc, and no GPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sifa.ops import library

ROOT = Path(__file__).parents[2]
ORIN, THOR = 87, 110

# What `nvcc --list-gpu-arch` answers in CUDA 12.6, the toolkit of JetPack 6.2.
ARCHITECTURES_OF_CUDA_12_6 = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)


@pytest.fixture(scope="module")
def nvcc():
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None or torch.version.cuda is None:
        pytest.skip("the CUDA kernels are not built: there is no nvcc, or torch has no CUDA")
    return Path(found)


@pytest.fixture
def load_resources(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cuda_resources

    yield cuda_resources
    del sys.modules["cuda_resources"]


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def known_to(nvcc):
    return set(map(int, re.findall(r"\d+", run(nvcc, "--list-gpu-arch"))))


def test_the_library_holds_kernels_for_every_jetson_that_nvcc_knows(nvcc, load_resources):
    path = next(library.installed("libsifa_ops_cuda.so"), None)
    if path is None:
        pytest.skip("the CUDA kernels are not built: they were switched off, with SIFA_CUDA=OFF")
    listed = run(load_resources.tool("cuobjdump"), "--list-elf", path)
    compiled = set(map(int, re.findall(r"\bsm_(\d+)", listed)))
    assert ORIN in compiled
    assert (THOR in compiled) == (THOR in known_to(nvcc))


def configure(folder, nvcc):
    """What CMake says about the CUDA kernels with this nvcc."""
    options = ["-DSIFA_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    cmake = Path(sys.executable).with_name("cmake")
    out = run(cmake if cmake.is_file() else "cmake", "-S", ROOT, "-B", folder, *options)
    return re.search(r"CUDA kernels: built with \S+ for (\S+)", out)[1].split(";")


def test_an_older_toolkit_compiles_for_what_it_knows(nvcc, tmp_path):
    """JetPack 6.2's knows Orin and not Thor; the newest that it knows also goes into the file as PTX."""
    older = tmp_path / "bin" / "nvcc"
    older.parent.mkdir()
    listed = " ".join(f"compute_{each}" for each in ARCHITECTURES_OF_CUDA_12_6)
    older.write_text(
        f'#!/bin/sh\ncase $1 in --list-gpu-arch) printf "%s\\n" {listed};; *) exec {nvcc} "$@";; esac\n'
    )
    older.chmod(0o755)
    assert configure(tmp_path / "build", older) == ["80-real", "86-real", "87-real", "89-real", "90"]


def test_this_toolkit_compiles_for_what_it_knows(nvcc, tmp_path):
    architectures = [int(each.removesuffix("-real")) for each in configure(tmp_path, nvcc)]
    assert set(architectures) == {80, 86, 87, 89, 90, 100, 110, 120} & known_to(nvcc)
