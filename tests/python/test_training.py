"""Training: the order of the data, the parts of a step, whole trainings: stopped, resumed, shared by two."""

import contextlib
import csv
import dataclasses
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sifa
import torch
from sifa.cli import main
from sifa.data import motion
from sifa.data.clips import BrokenVideosError
from sifa.training import checkpoint, recipe, run
from sifa.training.callbacks import Checkpoints, Interrupted
from sifa.training.loading import TrainingLoader, TrainingOrder, ValidationOrder
from sifa.training.module import (
    ClassifierTraining,
    heads_loss,
    make_mix,
    make_optimizer,
    make_schedule,
)
from sifa.training.processes import Processes
from sifa.training.recipe import LossChoice, OptimizerChoice, read_recipe
from sifa.training.run import hold_out, train
from sifa.training.symmetry import motion_symmetry
from test_motion import label_of, plain_scene

# --- The order of the data --------------------------------------------------------------------------------


def steps_of(orders, epoch):
    """The videos of each optimizer step, over all processes."""
    steps: dict[int, list[int]] = {}
    for order in orders:
        order.set_epoch(epoch)
        for position, part in enumerate(order):
            assert {of_epoch for of_epoch, _ in part} == {epoch}
            steps.setdefault(position // order.accumulate, []).extend(index for _, index in part)
    return [sorted(step) for step in steps.values()]


def test_a_step_has_the_same_videos_however_many_share_it():
    alone = steps_of([TrainingOrder(26, 8, seed=3)], epoch=2)
    shared = [TrainingOrder(26, 8, 2, processes=2, rank=rank, seed=3) for rank in (0, 1)]
    assert [len(order) for order in shared] == [6, 6]
    assert steps_of(shared, epoch=2) == alone
    assert len({index for step in alone for index in step}) == 24
    assert steps_of(shared, epoch=1) != alone
    assert steps_of([TrainingOrder(26, 8, seed=4)], epoch=2) != alone


def test_an_order_goes_on_at_a_position():
    whole = TrainingOrder(20, 4, 2, seed=1)
    batches = list(whole)
    whole.set_epoch(1)
    batches += list(whole)
    resumed = TrainingOrder(20, 4, 2, seed=1, position=13)
    resumed.set_epoch(1)  # as the trainer does
    assert list(resumed) == batches[13:]
    resumed.set_epoch(2)
    assert len(list(resumed)) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 6, 2, 2), "batch_size must be a multiple of processes x accumulate, 2 x 2, got 6"),
        ((3, 4), "there are 3 videos to train on, fewer than one batch of 4: give more videos, or a smaller"),
    ],
)
def test_batches_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingOrder(*arguments)


def test_validation_sees_every_video_and_each_process_as_many_batches():
    orders = [ValidationOrder(7, 2, 3, rank) for rank in range(3)]
    seen = [[index for batch in order for index in batch] for order in orders]
    assert [len(order) for order in orders] == [2, 2, 2]
    own = [[index for index in indices if index % 3 == rank] for rank, indices in enumerate(seen)]
    assert own == [[0, 3, 6], [1, 4], [2, 5]]
    assert all(len(indices) == 3 for indices in seen)


# --- The parts of a step ----------------------------------------------------------------------------------


def test_the_loss_is_the_sum_over_heads():
    heads = torch.randn(4, 2, 5)
    labels = torch.tensor([0, 1, 4, 2])
    expected = sum(-heads[:, head].log_softmax(1)[torch.arange(4), labels].mean() for head in (0, 1))
    assert heads_loss(heads, labels, LossChoice()).item() == pytest.approx(expected.item(), rel=1e-6)
    weighted = heads_loss(heads, labels, LossChoice(weight=4))
    assert weighted.item() == pytest.approx(4 * expected.item(), rel=1e-6)
    smooth = heads_loss(heads, labels, LossChoice(label_smoothing=0.2))
    uniform = sum(-heads[:, head].log_softmax(1).mean() for head in (0, 1))
    assert smooth.item() == pytest.approx((0.8 * expected + 0.2 * uniform).item(), rel=1e-6)


def test_a_validation_loss_that_is_no_number_counts():
    model = sifa.create_model("sifa_tiny", num_classes=2, num_frames=8)
    module = ClassifierTraining(model, read_recipe("motion"), steps_per_epoch=1)
    for loss in (0.5, math.nan):
        module.val_loss.update(torch.tensor(loss), 4)
    assert module.val_loss.compute() == math.inf


def test_the_learning_rate_warms_up_and_falls():
    parameter = torch.nn.Parameter(torch.zeros(1))
    choice = OptimizerChoice(learning_rate=0.4, warmup_epochs=2, warmup_start=0.25, final_learning_rate=0.04)
    optimizer = torch.optim.SGD([parameter], choice.learning_rate)
    schedule = make_schedule(optimizer, choice, steps_per_epoch=4, epochs=6)
    rates = []
    for _ in range(24):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.25)
    assert rates[8] == pytest.approx(0.4)
    assert rates[16] == pytest.approx(0.22)  # half a cosine
    assert schedule.get_last_lr()[0] == pytest.approx(0.04)


def test_what_decays():
    model = sifa.create_model("sifa_tiny", input_size=32)
    choice = OptimizerChoice(name="adamw", weight_decay=0.1, decay_vectors=False, no_decay=["*conv_offset*"])
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, choice).param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if parameter.ndim < 2 or "conv_offset" in name else 0.1)
    (all_alike,) = make_optimizer(model, OptimizerChoice(weight_decay=0.2)).param_groups
    assert all_alike["weight_decay"] == 0.2


@pytest.mark.parametrize("choice", [LossChoice(mixup=0.8), LossChoice(cutmix=1.0)])
def test_clips_and_classes_are_mixed_alike(choice):
    labels = torch.tensor([2, 0])
    clips = labels.float().view(2, 1, 1, 1, 1).expand(2, 3, 4, 16, 16)
    mixed, targets = make_mix(choice, 3)(clips, labels)
    assert mixed.shape == clips.shape
    assert type(mixed) is torch.Tensor
    assert targets.sum(1).tolist() == pytest.approx([1, 1])
    assert (mixed == mixed[:, :, :1]).all()  # all frames of a clip
    # The clips show their class: their mean is that of the targets.
    assert mixed.mean((1, 2, 3, 4)).tolist() == pytest.approx((2 * targets[:, 2]).tolist(), abs=1e-6)
    assert 0 < targets[0, 2] < 1


def test_symmetries_of_the_motion_task_keep_labels_true(monkeypatch):
    names = range(0, 10, 2)
    clips = torch.stack([motion.render_clip(label, plain_scene(), 64) for label in names])
    for draw in range(5):  # mirror, turn over, transpose, reverse in time, invert
        monkeypatch.setattr(torch, "randint", lambda *_, draw=draw: torch.arange(5).eq(draw).long())
        changed, labels = motion_symmetry(clips, torch.tensor(names))
        if draw == 4:
            changed = 255 - changed
        assert [label_of(clip) for clip in changed] == [motion.LABELS[label] for label in labels.tolist()]


@pytest.mark.parametrize("name", ["motion", "motion-streaming"])
def test_the_motion_task_is_learned_from_the_clips_that_have_the_labels(tmp_path, name):
    """Anywhere else in the video the same motion begins at another phase, and shows the other order."""
    for label in (0, 1):
        video = tmp_path / f"{label}.mkv"
        motion.write_video(video, motion.render_video(label, plain_scene(), 32), lossless=True)
    (tmp_path / "list.txt").write_text("0.mkv 0\n1.mkv 1\n")
    options = [f"--data.{part}={tmp_path}/list.txt" for part in ("train", "validation")]
    sizes = ["--data.labels=null", "--data.workers=0", "--model.input_size=32", "--batch_size=2"]
    chosen = read_recipe(name, [*options, *sizes])
    training, held_out = run.read_videos(chosen)
    model = run.make_model(chosen, training.labels)
    loader, _ = run.make_loaders(chosen, model, training, held_out, TrainingOrder(2, 2))
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        (batch,) = loader
        for frames, label in zip(batch["frames"], batch["label"].tolist(), strict=True):
            assert torch.equal(frames, motion.render_clip(label, plain_scene(), 32))


# --- Whole trainings --------------------------------------------------------------------------------------


def options_of(folder, videos):
    """Two epochs of a small sifa_tiny on four videos, and three held out."""
    return [
        f"--output={folder}",
        f"--data.train={videos}",
        "--data.validation=null",
        "--data.labels=null",
        "--data.held_out=0.3",
        "--data.workers=0",
        "--model.num_frames=8",
        "--model.input_size=32",
        "--symmetries=none",
        "--device=cpu",
        "--epochs=2",
        "--batch_size=2",
        "--log_every=1",
        "--optimizer.warmup_epochs=1",
        "--augmentation.flip=0.5",
    ]


def recipe_of(folder, videos, *options):
    return read_recipe("motion", [*options_of(folder, videos), *options])


def curve(folder):
    """Everything logged in a folder but times, by step, over all starts."""
    rows = {}
    for log in sorted(Path(folder).glob("logs/*/metrics.csv")):
        for row in csv.DictReader(log.open()):
            for key, value in row.items():
                if value and key not in ("epoch", "step", "train/data_wait"):
                    rows[int(row["step"]), key] = float(value)
    return rows


def weights(folder):
    return sifa.from_pretrained(folder).state_dict()


def assert_same_weights(folder, other):
    ours, theirs = weights(folder), weights(other)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


def assert_same_training(folder, other):
    expected = curve(other)
    assert curve(folder) == pytest.approx(expected, abs=1e-6)
    assert len(expected) > 10
    assert_same_weights(folder, other)


def interrupt(monkeypatch, number, batches):
    """Send this process a signal amid the training step of a batch, counted over all epochs."""
    step = ClassifierTraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.batches == batches:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierTraining, "training_step", interrupted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, motion_videos):
    """A training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe_of(folder, motion_videos))


def test_what_a_training_leaves(whole, motion_videos):
    folder, result = whole
    assert result.folder == folder
    assert set(result.metrics) == {"val/loss", "val/top1", "val/top5"}
    assert result.broken == []
    found = curve(folder)
    assert {key for _, key in found} == {
        "train/loss",
        "train/learning_rate",
        "train/epoch_loss",
        "val/loss",
        "val/top1",
        "val/top5",
    }
    assert len([key for key in found if key[1] == "train/loss"]) == 4
    assert list(folder.glob("logs/0/events.out.tfevents.*"))
    model = sifa.from_pretrained(folder)
    assert model.labels == ["left-then-right", "right-then-left", "up-then-down"]
    assert (model.num_frames, model.input_size) == (8, (32, 32))
    lines = (folder / "held_out.txt").read_text().splitlines()
    assert len(lines) == 3
    of_checkpoint = checkpoint.load_checkpoint(folder / checkpoint.FILE).state_dict()
    assert all(torch.equal(value, of_checkpoint[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="holds a finished model: give --output=FOLDER to train in another"):
        train(recipe_of(folder, motion_videos))


@pytest.mark.parametrize(
    ("number", "batches"),
    [
        (signal.SIGTERM, 0),  # amid the first epoch
        (signal.SIGINT, 1),  # its last batch: the validation saves
        (signal.SIGTERM, 2),  # amid the second
    ],
)
def test_a_stopped_training_goes_on_as_if_nothing_had_been(
    whole, motion_videos, tmp_path, monkeypatch, number, batches
):
    with monkeypatch.context() as patch:
        interrupt(patch, number, batches)
        with pytest.raises(Interrupted, match=rf"stopped by {number.name} in epoch .*; saved to ") as stopped:
            train(recipe_of(tmp_path, motion_videos))
    assert stopped.value.signal == number
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not (tmp_path / "config.json").exists()
    result = train(recipe_of(tmp_path, motion_videos))
    assert result.metrics == pytest.approx(whole[1].metrics, abs=1e-6)
    assert_same_training(tmp_path, whole[0])


def test_so_does_one_with_everything_random_and_averaged(motion_videos, tmp_path, monkeypatch):
    options = [
        "--accumulate=2",
        "--ema=0.5",
        "--loss.cutmix=1",
        "--loss.mixup=0.5",
        "--data.workers=1",
        "--augmentation.scale=[0.5,1.0]",
        "--augmentation.jitter=[0.2,0.2,0.2,0.1]",
    ]
    train(recipe_of(tmp_path / "whole", motion_videos, *options))
    with monkeypatch.context() as patch:
        interrupt(patch, signal.SIGTERM, 4)  # the first part of the third step
        with pytest.raises(Interrupted, match="epoch 2 after step 3;"):
            train(recipe_of(tmp_path / "stopped", motion_videos, *options))
    train(recipe_of(tmp_path / "stopped", motion_videos, *options))
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")


def test_a_validation_that_was_stopped_begins_again(whole, motion_videos, tmp_path, monkeypatch):
    def killed(self, batch, batch_idx, step=ClassifierTraining.validation_step):
        os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTraining, "validation_step", killed)
        with pytest.raises(Interrupted, match="epoch 1 after step 2"):
            train(recipe_of(tmp_path, motion_videos, "--data.workers=1"))
    # The trainer forgets those of the training meanwhile, and the process would wait for them at its end.
    left = multiprocessing.active_children()
    for process in left:
        process.kill()  # or this one would wait, too
    assert left == []
    train(recipe_of(tmp_path, motion_videos))
    assert_same_training(tmp_path, whole[0])


def test_parts_of_a_step_add_up_to_it(motion_videos, tmp_path, monkeypatch):
    # Without dropout and the statistics of a batch, which know only their part.
    def without_statistics(*arguments, make=run.make_model):
        model = make(*arguments)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return model

    monkeypatch.setattr(run, "make_model", without_statistics)
    options = ["--epochs=1", "--batch_size=4", "--optimizer.name=sgd", "--model.options={dropout: 0.0}"]
    for parts in ("1", "2"):
        train(recipe_of(tmp_path / parts, motion_videos, *options, f"--accumulate={parts}"))
    assert_same_weights(tmp_path / "1", tmp_path / "2")


def test_the_average_is_what_is_kept(motion_videos, tmp_path):
    folder = tmp_path / "average"
    train(recipe_of(folder, motion_videos, "--ema=0.9", "--epochs=1"))
    plain = torch.load(folder / checkpoint.FILE, weights_only=True)
    kept = weights(folder)
    name = "head.weight"
    average = checkpoint.load_checkpoint(folder / checkpoint.FILE).state_dict()
    assert torch.equal(kept[name], average[name])
    assert not any(torch.equal(value, kept[name]) for value in plain["current_model_state"].values())


def test_autocast_trains_too(motion_videos, tmp_path):
    result = train(recipe_of(tmp_path, motion_videos, "--precision=bf16-mixed"))
    assert 0.5 < result.metrics["val/loss"] < 2
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path).values())


@pytest.mark.slow
def test_a_compiled_network_trains_alike(motion_videos, tmp_path):
    # Without dropout: the compiler's draws are other ones.
    losses = []
    for compiled in ("false", "true"):
        options = [f"--compile={compiled}", "--model.options={dropout: 0.0}", "--optimizer.name=sgd"]
        losses.append(train(recipe_of(tmp_path / compiled, motion_videos, *options)).metrics["val/loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_broken_video_is_replaced_and_named(motion_videos, tmp_path, capsys):
    videos = tmp_path / "videos"
    for source in motion_videos.glob("*/*.mp4"):
        (videos / source.parent.name).mkdir(parents=True, exist_ok=True)
        (videos / source.parent.name / source.name).symlink_to(source)
    recipe = recipe_of(tmp_path / "run", videos, "--data.max_broken=0.3", "--epochs=1")
    training, _ = run.read_videos(recipe)
    training.videos[0].path.unlink()
    training.videos[0].path.write_bytes(b"no video")
    result = train(recipe)
    assert result.broken == [training.videos[0].name]
    strict = recipe_of(tmp_path / "strict", videos, "--data.max_broken=0.2", "--epochs=1")
    with pytest.raises(BrokenVideosError, match="1 of the 4 videos of .*; `sifa data check` lists them all"):
        train(strict)


def test_the_list_of_held_out_videos_leaves_the_broken_ones_out(motion_videos, tmp_path):
    _, held_out = run.read_videos(recipe_of(tmp_path, motion_videos))
    run.write_held_out(tmp_path, held_out, [held_out.videos[1].name])
    first, _, last = (f"{video.path.resolve()} {video.label}" for video in held_out.videos)
    assert (tmp_path / run.HELD_OUT).read_text().splitlines() == [first, last]


def test_checkpoints_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*none.ckpt"):
        checkpoint.read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match="`sifa train`: it is damaged, or something else$"):
        checkpoint.read_checkpoint(tmp_path / "damaged.ckpt")
    torch.save({"sifa": {}, "state_dict": {"w": torch.zeros(10_000)}}, tmp_path / "flipped.ckpt")
    content = bytearray((tmp_path / "flipped.ckpt").read_bytes())
    content[len(content) // 2] ^= 1  # among the numbers of "w"
    (tmp_path / "flipped.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped.ckpt cannot be read .*: it is damaged"):
        checkpoint.read_checkpoint(tmp_path / "flipped.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match="other.ckpt is no checkpoint of `sifa train`: it has no entry 'sifa'"
    ):
        checkpoint.load_checkpoint(tmp_path / "other.ckpt")
    torch.save({"sifa": {}, "state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(ValueError, match="empty.ckpt is a checkpoint of `sifa train` without its model"):
        checkpoint.load_checkpoint(tmp_path / "empty.ckpt")


def test_the_trainer_does_as_the_recipe_says(motion_videos, tmp_path):
    chosen = recipe_of(tmp_path, motion_videos, "--optimizer.gradient_clip=3", "--accumulate=2")
    trainer = run.make_trainer(chosen, tmp_path, Processes(), {})
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (3, 2)


def test_a_checkpoint_comes_every_so_many_minutes(motion_videos, tmp_path, monkeypatch):
    saved = []
    save = Checkpoints._save
    monkeypatch.setattr(Checkpoints, "_save", lambda self, trainer: (saved.append(1), save(self, trainer)))
    counts = []
    for minutes in ("60", "1e-9"):
        saved.clear()
        train(recipe_of(tmp_path / minutes, motion_videos, f"--checkpoint_minutes={minutes}"))
        counts.append(len(saved))
    assert counts[0] == 2  # before the validation of each epoch
    assert counts[1] > counts[0]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    callback = Checkpoints(tmp_path / "last.ckpt", 1.0, {})
    callback._receive(signal.SIGINT, None)
    with pytest.raises(Interrupted, match=r"second SIGINT, without saving; .*last.ckpt is as it was"):
        callback._receive(signal.SIGINT, None)


def test_waiting_for_videos_is_counted():
    class Slow(torch.utils.data.Dataset):
        def __getitem__(self, item):
            time.sleep(0.05)
            return torch.zeros(1)

    loader = TrainingLoader(Slow(), TrainingOrder(4, 2))
    assert len(list(loader)) == 2
    assert loader.waited >= 4 * 0.05


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Processes(1, 0, 1, 1)),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5"},
            Processes(8, 5, 4, 2),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "6"}, Processes(8, 6, 4, 2)),
    ],
)
def test_who_trains_with_whom(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Processes.of_environment() == expected


def test_a_task_of_slurm_trains_and_stops_as_any_other(motion_videos, tmp_path, monkeypatch):
    for name, value in [("NTASKS", 1), ("NNODES", 1), ("PROCID", 0), ("LOCALID", 0), ("NODEID", 0)]:
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with monkeypatch.context() as patch:
        interrupt(patch, signal.SIGTERM, 0)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            train(recipe_of(tmp_path, motion_videos))
    assert not list(tmp_path.glob("hpc*"))
    assert train(recipe_of(tmp_path, motion_videos)).is_first


def test_a_training_goes_on_by_the_same_recipe_only(motion_videos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, signal.SIGTERM, 0)
        with pytest.raises(Interrupted):
            train(recipe_of(tmp_path, motion_videos))
    with pytest.raises(ValueError, match=r"another recipe \(there, here\): seed: 0, 1: give --output=FOLDER"):
        train(recipe_of(tmp_path, motion_videos, "--seed=1"))
    videos = tmp_path / "videos"
    for source in motion_videos.glob("*/*.mp4"):
        (videos / source.parent.name).mkdir(parents=True, exist_ok=True)
        (videos / source.parent.name / f"other-{source.name}").symlink_to(source)
    monkeypatch.setattr(recipe, "MAY_CHANGE", ("output", "data.train"))
    with pytest.raises(ValueError, match="a training with other training videos: give --output=FOLDER"):
        train(recipe_of(tmp_path, videos))
    monkeypatch.setattr(Processes, "of_environment", lambda: Processes(2, 0, 2, 1))
    with pytest.raises(ValueError, match="a training by 1 processes, and this is one by 2: go on with 1, or"):
        train(recipe_of(tmp_path, motion_videos))


def test_a_trained_head_is_kept_for_its_own_classes_only(tmp_path):
    trained = sifa.create_model("sifa_tiny", num_classes=3)
    trained.labels = ["nod", "shake", "spin"]
    trained.save_pretrained(tmp_path)
    recipe = read_recipe("motion", [f"--model.pretrained={tmp_path}"])
    moved = run.make_model(recipe, ("spin", "nod", "shake"))
    assert torch.equal(moved.head.weight, trained.head.weight[[2, 0, 1]])
    assert torch.equal(moved.head.bias, trained.head.bias[[2, 0, 1]])
    other = run.make_model(recipe, ("nod", "shake", "jump"))
    assert other.labels == ["nod", "shake", "jump"]
    assert not torch.equal(other.head.weight, trained.head.weight)
    name = next(name for name, _ in trained.named_parameters() if "conv" in name)
    assert torch.equal(other.get_parameter(name), trained.get_parameter(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train=null"], "a training needs videos: give --data.train=ANNOTATIONS"),
        (["--data.held_out=0"], "give either --data.validation=ANNOTATIONS or --data.held_out=SHARE"),
        (["--batch_size=8"], "there are 4 videos to train on, fewer than one batch of 8"),
        (["--sync_batchnorm=true"], "sync_batchnorm works on GPUs only: give --sync_batchnorm=false"),
        (["--model.pretrained=imagenet"], "the backbone of sifa_tiny is none of timm's"),
        pytest.param(
            ["--device=cuda"],
            "device=cuda: torch sees no GPU here; give --device=cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_trained(motion_videos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(recipe_of(tmp_path, motion_videos, *options))


def test_videos_are_held_out_of_every_class_by_their_names(motion_videos):
    from sifa.data.annotations import read_annotations

    annotations = read_annotations(motion_videos)
    parts = hold_out(annotations, 0.3, seed=0)
    assert sorted(video.name for part in parts for video in part.videos) == sorted(
        video.name for video in annotations.videos
    )
    assert sorted(video.label for video in parts[1].videos) == [0, 1, 2]
    reordered = dataclasses.replace(annotations, videos=annotations.videos[::-1])
    assert set(hold_out(reordered, 0.3, seed=0)[1].videos) == set(parts[1].videos)
    assert {hold_out(annotations, 0.3, seed)[1].videos for seed in range(6)} != {parts[1].videos}
    alone = dataclasses.replace(annotations, videos=annotations.videos[:2][1:] + annotations.videos[2:])
    # A list may name a video twice, which makes it no second one.
    for videos in (alone.videos, 2 * alone.videos):
        with pytest.raises(ValueError, match="left-then-right has one video in .*, and none can be held out"):
            hold_out(dataclasses.replace(alone, videos=videos), 0.3, seed=0)


# --- The command line, and several processes --------------------------------------------------------------

SIFA = "import sys; from sifa.cli import main; main(sys.argv[1:])"


def test_the_command_says_what_comes_next(motion_videos, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "motion", *options_of(tmp_path / "a b", motion_videos), "--epochs=1"])
    captured = capsys.readouterr()
    folder = f"'{tmp_path}/a b'"
    assert re.search(
        rf"trained; of the held-out videos \d+\.\d % right, 100.0 % in the top five\n"
        rf"to evaluate: sifa eval {folder} '{tmp_path}/a b/held_out.txt'\n"
        rf"to export:   sifa export {folder} -o model.pt\n",
        captured.out,
    )
    assert re.fullmatch(r"epoch 1/1: loss \S+, validation loss \S+, top-1 \S+ %, top-5 \S+ %\n", captured.err)


def test_what_comes_next_can_be_done_with_these_videos(tmp_path, monkeypatch, capsys):
    def said(*options):
        with pytest.raises(SystemExit, match="0"):
            main(["train", "motion", f"--output={tmp_path}", "--data.template={:05d}.jpg", *options])
        return capsys.readouterr().out

    metrics = {"val/top1": 1.0, "val/top5": 1.0}
    result = run.Result(tmp_path, Path("val.csv"), metrics, ["a.mp4"], is_first=True)
    monkeypatch.setattr(run, "train", lambda recipe: result)
    held_out = said("--data.held_out=0.1", "--data.validation=null", "--data.root=elsewhere")
    assert "videos that could not be read: 1, among them a.mp4\n" in held_out
    evaluate = f"to evaluate: sifa eval {tmp_path} val.csv '--template={{:05d}}.jpg'"
    assert f"{evaluate}\n" in held_out
    options = ["format=kinetics", "root=a b", "validation=val.csv", "validation_split=val", "max_broken=0.2"]
    assert f"{evaluate} --format=kinetics '--root=a b' --split=val --max-broken=0.2\n" in said(
        *(f"--data.{option}" for option in options)
    )


def test_a_choice_is_no_recipe_and_a_file_no_folder(tmp_path, monkeypatch, capsys):
    for arguments, code, message in [
        (["--data.train=x"], 2, "name a recipe: "),
        (["motion", f"--output={tmp_path}/text/run"], 1, "text is a file: name another folder with --output"),
    ]:
        (tmp_path / "text").touch()
        with pytest.raises(SystemExit, match=str(code)):
            main(["train", *arguments])
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--print-config", "--epochs=3"])
    assert "\nepochs: 3\n" in capsys.readouterr().out


def test_a_signal_stops_the_command_and_it_says_how_to_go_on(motion_videos, tmp_path):
    command = [sys.executable, "-c", SIFA, "train", "motion", *options_of(tmp_path, motion_videos)]
    process = subprocess.Popen([*command, "--epochs=10000"], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("epoch 1/10000: ")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    said, on = errors.splitlines()[-2:]
    assert re.match(r"sifa: stopped by SIGTERM in epoch \d+ after step \d+; saved to .*last.ckpt", said)
    assert on.startswith("The same command goes on from there: sifa train motion --output=")
    assert checkpoint.read_checkpoint(tmp_path / "last.ckpt")["sifa"]["batches"] >= 2


def _join(meeting, rank=0, processes=1):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )


def _name_broken_videos(rank, meeting):
    with run.process_group_of_trainer():
        _join(meeting, rank, processes=2)
        assert run.of_all_processes([["a", "b"], ["b", "c"]][rank]) == ["a", "b", "c"]
    assert not torch.distributed.is_initialized()
    deadline = time.monotonic() + 10  # Linux lists a thread for a moment after it has ended
    while _threads_of_gloo():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _threads_of_gloo():
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            names.append(task.read_text())
    return [name for name in names if "gloo" in name]


def test_broken_videos_are_those_of_all_processes(tmp_path):
    assert run.of_all_processes(["a"]) == ["a"]
    torch.multiprocessing.spawn(_name_broken_videos, (str(tmp_path / "meeting"),), nprocs=2)


def test_the_process_group_is_left_unless_it_was_given(tmp_path):
    def be_interrupted():
        with run.process_group_of_trainer():
            _join(tmp_path / "own")
            raise Interrupted("stopped", signal.SIGTERM)

    with pytest.raises(Interrupted):
        be_interrupted()
    assert not torch.distributed.is_initialized()
    _join(tmp_path / "given")
    try:
        with run.process_group_of_trainer():
            pass
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_one_value_per_channel_is_explained(motion_videos, tmp_path):
    with pytest.raises(ValueError, match="one value per channel: give a larger --batch_size or"):
        train(
            recipe_of(
                tmp_path, motion_videos, "--batch_size=1", "--model.input_size=32", "--model.num_frames=4"
            )
        )


def test_two_processes_train_as_one(motion_videos, tmp_path):
    """With gloo, as torchrun starts them: as one that takes its steps in two parts, but for random draws."""
    options = ["--batch_size=4", "--optimizer.name=sgd", "--model.options={dropout: 0.0}"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the two: sums are then taken in the same parts
    train(recipe_of(tmp_path / "one", motion_videos, *options, "--accumulate=2"))
    torch.set_num_threads(threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    tell = (
        "import atexit, torch; atexit.register(lambda: print(torch.distributed.group.WORLD, file=sys.stderr))"
    )
    started = [sys.executable, *command, sys.executable, "-c", f"{tell}; {SIFA}", "train", "motion"]
    done = subprocess.run(
        [*started, *options_of(tmp_path / "two", motion_videos), *options, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("None") == 2, done.stderr  # neither ends in the process group
    assert json.loads(done.stdout)["metrics"].keys() == {"val/loss", "val/top1", "val/top5"}
    one, two = (curve(tmp_path / name) for name in ("one", "two"))
    same = [key for key in one if key[1] in ("train/learning_rate", "train/epoch_loss")]
    assert len(same) == 4
    assert [two[key] for key in same] == pytest.approx([one[key] for key in same], abs=1e-6)
    # The statistics of batch norm are those that the first process saw.
    ours, theirs = (sifa.from_pretrained(tmp_path / name) for name in ("two", "one"))
    for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)
    # Of three videos over two processes none is counted twice.
    assert [two[step, "val/top1"] * 3 % 1 for step in (0, 1)] == pytest.approx([0, 0], abs=1e-6)
