"""How the operators get into a process (found, there already, missing, foreign), and many threads at once."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sifa
import torch
from sifa.ops import library as loading

# Prints one line of numbers that depend on every part of the operators.
NUMBERS = """
import torch
def numbers(attention):
    total = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for channels, options in ((8, {}), (12, dict(groups=4, softmax=True, edge="skip", frame_shift=-1)),
                                  (70, dict(kernel_size=5, dilation=2))):
            generator = torch.Generator().manual_seed(channels)
            taps = 2 * options.get("kernel_size", 3) ** 2
            query, memory = (torch.randn(2, channels, 3, 5, 6, generator=generator).to(dtype).requires_grad_()
                             for _ in range(2))
            offset = (1.5 * torch.randn(2, taps, 3, 5, 6, generator=generator)).requires_grad_()
            output = attention(query, memory, offset, **options)
            output.float().square().sum().backward()
            total += [t.double().abs().mean().item() for t in (output, query.grad, memory.grad, offset.grad)]
        query, memory, weight = (torch.randn(shape, generator=generator).to(dtype).requires_grad_()
                                 for shape in ((2, 19, 3, 5, 6), (2, 19, 2, 5, 6), (18, 19, 3, 3)))
        output = torch.ops.sifa.motion_offset(query, memory, weight, -1, "skip", True)
        saliency = torch.ops.sifa.motion_saliency(query, memory)
        (output.float().square().mean() + saliency.float().square().mean()).backward()
        total += [t.double().abs().mean().item()
                  for t in (output, saliency, query.grad, memory.grad, weight.grad)]
    return total
"""


# An editable install answers `import sifa` before sys.path is asked.
WITHOUT_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
"""


def run(script, path, **environment):
    """Run a Python script with ``path`` before everything else; return its output and its warnings."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EDITABLE_INSTALL + script],
        env={**os.environ, "PYTHONPATH": str(path), "PYTHONWARNINGS": "always", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def expected():
    scope = {}
    exec(NUMBERS, scope)
    return scope["numbers"](sifa.inter_frame_attention)


@pytest.fixture(scope="module")
def library():
    return next(loading.installed("libsifa_ops.so"))


@pytest.fixture
def package(tmp_path):
    """A copy of the Python files of the package, with an empty lib/."""
    for directory in reversed(list(sifa.__path__)):
        shutil.copytree(
            directory,
            tmp_path / "sifa",
            ignore=shutil.ignore_patterns("*.so*", "__pycache__"),
            dirs_exist_ok=True,
        )
    (tmp_path / "sifa" / "lib").mkdir(exist_ok=True)
    return tmp_path


def test_without_a_library_the_reference_answers_after_one_warning(package, expected):
    script = f"""{NUMBERS}
import sifa
assert sifa.__file__.startswith({str(package)!r}), sifa.__file__
print(numbers(sifa.inter_frame_attention))
# The rest of the operator is there too.
scripted = torch.jit.script(sifa.SIFA(8))
clip = torch.randn(2, 8, 3, 5, 6, requires_grad=True)
scripted(clip).sum().backward()
compiled = torch.compile(sifa.inter_frame_attention, fullgraph=True, dynamic=True, backend="aot_eager")
inputs = [torch.randn(2, n, 3, 5, 6, requires_grad=True) for n in (8, 8, 18)]
torch.testing.assert_close(compiled(*inputs), sifa.inter_frame_attention(*inputs))
torch.library.opcheck(torch.ops.sifa.inter_frame_attention.default, tuple(inputs))
gradient, = torch.autograd.grad(sifa.inter_frame_attention(*inputs).sum(), inputs[:1], create_graph=True)
for call, message in ((lambda: gradient.sum().backward(), "second derivative is not implemented"),
                      (lambda: sifa.inter_frame_attention(*inputs, 4), "kernel_size must be odd")):
    try:
        call()
    except RuntimeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
"""
    output, errors = run(script, package)
    assert errors.count("UserWarning: sifa: found no libsifa_ops.so") == 1
    assert str(package / "sifa" / "lib") in errors
    numbers = eval(output)
    assert numbers == pytest.approx(expected, rel=2e-3)
    assert numbers[: len(numbers) // 2] == pytest.approx(expected[: len(expected) // 2], rel=1e-5)


def test_operators_that_are_there_are_not_loaded_again(package, library, expected, tmp_path):
    """A second copy of a stable-ABI library crashes its process, so two different files are tried."""
    shutil.copy(library, package / "sifa" / "lib")
    host = shutil.copy(library, tmp_path / "libof_the_host.so")
    script = f"""{NUMBERS}
torch.ops.load_library({str(host)!r})
import sifa
maps = open("/proc/self/maps").read()
assert {str(host)!r} in maps and {str(package / "sifa" / "lib")!r} not in maps, maps
print(numbers(sifa.inter_frame_attention))
"""
    output, errors = run(script, package)
    assert eval(output) == expected
    assert "sifa:" not in errors


def test_the_package_loads_its_own_library_once(package, library):
    shutil.copy(library, package / "sifa" / "lib")
    script = f"""
import sys, threading
threads = [threading.Thread(target=__import__, args=("sifa",)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import sifa, torch
from sifa.ops import attention, library, motion
library.load_library({{**attention.SCHEMAS, **motion.SCHEMAS}}, {{}})
files = {{line.split()[-1] for line in open("/proc/self/maps") if "libsifa_ops.so" in line}}
assert files == {{{str(package / "sifa" / "lib" / "libsifa_ops.so")!r}}}, files
"""
    _, errors = run(script, package)
    assert "sifa:" not in errors


def test_foreign_operators_are_refused(package):
    script = """
import torch
torch.library.define("sifa::inter_frame_attention", "(Tensor query, Tensor memory) -> Tensor")
torch.library.define("sifa::inter_frame_attention_backward", "(Tensor query) -> Tensor")
try:
    import sifa
except RuntimeError as error:
    print(error)
"""
    output, _ = run(script, package)
    assert "the loaded operator library does not belong to this version" in output
    assert "Tensor offset, int kernel_size=3" in output


def test_a_library_that_does_not_fit_is_an_error_and_not_the_reference(package):
    library = package / "sifa" / "lib" / "libsifa_ops.so"
    library.write_bytes(b"built for another machine")
    output, errors = run("try:\n import sifa\nexcept ImportError as error:\n print(error)", package)
    assert f"sifa: {library} cannot be loaded beside torch {torch.__version__}" in output
    assert "sifa:" not in errors


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA never looks for CUDA kernels")
def test_a_cuda_library_that_does_not_fit_is_said(package, library):
    shutil.copy(library, package / "sifa" / "lib")
    (package / "sifa" / "lib" / "libsifa_ops_cuda.so").write_bytes(b"not a library")
    script = "import sifa, torch; q = torch.ones(1, 1, 2, 3, 3); print(sifa.SIFA(1)(q).shape)"
    output, errors = run(script, package)
    assert "torch.Size([1, 1, 2, 3, 3])" in output
    assert errors.count("libsifa_ops_cuda.so does not fit this torch") == 1


# --- One code path per instruction set --------------------------------------------------------------------


def supported(capability):
    if capability == "default":
        return True
    flags = Path("/proc/cpuinfo").read_text()
    return {"avx2": " avx2 " in flags, "avx512": " avx512bw " in flags}[capability]


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(package, library, expected, capability):
    if platform.machine() != "x86_64" or not supported(capability):
        pytest.skip(f"this processor has no {capability}")
    shutil.copy(library, package / "sifa" / "lib")
    script = f"{NUMBERS}\nimport sifa\nprint(numbers(sifa.inter_frame_attention))"
    output, _ = run(script, package, SIFA_CPU_CAPABILITY=capability)
    assert eval(output) == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one code path elsewhere")
def test_an_unknown_instruction_set_is_refused(package, library):
    shutil.copy(library, package / "sifa" / "lib")
    script = """
import sifa, torch
try:
    sifa.SIFA(1)(torch.ones(1, 1, 2, 3, 3))
except RuntimeError as error:
    print(error)
"""
    output, _ = run(script, package, SIFA_CPU_CAPABILITY="sse9")
    assert "SIFA_CPU_CAPABILITY must be default, avx2 or avx512" in output
    assert "got sse9" in output


# --- Threads ----------------------------------------------------------------------------------------------


def test_many_threads_at_once(make_inputs):
    calls = [make_inputs(1, 16, 2, 7, 8 + index) for index in range(8)]

    def work(inputs):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        output = sifa.inter_frame_attention(*leaves, groups=2)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]

    expected = [work(inputs) for inputs in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for result, wanted in zip(pool.map(work, calls), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))
