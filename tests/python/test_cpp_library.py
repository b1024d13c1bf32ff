"""The C++ library as others use it: found by CMake, moved, as a subdirectory, from C and by ctypes."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sifa
import torch
from make_runtime_data import LABELS, NUM_FRAMES, make_models, make_videos, pattern, stream_model
from sifa.artifact import export_torchscript, load_artifact

EXAMPLES = Path(__file__).resolve().parents[2] / "cpp" / "examples"
LINK_OPS = """
cmake_minimum_required(VERSION 3.25)
project(ops LANGUAGES CXX)
find_package(Sifa CONFIG REQUIRED COMPONENTS {components})
file(WRITE main.cpp "int main() {{}}")
add_executable(ops main.cpp)
target_link_libraries(ops PRIVATE Sifa::ops)
"""
AS_SUBDIRECTORY = """
cmake_minimum_required(VERSION 3.25)
project(embedding LANGUAGES C CXX)
set(SIFA_RUNTIME ON)
add_subdirectory({root} sifa EXCLUDE_FROM_ALL)
foreach(example classify streams)
  add_executable(${{example}} {root}/cpp/examples/${{example}}/main.cpp)
  target_link_libraries(${{example}} PRIVATE Sifa::runtime)
endforeach()
add_executable(classify_c {root}/cpp/examples/c/main.c)
target_link_libraries(classify_c PRIVATE Sifa::c)
"""

pytestmark = pytest.mark.usefixtures("runtime_module")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    make_models(folder)
    make_videos(folder)
    export_torchscript(stream_model(), folder / "stream.pt", kind="streaming")
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory, runtime_module):
    """The installed files in another folder, beside a torch, and nothing else of the package."""
    folder = tmp_path_factory.mktemp("moved")
    installed = Path(runtime_module.__file__).parent
    for name in ("lib", "include"):
        shutil.copytree(installed / name, folder / "sifa" / name)
    (folder / "torch").symlink_to(Path(torch.__file__).parent)
    return folder


def cmake(*arguments):
    program = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def build(source, folder, prefix, *options):
    for arguments in (
        ("-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}", *options),
        ("--build", folder),
    ):
        done = cmake(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / Path(source).name


def run(program, *arguments):
    # Nothing in the environment may be needed, least of all LD_LIBRARY_PATH.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LD_", "PYTHON", "SIFA_"))}
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


def best_of_the_video(data):
    clip = pattern(11, 20, 30)[None, [2, 4, 6, 8]]
    return LABELS[load_artifact(data / "model.pt")(clip)[0].argmax().item()]


def test_the_example_of_the_readme(data, tmp_path):
    """In an editable install, whose package is in two folders."""
    program = build(EXAMPLES / "classify", tmp_path, ";".join(sifa.__path__))
    result = run(program, data / "model.pt", data / "clip.mkv")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{best_of_the_video(data)} ")
    result = run(program, data / "text.pt", data / "clip.mkv")
    assert result.returncode == 4
    assert "not a SIFA model" in result.stderr


def test_the_example_in_c_on_moved_files(data, moved, tmp_path):
    flags = "-std=c99 -Wall -Wextra -Wpedantic -Werror"
    build(EXAMPLES / "c", tmp_path, moved, f"-DCMAKE_C_FLAGS={flags}")
    program = tmp_path / "classify_c"
    result = run(program, data / "model.pt", data / "clip.mkv")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{best_of_the_video(data)} ")
    for model, video, code, message in (
        ("text.pt", "clip.mkv", 4, "not a SIFA model"),
        ("model.pt", "text.mp4", 8, "video cannot be opened"),
        ("nothing.pt", "clip.mkv", 3, "model file not found"),
    ):
        result = run(program, data / model, data / video)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in result.stderr


def test_the_example_of_several_streams_on_moved_files(data, moved, tmp_path):
    program = build(EXAMPLES / "streams", tmp_path / "build", moved)
    frames = pattern(24, 40, 48)
    (tmp_path / "a").write_bytes(frames.tobytes())
    (tmp_path / "b").write_bytes(frames[::-1][:13].tobytes())
    result = run(program, data / "stream.pt", 40, 48, tmp_path / "a", tmp_path / "b")
    assert result.returncode == 0, result.stderr
    expected = [
        f"stream {name}, frame {frame}: {label or 'nothing'}"
        for name, video in enumerate((frames, frames[::-1][:13]))
        for frame, label in decisions(data / "stream.pt", video, 0.5, 0.3)
    ]
    assert expected
    assert sorted(result.stdout.splitlines()) == sorted(expected)


def decisions(model, frames, enter, leave):
    """(frame, label or None) whenever the decision changes."""
    from sifa import runtime

    stream, hysteresis, before = runtime.Stream(model), runtime.Hysteresis(enter, leave), None
    for answer in filter(None, map(stream.push, frames)):
        now = hysteresis.update(answer.probabilities)
        if now != before:
            yield answer.frame, None if now is None else stream.labels[now]
        before = now


def test_the_example_of_a_camera_on_moved_files(data, moved, tmp_path):
    """Of a file: what there is of a camera is tested with sifa-run."""
    program = build(EXAMPLES / "webcam", tmp_path, moved)
    result = run(program, data / "stream.pt", data / "clip.mkv")
    assert result.returncode == 0, result.stderr
    expected = [label for _, label in decisions(data / "stream.pt", pattern(11, 20, 30), 0.6, 0.4)]
    assert expected
    assert result.stdout.splitlines() == [label or "-" for label in expected]
    result = run(program, data / "stream.pt", "/dev/video99")
    assert result.returncode == 8
    assert "/dev/video99 is not there" in result.stderr


def test_the_operators_are_linked_though_no_symbol_is_used(moved, tmp_path):
    source = tmp_path / "ops"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(LINK_OPS.format(components="ops"))
    program = build(source, source / "build", moved, "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed")
    dynamic = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    assert "libsifa_ops.so" in dynamic
    assert run(program).returncode == 0


def test_what_is_not_installed_is_named(moved, tmp_path):
    for components, message in (("ops gui", "gui"), ("video", "built without OpenCV")):
        prefix = tmp_path / components
        shutil.copytree(moved / "sifa", prefix / "sifa")
        if components == "video":
            (targets,) = prefix.rglob("SifaTargets.cmake")
            targets.write_text(targets.read_text().replace("Sifa::video", "Sifa::other"))
            (targets,) = prefix.rglob("SifaTargets-*.cmake")
            targets.write_text(targets.read_text().replace("Sifa::video", "Sifa::other"))
        (prefix / "CMakeLists.txt").write_text(LINK_OPS.format(components=components))
        done = cmake("-S", prefix, "-B", prefix / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
        assert done.returncode != 0
        assert message in done.stderr


def test_another_version_is_not_found(moved, tmp_path):
    text = LINK_OPS.format(components="ops").replace("Sifa CONFIG", "Sifa 99.0 CONFIG")
    (tmp_path / "CMakeLists.txt").write_text(text)
    done = cmake("-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}")
    assert done.returncode != 0
    assert "SifaConfig.cmake, version: " + sifa.__version__ in done.stderr


@pytest.mark.slow
def test_as_a_subdirectory_without_opencv(data, tmp_path):
    """It compiles everything, and only what is linked."""
    (tmp_path / "CMakeLists.txt").write_text(AS_SUBDIRECTORY.format(root=EXAMPLES.parents[1]))
    options = ("-DSIFA_VIDEO=OFF", "-DSIFA_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}")
    build(tmp_path, tmp_path / "build", "", *options)
    result = run(tmp_path / "build" / "streams", data / "model.pt", 8, 8, data / "empty.pt")
    assert result.returncode == 0, result.stderr
    result = run(tmp_path / "build" / "classify", data / "model.pt", data / "clip.mkv")
    assert result.returncode == 8
    assert "this build of SIFA cannot read video files (SIFA_VIDEO=OFF)" in result.stderr


# --- The C API, from ctypes; all of it is tested in tests/cpp/test_c_api.cpp -------------------------------


@pytest.fixture(scope="module")
def c(runtime_module):
    library = ctypes.CDLL(Path(runtime_module.__file__).parent / "lib" / "libsifa_c.so")
    library.sifa_version.restype = ctypes.c_char_p
    library.sifa_last_error.restype = ctypes.c_char_p
    library.sifa_classifier_destroy.restype = None
    return library


def pointer(array, type_=ctypes.c_uint8):
    return array.ctypes.data_as(ctypes.POINTER(type_))


def test_a_clip_through_c(data, c):
    assert c.sifa_version().decode() == sifa.__version__
    handle = ctypes.c_void_p()
    assert c.sifa_classifier_create(b"/nothing.pt", None, 0, ctypes.byref(handle)) == 3
    assert c.sifa_last_error() == b"model file not found: /nothing.pt"
    assert handle.value is None
    assert c.sifa_classifier_create(str(data / "model.pt").encode(), None, 0, ctypes.byref(handle)) == 0
    count, label, json = ctypes.c_size_t(), ctypes.c_char_p(), ctypes.c_char_p()
    assert c.sifa_classifier_num_labels(handle, ctypes.byref(count)) == 0
    assert count.value == len(LABELS)
    for index, name in enumerate(LABELS):
        assert c.sifa_classifier_label(handle, ctypes.c_size_t(index), ctypes.byref(label)) == 0
        assert label.value.decode() == name
    assert c.sifa_classifier_metadata(handle, ctypes.byref(json)) == 0
    assert b'"schema_version": 1' in json.value
    clips = np.stack([pattern(NUM_FRAMES, 23, 31, seed) for seed in range(2)])
    answer = np.zeros((2, len(LABELS)), np.float32)
    shape = map(ctypes.c_int64, clips.shape[:4])
    into = (pointer(answer, ctypes.c_float), ctypes.c_size_t(answer.size))
    assert c.sifa_classifier_classify(handle, pointer(clips), *shape, *into) == 0
    np.testing.assert_allclose(answer, load_artifact(data / "model.pt")(clips), rtol=0, atol=1e-5)
    answer = np.zeros(len(LABELS), np.float32)
    room = ctypes.c_size_t(len(LABELS))
    video = str(data / "clip.mkv").encode()
    assert c.sifa_classifier_classify_video(handle, video, pointer(answer, ctypes.c_float), room) == 0
    assert LABELS[answer.argmax()] == best_of_the_video(data)
    c.sifa_classifier_destroy(handle)


def test_statuses_are_the_codes_of_errors():
    """The header's numbers against those of sifa::ErrorCode, by name."""
    include = EXAMPLES.parent / "include" / "sifa"
    c_names = re.findall(r"SIFA_(\w+) = (\d+)", (include / "sifa.h").read_text())
    cpp_names = re.findall(r"k(\w+) = (\d+),", (include / "error.h").read_text())
    assert len(cpp_names) == 12
    words = [("_".join(re.findall("[A-Z][a-z]*", name)).upper(), code) for name, code in cpp_names]
    assert [("OK", "0"), *words] == c_names
