"""Evaluation: the numbers, the views, every video once, and the same answers from every engine."""

import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sifa
import torch
from lively import lively_model
from rich.console import Console
from sifa import cli
from sifa.artifact import export_torchscript
from sifa.data.annotations import read_annotations
from sifa.data.clips import BrokenVideosError
from sifa.data.motion import LABELS
from sifa.data.video import read_frames
from sifa.evaluation.classify import Views, classify, parse_views
from sifa.evaluation.engines import Engine, load_engine, load_model
from sifa.evaluation.evaluate import annotations_for, evaluate
from sifa.evaluation.metrics import measure, most_confused, wilson, worst_classes

EVERY_LABEL = sorted(LABELS)


@pytest.fixture(scope="module")
def tiny():
    return load_engine("sifa_tiny")


@pytest.fixture(scope="module")
def annotations(tiny, motion_videos):
    return annotations_for(tiny, motion_videos)


@pytest.fixture(scope="module")
def evaluation(tiny, annotations):
    return evaluate(tiny, annotations, views=Views())


def engine_of(run, num_frames=4, labels=("a", "b"), sampling="center"):
    """An engine that is a function of frames."""
    return Engine("stub", "pytorch", "stub", list(labels), num_frames, 1, sampling, run)


# Numbers.


def test_metrics_by_hand():
    probabilities = torch.tensor(
        [
            [0.7, 0.2, 0.1, 0.0],  # a, right
            [0.4, 0.5, 0.1, 0.0],  # a, taken for b
            [0.1, 0.9, 0.0, 0.0],  # b, right
            [0.0, 0.6, 0.4, 0.0],  # c, taken for b
            [0.0, 0.0, 0.0, 1.0],  # c, taken for d, of which there is none
        ]
    )
    metrics = measure(probabilities, torch.tensor([0, 0, 1, 2, 2]), ["a", "b", "c", "d"])
    assert metrics.videos == 5
    assert metrics.top1 == pytest.approx(2 / 5)
    assert metrics.top5 == 1  # of four classes
    assert metrics.mean_class_accuracy == pytest.approx((1 / 2 + 1 + 0) / 3)  # without d
    assert metrics.confusion == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    # Every video is in a bin of its own: 0.5, 0.6, 0.7, 0.9 and 1.
    assert [index for index, entry in enumerate(metrics.calibration) if entry.videos] == [7, 9, 10, 13, 14]
    assert metrics.calibration_error == pytest.approx((0.3 + 0.5 + 0.1 + 0.6 + 1.0) / 5, abs=1e-6)
    a, b, c, d = metrics.classes
    assert (a.videos, a.top1, a.precision, a.taken_for, a.times) == (2, 0.5, 1.0, "b", 1)
    assert a.confidence == pytest.approx(0.55)
    assert (b.top1, b.taken_for, b.times) == (1.0, None, 0)
    assert b.precision == pytest.approx(1 / 3)
    assert (c.top1, c.precision, c.taken_for) == (0.0, None, "b")
    assert (d.videos, d.top1, d.top5, d.precision, d.confidence) == (0, None, None, 0.0, None)
    assert [entry.label for entry in worst_classes(metrics, 5)] == ["c", "a"]
    assert most_confused(metrics, 2) == [(0, 1, 1), (2, 1, 1)]


def test_top5_of_more_classes():
    probabilities = torch.arange(7, dtype=torch.float32).expand(3, 7) / 21  # class 6 is the most likely
    metrics = measure(probabilities, torch.tensor([6, 2, 1]), list("abcdefg"))
    assert metrics.top1 == pytest.approx(1 / 3)
    assert metrics.top5 == pytest.approx(2 / 3)
    assert [metrics.classes[i].top5 for i in (6, 2, 1)] == [1, 1, 0]


def test_calibration_error_is_what_the_bins_say():
    generator = torch.Generator().manual_seed(1)
    probabilities = (4 * torch.randn(200, 5, generator=generator)).softmax(1)
    probabilities[:20] = torch.eye(5)[torch.arange(20) % 5]  # saturated
    metrics = measure(probabilities, torch.randint(5, (200,), generator=generator), list("abcde"))
    filled = [entry for entry in metrics.calibration if entry.videos]
    assert sum(entry.videos for entry in metrics.calibration) == 200
    assert metrics.calibration[-1].videos >= 20
    expected = sum(entry.videos * abs(entry.confidence - entry.accuracy) for entry in filled) / 200
    assert metrics.calibration_error == pytest.approx(expected, abs=1e-6)
    assert all(entry.low <= entry.confidence < entry.high + 1e-6 for entry in filled)


def test_a_bin_begins_with_its_lower_end():
    edge = float(torch.linspace(0, 1, 16)[9])
    metrics = measure(torch.tensor([[edge, 1 - edge]]), torch.tensor([0]), ["a", "b"])
    assert [index for index, entry in enumerate(metrics.calibration) if entry.videos] == [9]


def test_a_sum_of_softmaxes_above_one_by_rounding_stays_probabilities():
    probabilities = torch.tensor([[0.6, 0.4], [1.0 + 1e-7, 0.0]])
    exact = torch.tensor([[0.6, 0.4], [1.0, 0.0]])
    targets = torch.tensor([0, 0])
    assert measure(probabilities, targets, ["a", "b"]) == measure(exact, targets, ["a", "b"])


def test_interval():
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(1.0, 1000) == pytest.approx((0.99617, 1.0), abs=1e-5)
    assert wilson(0.0, 5)[0] == pytest.approx(0)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.zeros(0, 2), ["a", "b"], "no predictions to measure"),
        (torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), ["a", "b"], "1 of 2 predictions are not numbers"),
        (torch.ones(1, 1), ["a"], "a model of one class is always right"),
    ],
)
def test_what_cannot_be_measured(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(probabilities, torch.zeros(len(probabilities), dtype=torch.long), labels)


# Views.


@pytest.mark.parametrize("text", ["", "10", "10x2", "0x1", "0x3", "axb", "x3", "10x3x1", "-1x1", "1X1"])
def test_views_that_are_none(text):
    with pytest.raises(ValueError, match="views must be clips x crops, such as 1x1 or 10x3"):
        parse_views(text)


def test_views_are_squares_of_whole_clips(motion_videos):
    seen = []

    def run(frames):
        seen.append(frames)
        return torch.full((len(frames), 2), 0.5)

    listed = read_annotations(motion_videos)
    wide = next(i for i, video in enumerate(listed.videos) if video.name == "right-then-left/wide.mp4")
    assert [index for index, _ in classify(engine_of(run, 8), listed, [wide], views=parse_views("2x3"))] == [
        wide
    ]
    views = torch.cat(seen)
    assert views.shape == (6, 8, 112, 112, 3)
    whole, _ = read_frames(listed.videos[wide].path, 24)
    for clip, start in enumerate((0, 16)):
        for crop, left in enumerate((0, 14, 28)):
            expected = whole[start : start + 8, :, left : left + 112]
            assert torch.equal(views[3 * clip + crop], expected)
    seen.clear()
    list(classify(engine_of(run, 8), listed, [wide], views=Views()))
    assert torch.equal(seen[0][0], whole[8:16])


def test_probabilities_are_the_mean_of_the_views_whatever_the_batch(motion_videos):
    def run(frames):
        share = frames.float().mean((1, 2, 3, 4)) / 255
        return torch.stack([share, 1 - share], 1)

    listed = read_annotations(motion_videos)
    results = {}
    for batch_size in (1, 4, 100):
        found = list(
            classify(*(engine_of(run), listed, range(7)), views=parse_views("2x3"), batch_size=batch_size)
        )
        assert [index for index, _ in found] == list(range(7))
        results[batch_size] = torch.stack([row for _, row in found])
    torch.testing.assert_close(results[4], results[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[100], results[1], rtol=0, atol=1e-6)
    assert results[1][:, 0].std() > 1e-3
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(classify(engine_of(run), listed, [0], views=Views(), batch_size=0))


# Evaluations.


def test_counts_every_video_and_finds_the_mistake(evaluation, annotations):
    assert evaluation.metrics.videos == 7
    assert evaluation.metrics.top1 == pytest.approx(6 / 7)
    assert evaluation.indices.tolist() == list(range(7))
    assert evaluation.broken == []
    wrong = [entry for entry in evaluation.results() if entry["label"] != entry["predicted"]]
    assert [(entry["video"], entry["predicted"]) for entry in wrong] == [
        ("up-then-down/wrong.mp4", "down-then-up")
    ]
    assert wrong[0]["probability"] > 0.5 > wrong[0]["probability_of_label"]
    facts = json.loads(json.dumps(evaluation.facts()))
    assert facts["mean_class_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert facts["views"] == "1x1"


def test_workers_change_nothing(tiny, annotations, evaluation):
    again = evaluate(tiny, annotations, views=Views(), workers=2, batch_size=3)
    torch.testing.assert_close(again.probabilities, evaluation.probabilities, rtol=0, atol=1e-5)


@pytest.fixture
def with_broken(motion_videos, tmp_path):
    """The seven videos and one that is none, between them."""
    folder = tmp_path / "videos"
    shutil.copytree(motion_videos, folder)
    (folder / "left-then-right" / "broken.mp4").write_bytes(b"no video")
    return folder


def test_empty_files_and_videos_without_frames_are_broken(tiny, motion_videos, tmp_path):
    folder = tmp_path / LABELS[0]
    folder.mkdir()
    whole = (motion_videos / "right-then-left" / "square.mp4").read_bytes()
    (folder / "whole.mp4").write_bytes(whole)
    (folder / "empty.mp4").touch()
    (folder / "header.mp4").write_bytes(whole[:300])
    found = evaluate(tiny, annotations_for(tiny, tmp_path), views=Views(3, 3), max_broken=1, workers=1)
    assert found.broken == [f"{LABELS[0]}/empty.mp4", f"{LABELS[0]}/header.mp4"]
    assert found.metrics.videos == 1


def test_broken_videos_are_named_and_not_counted(tiny, with_broken, evaluation, caplog):
    found = evaluate(tiny, annotations_for(tiny, with_broken), views=Views(), max_broken=0.125)
    assert found.broken == ["left-then-right/broken.mp4"]
    assert found.metrics.videos == 7
    assert found.metrics.top1 == evaluation.metrics.top1
    assert found.indices.tolist() == list(range(1, 8))  # the broken one is the first of the first class
    assert caplog.text.count("left-then-right/broken.mp4 is not a video") == 1


def test_too_many_broken_videos_are_an_error(tiny, with_broken, tmp_path):
    message = (
        r"1 of the 8 videos of \S+ cannot be read, more than max_broken=0.1 .* left-then-right/broken.mp4"
    )
    with pytest.raises(BrokenVideosError, match=message):
        evaluate(tiny, annotations_for(tiny, with_broken), views=Views(), max_broken=0.1)
    only = tmp_path / "only" / LABELS[0]
    only.mkdir(parents=True)
    (only / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(BrokenVideosError, match="1 of the 1 videos"):
        evaluate(tiny, annotations_for(tiny, only.parent), views=Views(), max_broken=1)
    with pytest.raises(ValueError, match="max_broken must be a share, 0 to 1, got 2"):
        evaluate(tiny, annotations_for(tiny, with_broken), views=Views(), max_broken=2)


def with_torchrun(command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--no-python", *command]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def with_srun(command):
    """Two tasks with the variables that SLURM's srun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "NODEID": 0, "NODELIST": "127.0.0.1"}
    environment = {**os.environ, "MASTER_PORT": str(port)}
    environment |= {f"SLURM_{name}": str(value) for name, value in shared.items()}
    tasks = [
        subprocess.Popen(
            command,
            env={**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    return "".join(printed)


def test_two_processes_count_each_of_an_odd_number_of_videos_once(with_broken, tmp_path):
    (with_broken / "left-then-right" / "wide.mp4").unlink()
    command = [str(Path(sys.executable).with_name("sifa")), "eval", "sifa_tiny", str(with_broken)]
    # In batches of several videos the last bits depend on the videos that come together.
    command += ["--max-broken", "0.2", "--workers", "0", "--batch-size", "1", "--json", "-o"]
    alone = subprocess.run([*command, tmp_path / "alone"], check=True, capture_output=True, text=True).stdout
    facts = [
        json.loads(alone),
        json.loads(with_torchrun([*command, tmp_path / "torchrun"])),  # printed once
        json.loads(with_srun([*command, tmp_path / "srun"])),
    ]
    assert facts[0]["videos"] == 6
    assert facts[0]["broken"] == ["left-then-right/broken.mp4"]
    for found in facts:
        del found["report"], found["data"]
    assert facts[1] == facts[2] == facts[0]
    reports = [(tmp_path / name / "report.json").read_text() for name in ("alone", "torchrun", "srun")]
    assert len({json.dumps(json.loads(report), sort_keys=True) for report in reports}) == 1


# Engines.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with large offsets, as a folder and as an exported file."""
    folder = tmp_path_factory.mktemp("engines")
    model = lively_model(num_classes=10)
    model.labels = list(LABELS)
    model.save_pretrained(folder / "model")
    export_torchscript(model, folder / "model.pt")
    return folder


def test_every_engine_agrees(saved, motion_videos, runtime_module):
    found = {}
    for kind, source in (("pytorch", "model"), ("torchscript", "model.pt"), ("cpp", "model.pt")):
        engine = load_engine(str(saved / source), kind)
        assert engine.kind == kind
        assert (engine.num_frames, engine.frame_stride, engine.model) == (16, 1, "sifa_tiny")
        listed = annotations_for(engine, motion_videos)
        found[kind] = evaluate(engine, listed, views=Views(2, 3))
    expected = found["pytorch"]
    assert expected.probabilities.std() > 0.05
    for kind in ("torchscript", "cpp"):
        torch.testing.assert_close(found[kind].probabilities, expected.probabilities, rtol=0, atol=1e-5)
        assert found[kind].metrics.confusion == expected.metrics.confusion
    # Squares of the short side: the views of a wide video differ.
    whole = evaluate(load_engine(str(saved / "model")), listed, views=Views(2, 1))
    assert (whole.probabilities - expected.probabilities).abs().max() > 1e-3


def test_the_engine_follows_from_the_file(saved):
    assert load_engine(str(saved / "model")).kind == "pytorch"
    assert load_engine(str(saved / "model.pt")).kind == "torchscript"
    assert load_engine("sifa_tiny").labels == list(LABELS)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (
            "nowhere",
            None,
            "there is no folder or file nowhere, and no model of that name: sifa_convnext_atto",
        ),
        ("sifa_resnet18", None, "sifa_resnet18 has no bundled weights: give a folder"),
        ("text.txt", None, "text.txt is no model: expected a folder of save_pretrained, a checkpoint"),
        ("text.ckpt", None, "text.ckpt"),
        (
            "sifa_tiny",
            "cpp",
            "the engine 'cpp' runs files of `sifa export`.*: sifa export sifa_tiny -o model",
        ),
        ("sifa_tiny", "onnx", "engine must be one of pytorch, torchscript, cpp, got 'onnx'"),
        ("other.ckpt", None, "other.ckpt is no checkpoint of `sifa train`"),
        ("cut.pt", None, "cut.pt is no model: expected a folder"),
        ("EXPORTED", "pytorch", "is an exported file, which holds a graph and no PyTorch model: give the"),
    ],
)
def test_what_cannot_be_loaded(saved, tmp_path, monkeypatch, source, kind, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "text.ckpt"):
        (tmp_path / name).write_text("no model")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    (tmp_path / "cut.pt").write_bytes((saved / "model.pt").read_bytes()[:100_000])
    source = str(saved / "model.pt") if source == "EXPORTED" else source
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_engine(source, kind)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device must be cpu, cuda or a GPU's number such as cuda:1, got 'gpu'"),
        ("cuda:-1", "device must be cpu, cuda or"),
        ("cuda:99", "device cuda:99 is not there: torch sees .* GPUs; use cpu"),
    ],
)
def test_a_device_that_is_not_there(saved, device, message):
    for source in ("model", "model.pt"):
        with pytest.raises(ValueError, match=message):
            load_engine(str(saved / source), device=device)


def test_a_missing_runtime_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "sifa.runtime", None)
    with pytest.raises(ImportError, match="the engine 'cpp' needs sifa.runtime: `make build` builds it"):
        load_engine(str(saved / "model.pt"), "cpp")


def test_loading_a_model_by_name():
    model = load_model("sifa_tiny")
    assert not model.training
    assert isinstance(model, sifa.models.VideoClassifier)


# Classes.


def test_named_labels_decide_the_indices(annotations):
    assert annotations.labels == LABELS
    assert annotations.videos[-1].label == LABELS.index("up-then-down")
    # Read by themselves, the classes would be the folders' names.
    assert {video.label for video in annotations.videos} == {0, 1, 2}


def test_numbered_labels_take_the_names_of_the_annotations(motion_videos, tmp_path):
    three = engine_of(None, labels=["class_0", "class_1", "class_2"])
    listed = annotations_for(three, motion_videos)
    assert listed.labels == ("left-then-right", "right-then-left", "up-then-down")
    with pytest.raises(ValueError, match="has 3 classes and stub 4: evaluate a model on the classes that"):
        annotations_for(engine_of(None, labels=[f"class_{i}" for i in range(4)]), motion_videos)
    # Of a list with indices the highest class may be missing.
    (tmp_path / "list.txt").write_text("left-then-right/square.mp4 1\n")
    four = engine_of(None, labels=[f"class_{i}" for i in range(4)])
    listed = annotations_for(four, tmp_path / "list.txt", root=motion_videos)
    assert listed.labels == ("class_0", "class_1", "class_2", "class_3")


def test_a_class_that_the_model_has_not(tiny, motion_videos, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(motion_videos / "right-then-left", folder / "juggling")
    with pytest.raises(ValueError, match="'juggling' is none of the 10 labels"):
        annotations_for(tiny, folder)


# The command.


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def test_progress_on_a_terminal(run, motion_videos, tmp_path, monkeypatch):
    listed = motion_videos / "up-then-down"
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(cli.common, "progress", terminal)
    arguments = ("--workers", "0", "--root", listed, "-o", tmp_path / "report")
    (tmp_path / "list.txt").write_text("square.mp4 2\nwrong.mp4 2\n")
    code, out, err = run("eval", "sifa_tiny", tmp_path / "list.txt", *arguments)
    assert (code, err) == (0, "")
    assert "top-1                50.0 %" in out
    assert "2/2" in terminal.file.getvalue()


def test_command(run, saved, motion_videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("eval", "sifa_tiny", motion_videos, "--workers", "0")
    assert (code, err) == (0, "")
    assert "85.7 %  (95 % interval 48.7 to 97.4)" in out
    assert out.splitlines()[-2:] == [
        "to look at the mistakes: open sifa-eval/report.html",
        "to export:               sifa export sifa_tiny -o model.pt",
    ]
    assert (tmp_path / "sifa-eval" / "report.html").is_file()
    code, out, _ = run(*("eval", saved / "model.pt", motion_videos, "--workers", "0", "-o", "r"))
    assert code == 0
    assert out.splitlines()[-1] == f"to classify in C++:      sifa-run {saved / 'model.pt'} VIDEO"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_lacks_is_one_line_too(run, motion_videos, tmp_path, monkeypatch, workers):
    def lacking(*arguments, **settings):
        raise ImportError("reading videos needs torchcodec: pip install torchcodec")

    monkeypatch.setattr("sifa.data.clips.open_source", lacking)  # workers are forked
    code, out, err = run("eval", "sifa_tiny", motion_videos, "--workers", workers, "-o", tmp_path / "report")
    assert (code, out) == (1, "")
    assert err == "sifa: reading videos needs torchcodec: pip install torchcodec\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sifa_tiny", "nowhere.csv"], "there is no annotation file nowhere.csv"),
        (["sifa_tiny", ".", "--views", "3x10"], "views must be clips x crops"),
        (["sifa_tiny", ".", "--views", "0x3"], "views must be clips x crops"),
        (["sifa_tiny", ".", "--views", "axb"], "views must be clips x crops"),
        (["nowhere", "."], "there is no folder or file nowhere"),
        (["text.ckpt", "."], "text.ckpt cannot be read as a checkpoint of `sifa train`: "),
        (["sifa_tiny", "list.txt"], "list.txt:1: label must be 0 to 9, an index of the 10 classes, got 12"),
        (["five", "folders"], "folders has 2 classes and five 5: evaluate a model on the classes that it"),
        (["sifa_tiny", "folders", "-o", "text.ckpt/report"], "text.ckpt is a file: name another folder with"),
    ],
)
def test_failures_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "list.txt").write_text("a.mp4 12\n")
    for name in ("a", "b"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "1.mp4").touch()
    if arguments[0] == "five":
        sifa.create_model("sifa_tiny", num_classes=5).save_pretrained("five")
    code, out, err = run("eval", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("sifa: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "sifa-eval").exists()
