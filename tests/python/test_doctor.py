"""`sifa doctor` and `sifa-run --doctor`: what is there, and for every problem what fixes it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from sifa import cli, doctor
from sifa.demo import find_sifa_run
from sifa.ops import library


def sifa_run(*arguments, program=None, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LD_", "PYTHON", "SIFA_"))}
    command = [str(program or find_sifa_run()), "--doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=inherited | environment, timeout=300)


@pytest.fixture(scope="module")
def by_name():
    return {finding["name"]: finding for finding in doctor.examine()}


def test_python_names_what_is_there(by_name, runtime_module):
    assert torch.__version__ in by_name["torch"]["value"]
    assert "run on cpu" in by_name["operators in Python"]["value"]
    assert by_name["C++ runtime: operators"]["value"] == "loaded, run on cpu"
    assert "OpenCV" in by_name["C++ runtime: video"]["value"]
    assert not [finding for finding in by_name.values() if finding["problem"]]


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_ends_with_1_if_there_is_a_problem(monkeypatch, capsys, as_json):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["doctor", *(["--json"] if as_json else [])])
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    if as_json:
        (problem,) = [finding for finding in json.loads(out) if finding["problem"]]
        assert problem["fix"] == "apt-get install g++"
    else:
        assert "C++ compiler: none\n  problem: `sifa compile` needs g++\n  fix: apt-get install g++\n" in out


def test_a_missing_operator_library_is_a_problem(monkeypatch):
    monkeypatch.setattr(library, "installed", lambda name: iter(()))
    (finding,) = [f for f in doctor.examine() if f["name"] == "operators in Python"]
    assert "there is no compiled library" in finding["problem"]
    assert "make build" in finding["fix"]


def test_sifa_run_names_what_is_there(runtime_module):
    done = sifa_run("--json")
    assert done.returncode == 0, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert set(findings) >= {"sifa", "machine", "operators", "cuda", "video"}
    assert findings["operators"]["value"] == "loaded, run on cpu"
    assert not [finding for finding in findings.values() if finding["problem"]]


def test_sifa_run_names_what_sending_video_needs(runtime_module, tmp_path):
    """Not as a problem: most have no use for it."""

    def video(**environment):
        (finding,) = [f for f in json.loads(sifa_run("--json", **environment).stdout) if f["name"] == "video"]
        return finding

    without = video(GST_PLUGIN_SYSTEM_PATH_1_0="/nonexistent", GST_REGISTRY=str(tmp_path / "registry"))
    assert without["value"].endswith(
        "cannot send video: GStreamer has no videoconvert: apt-get install gstreamer1.0-plugins-base"
    )
    assert not without["problem"]
    if "CI" in os.environ:  # where all of it is installed
        assert video()["value"].endswith("sends H.264 as RTP and MPEG-TS")


def test_sifa_run_without_its_libraries(runtime_module, tmp_path):
    """A copy without OpenCV's part, and then with an operator library that is none."""
    shutil.copytree(Path(runtime_module.__file__).parent / "lib", tmp_path / "sifa" / "lib")
    (tmp_path / "sifa" / "lib" / "libsifa_video.so").unlink()
    (tmp_path / "torch").symlink_to(Path(torch.__file__).parent)
    (tmp_path / "bin").mkdir()
    program = shutil.copy(find_sifa_run(), tmp_path / "bin")
    done = sifa_run(program=program)
    assert done.returncode == 1
    assert "video: \n  problem: this build of SIFA cannot read video files" in done.stdout
    assert "  fix: apt-get install libopencv-videoio-dev" in done.stdout
    assert done.stderr == "sifa-run: there are problems: see above\n"
    done = sifa_run("--json", program=program, SIFA_OPS_LIBRARY="/nothing.so")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert "operator library not found: /nothing.so" in findings["operators"]["problem"]
    assert "make build" in findings["operators"]["fix"]
