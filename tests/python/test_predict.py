"""Prediction: a line per video, resumed after a kill, shared out among machines."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from sifa import cli
from sifa.data.motion import LABELS
from sifa.evaluation.classify import Views
from sifa.evaluation.engines import load_engine
from sifa.evaluation.predict import find_videos, lines_of, parse_shard, predict, shard_of


@pytest.fixture(scope="module")
def engine():
    return load_engine("sifa_tiny")


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["predict", *(str(argument) for argument in arguments), "--workers", "0"])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_finds_videos_in_files_and_folders(tmp_path):
    for name in ("b/2.mp4", "b/1.MKV", "b/deep/3.webm", "b/notes.txt", "a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_videos([tmp_path / "a.bin", tmp_path / "b", tmp_path / "b" / "2.mp4"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.bin",
        "b/1.MKV",
        "b/2.mp4",
        "b/deep/3.webm",
    ]
    with pytest.raises(FileNotFoundError, match="there is no video or folder .*nowhere"):
        find_videos([tmp_path / "b", tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no videos: none of its files ends in .mp4, "):
        find_videos([tmp_path / "empty"])


def test_shards_hold_each_video_once():
    videos = [Path(str(number)) for number in range(7)]
    shards = [shard_of(videos, (number, 3)) for number in (1, 2, 3)]
    assert sorted(sum(shards, [])) == sorted(videos)
    assert [len(shard) for shard in shards] == [3, 2, 2]
    assert parse_shard("2/3") == (2, 3)
    for text in ("0/3", "4/3", "1", "1/0", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="shard must be i/N with i from 1 to N, such as 2/4, got"):
            parse_shard(text)


def test_lines(engine, motion_videos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [motion_videos / "right-then-left" / "wide.mp4", tmp_path / "broken.mp4"]
    first, second = predict(engine, videos, views=Views(), topk=3)
    assert first["video"] == str(videos[0])
    assert (first["model"], first["views"]) == ("sifa_tiny", "1x1")
    assert first["classes"][0]["label"] == "right-then-left"
    probabilities = [entry["probability"] for entry in first["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(LABELS[entry["index"]] == entry["label"] for entry in first["classes"])
    assert second == {
        "video": str(videos[1]),
        "model": "sifa_tiny",
        "views": "1x1",
        "error": "it cannot be read as a video",
    }
    (line,) = predict(engine, videos[:1], views=Views(), topk=99)
    assert sum(entry["probability"] for entry in line["classes"]) == pytest.approx(1, abs=1e-5)
    assert len(line["classes"]) == 10
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        next(predict(engine, videos, views=Views(), topk=0))


def test_to_standard_output(run, motion_videos):
    code, out, err = run(motion_videos / "left-then-right", "-m", "sifa_tiny", "--topk", "1")
    assert (code, err) == (0, "")
    assert [json.loads(line)["classes"][0]["label"] for line in out.splitlines()] == ["left-then-right"] * 2


def test_progress_on_a_terminal_beside_lines_in_a_pipe(run, motion_videos, tmp_path, monkeypatch):
    for output in ([], ["-o", tmp_path / "out.jsonl"]):
        terminal = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr(cli.common, "progress", terminal)
        code, out, err = run(motion_videos / "left-then-right", "-m", "sifa_tiny", *output)
        assert (code, err) == (0, "")
        assert "2/2" in terminal.file.getvalue()
        assert len(out.splitlines()) == (1 if output else 2)
    # Lines on the same terminal are progress enough.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.file.truncate(0)
    assert run(motion_videos / "left-then-right", "-m", "sifa_tiny")[0] == 0
    assert "/2" not in terminal.file.getvalue()


def test_resumes_a_killed_run(run, motion_videos, tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    code, out, err = run(motion_videos, "-m", "sifa_tiny", "-o", whole, "--batch-size", "1")
    assert (code, out, err) == (0, f"{whole}: 7 videos\n", "")
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    # Killed in the middle of the third line, of which a video's name was written already.
    part.write_bytes(b"".join(lines[:2]) + lines[2][:-5])
    code, out, _ = run(motion_videos, "-m", "sifa_tiny", "-o", part, "--resume", "--batch-size", "1")
    assert (code, out) == (0, f"{part}: 5 videos, there already: 2\n")
    assert part.read_bytes() == whole.read_bytes()
    code, out, _ = run(motion_videos, "-m", "sifa_tiny", "-o", part, "--resume")
    assert (code, out) == (0, f"{part}: 0 videos, there already: 7\n")
    # A file that is not there yet is begun.
    fresh = tmp_path / "fresh.jsonl"
    code, _, _ = run(motion_videos / "up-then-down", "-m", "sifa_tiny", "-o", fresh, "--resume")
    assert (code, len(entries(fresh))) == (0, 2)


def test_shards_together_are_the_whole(run, motion_videos, tmp_path):
    names = []
    for number in (1, 2):
        path = tmp_path / f"{number}.jsonl"
        assert run(motion_videos, "-m", "sifa_tiny", "-o", path, "--shard", f"{number}/2")[0] == 0
        names += [entry["video"] for entry in entries(path)]
    assert sorted(names) == [str(path) for path in find_videos([motion_videos])]


def test_broken_videos_are_done_too(run, motion_videos, tmp_path, caplog):
    folder = tmp_path / "videos"
    shutil.copytree(motion_videos / "up-then-down", folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    path = tmp_path / "out.jsonl"
    code, out, _ = run(folder, "-m", "sifa_tiny", "-o", path)
    assert (code, out) == (0, f"{path}: 3 videos, of which unreadable: 1\n")
    assert "broken.mp4 is not a video" in caplog.text
    code, out, _ = run(folder, "-m", "sifa_tiny", "-o", path, "--resume")
    assert (code, out) == (0, f"{path}: 0 videos, there already: 3\n")
    code, out, errors = run(folder / "broken.mp4", "-m", "sifa_tiny")
    assert code == 1
    assert "error" in json.loads(out)
    assert errors == "sifa: not one of the 1 videos can be read\n"
    for resume in ([], ["--resume"]):
        assert "is a folder: name a file in it" in run(folder, "-m", "sifa_tiny", "-o", folder, *resume)[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\n", r"out.jsonl:1 is no line of `sifa predict`, so there is nothing to resume"),
        (b'{"video": "a", "model": "m", "views": "1x1", "classes": []}\n[]\n', r"out.jsonl:2 is no line of"),
        (b'{"classes": []}\n', r"out.jsonl:1 is no line of"),
        (b'{"video": "a", "model": "m"}\n', r"out.jsonl:1 is no line of"),
        (b'{"video": "a", "model": "n", "views": "1x1"}\n', r"out.jsonl:1 comes from model n, not m: name"),
        (b'{"video": "a", "model": "m", "views": "2x3"}\n', r"out.jsonl:1 comes from views 2x3, not 1x1: "),
        (b"\xff\xfe\n", r"out.jsonl:1 is no line of"),
    ],
)
def test_what_cannot_be_resumed_stays_as_it_is(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content + b'{"half')
    with pytest.raises(ValueError, match=message), lines_of(path, {"model": "m", "views": "1x1"}, True):
        pass
    assert path.read_bytes() == content + b'{"half'


def test_nothing_is_overwritten(run, motion_videos, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    code, out, err = run(motion_videos, "-m", "sifa_tiny", "-o", path)
    assert (code, out) == (1, "")
    assert (
        err
        == f"sifa: {path} is there already: go on with it with --resume, or remove it, or name another file\n"
    )
    assert path.read_text() == "precious\n"
    code, _, err = run(motion_videos, "-m", "sifa_tiny", "-o", tmp_path / "no" / "out.jsonl")
    assert (code, "there is no folder" in err) == (1, True)
    code, _, err = run(motion_videos, "-m", "sifa_tiny", "--resume")
    assert code == 2
    assert "name it with --output" in " ".join(err.split())
