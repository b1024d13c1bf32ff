"""The ablation: what its task shows and hides, trainings that go on, tables that do not overstate."""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sifa
import torch
from sifa.data import hard_motion

ABLATION = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "ablation"
MODULES = ("clips", "configurations", "processes", "run", "table", "training")


@pytest.fixture
def ablation(monkeypatch):
    """A function that imports a module of benchmarks/ablation."""
    monkeypatch.syspath_prepend(str(ABLATION))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def still(seed, **changes):
    """A scene without jumps and discs."""
    scene = hard_motion.make_scene(seed)
    return dataclasses.replace(scene, camera=0 * scene.camera, disc_radius=-1 - scene.disc_radius, **changes)


@pytest.mark.parametrize("label", [0, 3])
def test_regions_move_in_the_order_of_the_label(label):
    shifts = {
        "right": (0, 4),
        "down": (4, 0),
        "left": (0, -4),
        "up": (-4, 0),
        "rest": (0, 0),
    }  # rows, columns
    scene = still(0, first=[1], speed=[1 / 16])
    clip = hard_motion.render_clip(label, scene, 64).float()
    first, second = hard_motion.LABELS[label].split("-then-")
    for t in range(15):
        if t % 4 == 3:
            continue  # the next frame is of the next step
        error = {
            name: (clip[t].roll(shift, (0, 1)) - clip[t + 1]).abs().mean() for name, shift in shifts.items()
        }
        assert min(error, key=error.get) == (second, "rest", "rest", first)[t // 4]


def test_labels_come_in_pairs_of_orders():
    for one, other in zip(hard_motion.LABELS[::2], hard_motion.LABELS[1::2], strict=True):
        assert one.split("-then-") == other.split("-then-")[::-1]


def test_steps_look_the_same_under_both_orders():
    for seed in range(30):
        scene = hard_motion.make_scene(seed)
        for label in range(4):
            shown, other = (hard_motion.movements(order, scene) for order in (label, label ^ 1))
            assert shown.shape == (4, scene.side**2)
            # Over the clip each region shows the same four; over the frame each step does, or one of them.
            assert (np.sort(shown, 0) == np.sort(other[:, :1], 0)).all()
            if hard_motion.scene_kind(seed) != "whole":
                assert (np.sort(shown, 1) == np.sort(other[0])).all()
    assert {hard_motion.make_scene(3 * i).first[0] for i in range(30)} == {0, 1, 2, 3}


def test_jumps_are_as_long_as_the_kind_says():
    for seed in range(30):
        camera = torch.as_tensor(hard_motion.make_scene(seed).camera)
        jumps = (camera[1:] - camera[:-1]).norm(dim=1)
        least, most = {"whole": (0, 0.3), "near": (0, 0.08), "far": (0.15, 0.3)}[hard_motion.scene_kind(seed)]
        assert ((least <= jumps) & (jumps <= most)).all()


def test_a_scene_is_its_seed():
    clip = hard_motion.render_clip(1, 5, 24)
    assert clip.shape == (16, 24, 24, 3)
    assert clip.dtype == torch.uint8
    assert torch.equal(clip, hard_motion.render_clip(1, hard_motion.make_scene(5), 24))
    assert not torch.equal(clip, hard_motion.render_clip(1, 8, 24))
    with pytest.raises(ValueError, match=r"label must be 0..3, an index of right-then-left, .*, got 4"):
        hard_motion.render_clip(4, 5)
    with pytest.raises(ValueError, match="size must be at least 15, got 14"):
        hard_motion.render_clip(0, 5, 14)


def test_every_configuration_is_one_of_the_backbone_and_in_a_table(ablation):
    configurations = ablation("configurations")
    named = {name for table in configurations.TABLES for _, name in table.rows}
    assert named == set(configurations.CONFIGURATIONS)
    clip = torch.randn(1, 3, 16, 32, 32)
    for options in configurations.CONFIGURATIONS.values():
        model = sifa.create_model(configurations.BACKBONE, num_classes=4, input_size=32, **options)
        assert model(clip).shape == (1, 4)


def test_trainings_go_on_where_they_ended(ablation, tmp_path, capsys):
    path = tmp_path / "ablation.json"
    command = ["--quick", "--json", str(path), "--clips", str(tmp_path), "--jobs", "1", "--workers", "1"]
    main = ablation("run").main
    main([*command, "--seeds", "1", "--minutes", "0"])
    assert "2 trainings are missing" in capsys.readouterr().err
    assert not path.exists()
    main([*command, "--seeds", "1", "--configurations", "SIFA"])
    (first,) = json.loads(path.read_text())["runs"]
    main([*command, "--seeds", "1"])
    report = json.loads(path.read_text())
    assert [run["configuration"] for run in report["runs"]] == ["SIFA", "2-D"]
    assert report["runs"][0] == first
    assert set(first["top1_of_kind"]) == {"whole", "near", "far"}
    main([*command, "--seeds", "1"])
    assert "has all 2 trainings already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds trainings with budget .*'steps': 4.*, and these have .*5"):
        main([*command, "--steps", "5"])


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_no_process(ablation, tmp_path, with_signal):
    """Its own have its standard error, which ends with the last of them."""
    command = [sys.executable, ablation("run").__file__, "--json", str(tmp_path / "a.json"), "--jobs", "2"]
    quick = ["--quick", "--steps", "100000", "--clips", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen([*command, *quick], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr.readline().startswith("rendered in ")
        time.sleep(5)
        process.send_signal(with_signal)
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # where it fails, too, nothing is left
    if with_signal == signal.SIGINT:
        assert process.returncode == 1
        assert f"stopped; {tmp_path / 'a.json'} has what was done, and the same command goes on\n" in errors
    assert "Traceback" not in errors


def test_a_training_is_its_seed(ablation, tmp_path):
    run, training = ablation("run"), ablation("training")
    ablation("clips").make_clips(tmp_path, 32, run.QUICK.training, run.QUICK.held_out, 1)
    trainer = training.Trainer(tmp_path, run.QUICK, "cpu", float("inf"))
    one, same, other = (trainer.train("rigid", seed) for seed in (0, 0, 1))
    assert one["training_losses"] == same["training_losses"] != other["training_losses"]


def report_of(**top1):
    names = {"plain": "2-D", "rigid": "rigid", "sifa": "SIFA"}
    runs = [
        {
            "configuration": names[key],
            "seed": seed,
            "top1": value,
            "top1_of_kind": {"whole": value, "near": value - 0.1, "far": value - 0.2},
        }
        for key, values in top1.items()
        for seed, value in enumerate(values)
    ]
    return {"budget": {"held_out": 500}, "runs": runs}


def test_tables_say_what_cannot_be_told_apart(ablation):
    table = ablation("table")
    text = table.tables(report_of(plain=[0.5, 0.51, 0.49], rigid=[0.7, 0.8], sifa=[0.78, 0.82]))
    assert "The control holds" in text
    lines = text.splitlines()
    assert (
        "| rigid 3×3 window | 75.0 ± 7.1 | 75.0 ± 7.1 | 65.0 ± 7.1 | 55.0 ± 7.1 | 2 | not distinguishable |"
    ) in lines
    assert (
        "| none: the 2-D network | 50.0 ± 1.0 | 50.0 ± 1.0 | 40.0 ± 1.0 | 30.0 ± 1.0 | 3 | -30.0 |" in lines
    )
    assert "| the difference | - | - | - | - | 0 | too few seeds |" in lines
    with pytest.raises(ValueError, match="the control reaches 60.0 %.*: the clips give the order away"):
        table.tables(report_of(plain=[0.6, 0.6], sifa=[0.7, 0.7]))
