"""The sdist and the two wheels: what they hold, how they are tagged, and that they work once installed.

The environments made here hold, by links, all that the one running the tests holds except SIFA: several GB
are spared, and the wheel still finds torch as it does anywhere, beside itself. The test marked slow downloads
everything.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")
SITE_PACKAGES = sysconfig.get_path("purelib", vars={"base": "."})


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return what it printed; fail with all of it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} -> {done.returncode}\n{done.stdout}"
    return done.stdout


def build(source: Path, output: Path, kind: str, *settings: str) -> Path:
    """Build one distribution with the packages of this environment."""
    options = [f"-C{setting}" for setting in settings]
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "-o", output, *options, cwd=source)
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without the runtime, compiled from the sdist (the CUDA kernels would take minutes)."""
    return build(unpacked, tmp_path_factory.mktemp("wheel"), "wheel", "cmake.define.SIFA_CUDA=OFF")


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with the runtime, from what `make build` has compiled."""
    settings = ("cmake.define.SIFA_RUNTIME=ON", f"build-dir={ROOT / 'build' / 'cmake'}")
    return build(ROOT, tmp_path_factory.mktemp("runtime_wheel"), "wheel", *settings)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function from a wheel to the folder of an environment that it is installed in."""

    def make(wheel: Path) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        site_packages = folder / SITE_PACKAGES
        for path in map(Path, sys.path):
            if path.name in ("site-packages", "dist-packages"):
                for entry in path.iterdir():
                    link = site_packages / entry.name
                    if "sifa" not in entry.name and entry.suffix != ".pth" and not link.exists():
                        link.symlink_to(entry)
        python = folder / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
        return folder

    return make


@pytest.fixture(scope="module")
def installed(environment: Callable[[Path], Path], wheel: Path) -> Path:
    return environment(wheel)


@pytest.fixture(scope="module")
def installed_runtime(environment: Callable[[Path], Path], runtime_wheel: Path) -> Path:
    return environment(runtime_wheel)


@pytest.fixture(scope="module")
def model(installed_runtime: Path) -> Path:
    """The bundled model, exported by the installed command."""
    path = installed_runtime / "sifa_tiny.pt"
    run(installed_runtime / "bin" / "sifa", "export", "sifa_tiny", "-o", path, cwd=installed_runtime)
    return path


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"sifa-{version('sifa')}.dist-info/{name}").decode()


def dynamic_section(library: Path, entry: str) -> list[str]:
    """The values of one kind of entry (NEEDED, RUNPATH, RPATH) in a library's dynamic section."""
    return re.findall(rf"\({entry}\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", library))


def test_sdist_holds_the_sources_and_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CMakeLists.txt",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "scripts/sifa_build_backend.py",
    } <= names
    for folder in ("kernels", "cpp", "cmake", "python", "scripts", "tests"):
        sources = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".cmake", ".py", ".pyi", ".json", ".safetensors")
        }
        assert sources, folder
        assert sources <= names, sources - names
    assert not [name for name in names if name.startswith(("build/", ".venv/", "dist/"))]
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc", ".whl"))]


def test_wheel_is_tagged_for_the_platform_alone(wheel: Path) -> None:
    assert wheel.name == f"sifa-{version('sifa')}-py3-none-{PLATFORM}.whl"
    assert f"Tag: py3-none-{PLATFORM}" in metadata(wheel, "WHEEL")
    requirements = re.findall(r"^Requires-Dist: (torch\b.*)$", metadata(wheel, "METADATA"), re.MULTILINE)
    assert requirements == ["torch>=2.10"]


def test_runtime_wheel_is_tagged_for_python_and_pins_its_torch(runtime_wheel: Path) -> None:
    assert runtime_wheel.name == f"sifa-{version('sifa')}-{PYTHON_TAG}-{PYTHON_TAG}-{PLATFORM}.whl"
    requirements = re.findall(
        r"^Requires-Dist: (torch\b.*)$", metadata(runtime_wheel, "METADATA"), re.MULTILINE
    )
    assert requirements == ["torch>=2.10", f"torch=={Version(version('torch')).public}"]


def test_the_runtime_is_refused_where_it_would_not_change_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import sifa_build_backend as backend

    monkeypatch.setenv("CMAKE_ARGS", "-DSIFA_CUDA=OFF")
    assert "pybind11" in backend.get_requires_for_build_wheel({"cmake.define.SIFA_RUNTIME": "ON"})
    way_out = r"\(.*\) cannot: give it as -C cmake.define.SIFA_RUNTIME=ON"
    with pytest.raises(ValueError, match=f"which cmake.args {way_out}"):
        backend.get_requires_for_build_wheel({"cmake.args": "-DSIFA_RUNTIME=ON"})
    monkeypatch.setenv("CMAKE_ARGS", "-DSIFA_CUDA=OFF -DSIFA_RUNTIME=ON")
    with pytest.raises(ValueError, match=f"which CMAKE_ARGS {way_out}"):
        backend.get_requires_for_build_wheel()


def test_both_wheels_refuse_the_pythons_that_torchscript_does_not_work_in(
    wheel: Path, runtime_wheel: Path
) -> None:
    for path in (wheel, runtime_wheel):
        assert "Requires-Python: <3.14,>=3.10" in metadata(path, "METADATA")


def test_wheel_contents(wheel: Path, runtime_wheel: Path) -> None:
    package = {
        path.relative_to(ROOT / "python").as_posix()
        for path in (ROOT / "python" / "sifa").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed", ".json", ".safetensors")
    }
    with zipfile.ZipFile(wheel) as archive:
        plain = set(archive.namelist())
    with zipfile.ZipFile(runtime_wheel) as archive:
        runtime = set(archive.namelist())
    for names in (plain, runtime):
        assert package <= names, package - names
        assert {"sifa/weights/sifa_tiny.safetensors", "sifa/weights/sifa_tiny_streaming.safetensors"} <= names
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
        stray = [n for n in names if not n.startswith(("sifa/", f"sifa-{version('sifa')}."))]
        assert not stray
    assert [n for n in plain if ".so" in n] == ["sifa/lib/libsifa_ops.so"]
    assert {"sifa/lib/libsifa_ops.so", "sifa/lib/libsifa_runtime.so"} <= runtime
    assert f"sifa/runtime{sysconfig.get_config_var('EXT_SUFFIX')}" in runtime
    assert f"sifa-{version('sifa')}.data/scripts/sifa-run" in runtime


def test_nothing_names_a_folder_of_the_machine_that_built_it(
    wheel: Path, runtime_wheel: Path, unpacked: Path, tmp_path: Path
) -> None:
    for path, source in ((wheel, unpacked), (runtime_wheel, ROOT)):
        folder = tmp_path / path.name
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        for file in filter(Path.is_file, folder.rglob("*")):
            content = file.read_bytes()
            for built_in in (source, Path(sys.prefix)):
                assert os.fsencode(built_in) not in content, (file, built_in)
        binaries = [*folder.rglob("*.so"), *folder.rglob("scripts/sifa-run")]
        assert binaries
        for binary in binaries:
            runpath = dynamic_section(binary, "RUNPATH") + dynamic_section(binary, "RPATH")
            assert all(e.startswith("$ORIGIN") for e in ":".join(runpath).split(":")), (binary, runpath)
            assert not [name for name in dynamic_section(binary, "NEEDED") if "/" in name], binary


def test_operator_library_knows_no_python_and_only_the_stable_part_of_torch(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract("sifa/lib/libsifa_ops.so", tmp_path))
    needed = dynamic_section(library, "NEEDED")
    assert not [name for name in needed if "python" in name], needed
    assert {name for name in needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so", "libc10.so"}
    undefined = [
        line.split()[7]
        for line in run("readelf", "--dyn-syms", "--wide", library).splitlines()
        if " UND " in line and len(line.split()) > 7
    ]
    assert not [name for name in undefined if re.match(r"_?Py[A-Z_]", name)]
    # A symbol of LibTorch's C++ API, in the namespaces at and c10, would tie the file to one torch.
    assert not [name for name in undefined if re.match(r"_ZNK?(2at|3c10)", name)], undefined


# Prints the operator libraries that this process has mapped; the scripts below end with it.
PRINT_MAPPED = """
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "libsifa_ops.so" in line}), sep="\\n")
"""

USE_OPERATOR = """
import torch
import sifa, sifa.reference
torch.manual_seed(0)
clip, offset = torch.randn(1, 8, 3, 5, 6), 2 * torch.randn(1, 18, 3, 5, 6)
result = sifa.inter_frame_attention(clip, clip, offset)
torch.testing.assert_close(result, sifa.reference.inter_frame_attention(clip, clip, offset))
"""


def run_python(environment: Path, script: str) -> list[str]:
    """Run a script in an environment, away from the checkout, where every warning of sifa's is an error."""
    python = environment / "bin" / "python"
    return run(python, "-I", "-W", "error:::sifa", "-c", script, cwd=environment).splitlines()


def test_installed_wheel_computes(installed: Path) -> None:
    mapped = run_python(installed, USE_OPERATOR + PRINT_MAPPED)
    assert mapped == [str(installed / SITE_PACKAGES / "sifa" / "lib" / "libsifa_ops.so")]


def test_installed_package_knows_its_version_and_its_commands(installed: Path) -> None:
    script = "import sifa; print(sifa.__version__, sifa.create_model.__name__, *sifa.__all__)"
    assert run_python(installed, script)[-1].split()[:2] == [version("sifa"), "create_model"]
    assert "export" in run(installed / "bin" / "sifa", "--help")


def test_importing_sifa_does_not_import_timm(installed: Path) -> None:
    script = "import sys, sifa; print([m for m in ('timm', 'torchvision', 'torchcodec') if m in sys.modules])"
    assert run_python(installed, script) == ["[]"]


def test_an_unknown_name_is_an_attribute_error(installed: Path) -> None:
    script = "import sifa; print(hasattr(sifa, 'SIFA'), hasattr(sifa, 'sofa'), 'insert' in dir(sifa))"
    assert run_python(installed, script) == ["True False True"]


def test_runtime_and_package_share_one_operator_library(installed_runtime: Path, model: Path) -> None:
    use_runtime = f"import sifa.runtime\nsifa.runtime.Classifier({str(model)!r})\n"
    mapped = run_python(installed_runtime, use_runtime + USE_OPERATOR + PRINT_MAPPED)
    assert mapped == [str(installed_runtime / SITE_PACKAGES / "sifa" / "lib" / "libsifa_ops.so")]


def test_sifa_run_finds_its_libraries(installed_runtime: Path) -> None:
    assert "--topk" in run(installed_runtime / "bin" / "sifa-run", "--help")


def test_nothing_is_loaded_where_a_host_program_has_the_operators(
    installed_runtime: Path, model: Path, tmp_path: Path
) -> None:
    """A C++ host that runs Python has opened its own copy; a second one would end the process."""
    library = tmp_path / "libsifa_ops.so"
    shutil.copy(installed_runtime / SITE_PACKAGES / "sifa" / "lib" / library.name, library)
    host = f"import ctypes, torch\nctypes.CDLL({str(library)!r})\n"
    use_runtime = f"import sifa.runtime\nsifa.runtime.Classifier({str(model)!r})\n"
    assert run_python(installed_runtime, host + USE_OPERATOR + use_runtime + PRINT_MAPPED) == [str(library)]


@pytest.mark.slow
def test_wheel_brings_its_dependencies_to_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path)
    python = tmp_path / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    assert "No broken requirements" in run(python, "-m", "pip", "check")
    mapped = run_python(tmp_path, USE_OPERATOR + "sifa.create_model('sifa_tiny')\n" + PRINT_MAPPED)
    assert mapped == [str(tmp_path / SITE_PACKAGES / "sifa" / "lib" / "libsifa_ops.so")]
