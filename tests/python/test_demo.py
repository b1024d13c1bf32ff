"""The demo: that it runs as a whole, and that it says so when a part of it is missing or disagrees."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from sifa import cli, demo
from sifa.artifact import read_metadata
from sifa.data.motion import LABELS

RESULT = {
    "video": "folder/motion.mp4",
    "truth": "grow-then-shrink",
    "model": "folder/sifa_tiny.pt",
    "classes": [{"label": "grow-then-shrink", "index": 6, "probability": 0.98765}],
    "agreement": [{"engine": "C++, sifa-run", "label": "grow-then-shrink", "difference": 1.5e-7}],
    "picture": "folder/attention.png",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "output"


@pytest.fixture(scope="module")
def answer(runtime_module, folder):
    return demo.run_demo(folder)


@pytest.fixture
def fake_program(tmp_path, monkeypatch):
    """Puts a shell script in the place of sifa-run."""

    def install(script):
        program = tmp_path / "sifa-run"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(demo, "find_sifa_run", lambda: program)

    return install


def test_names_the_true_class(answer):
    assert answer["truth"] in LABELS
    assert answer["classes"][0]["label"] == answer["truth"]
    assert answer["classes"][0]["probability"] > 0.5
    assert len(answer["classes"]) == 3


def test_engines_agree(answer):
    engines = [entry["engine"] for entry in answer["agreement"]]
    assert engines == ["Python, eager", "Python, torch.compile", "C++, sifa-run"]
    assert {entry["label"] for entry in answer["agreement"]} == {answer["truth"]}
    assert max(entry["difference"] for entry in answer["agreement"]) < 1e-4


def test_writes_what_it_names(answer, folder):
    assert Path(answer["video"]).parent == folder
    assert Path(answer["video"]).stat().st_size > 1000
    assert read_metadata(answer["model"])["labels"] == list(LABELS)
    assert Image.open(answer["picture"]).width == 1200


@pytest.mark.parametrize("build", [True, False])
def test_command_line(capsys, monkeypatch, tmp_path, build):
    monkeypatch.chdir(tmp_path)
    if build:
        (tmp_path / "build").mkdir()
    folders = []
    monkeypatch.setattr(demo, "run_demo", lambda folder, progress: folders.append(str(folder)) or RESULT)
    for arguments in (["demo"], ["demo", "--json"], ["demo", "--output", "there"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code in (0, None)
        out, err = capsys.readouterr()
        assert err == ""
        if "--json" in arguments:
            assert json.loads(out) == RESULT
        else:
            for words in ("grow-then-shrink", "0.9877", "1.5e-07", "C++, sifa-run", "folder/attention.png"):
                assert words in out
    assert folders == ["build/demo" if build else "sifa-demo"] * 2 + ["there"]


def test_finds_the_program_beside_python_or_in_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(FileNotFoundError, match="there is no program .*sifa-run: `make build` builds it"):
        demo.find_sifa_run()
    with pytest.raises(FileNotFoundError, match="there is no program"):
        demo.run_demo(tmp_path / "output")
    for name in ("bin", "venv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sifa-run").touch(mode=0o755)
        assert demo.find_sifa_run() == tmp_path / name / "sifa-run"


def test_passes_on_what_the_program_says(fake_program):
    fake_program("echo 'error: the video cannot be opened' >&2; exit 8")
    with pytest.raises(RuntimeError, match="^error: the video cannot be opened$"):
        demo.classify_with_cpp("model.pt", "video.mp4", 10)
    fake_program("exit 1")
    with pytest.raises(RuntimeError, match="sifa-run ended with exit code 1"):
        demo.classify_with_cpp("model.pt", "video.mp4", 10)


def test_engines_that_disagree_are_an_error():
    eager = [0.7, 0.2, 0.1]
    table = demo.compare({"eager": eager, "same": [0.7, 0.2, 0.1]}, ["a", "b", "c"])
    assert table[1] == {"engine": "same", "label": "a", "difference": 0.0}
    with pytest.raises(RuntimeError, match=r"C\+\+ disagrees with eager: a, .* differ by 2\.0e-03"):
        demo.compare({"eager": eager, "C++": [0.702, 0.198, 0.1]}, ["a", "b", "c"])
    with pytest.raises(RuntimeError, match=r"C\+\+ disagrees with eager: b"):
        demo.compare({"eager": [0.5, 0.4999, 0.0], "C++": [0.4999, 0.5, 0.0]}, ["a", "b", "c"])
    with pytest.raises(RuntimeError, match=r"C\+\+ disagrees with eager: .* nan"):
        demo.compare({"eager": eager, "C++": [float("nan"), 0.2, 0.1]}, ["a", "b", "c"])
