"""Clips of the hard motion task, rendered by many processes into one file that every training maps."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from processes import start_process
from sifa.data import hard_motion

# Seeds of the scenes: those of training and of evaluation never meet.
_FIRST_SEED = {"training": 0, "held-out": 1_000_000}


def make_clips(folder: Path, size: int, training: int, held_out: int, workers: int) -> None:
    """Render what is not there: `training` and `held_out` scenes, each under both labels of one pair."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scenes in (("training", training), ("held-out", held_out)):
        path = _path(folder, name, size, scenes)
        if not path.exists():
            _render(path, name, _jobs(name, scenes), size, workers)


def read_clips(folder: Path, name: str, size: int, scenes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (2 * scenes, 16, size, size, 3) and their labels; the clips of a scene lie side by side."""
    clips = np.load(_path(folder, name, size, scenes), mmap_mode="r+")
    return torch.from_numpy(clips), torch.tensor([label for _, label in _jobs(name, scenes)])


def kinds(name: str, scenes: int) -> list[str]:
    """The kind of the scene of each of those clips."""
    return [hard_motion.scene_kind(seed) for seed, _ in _jobs(name, scenes)]


def _path(folder: Path, name: str, size: int, scenes: int) -> Path:
    return folder / f"{name}-v{hard_motion.VERSION}-{size}px-{scenes}.npy"


def _jobs(name: str, scenes: int) -> list[tuple[int, int]]:
    """(seed, label) of each clip: every kind of scene under the labels of a pair, then of the next."""
    pairs, kinds = len(hard_motion.LABELS) // 2, len(hard_motion.KINDS)
    return [
        (_FIRST_SEED[name] + i, 2 * (i // kinds % pairs) + order) for i in range(scenes) for order in (0, 1)
    ]


def _render_job(size: int, job: tuple[int, int]) -> np.ndarray:
    seed, label = job
    return hard_motion.render_clip(label, seed, size).numpy()


def _render(path: Path, name: str, jobs: list[tuple[int, int]], size: int, workers: int) -> None:
    unfinished = path.with_suffix(".part")
    shape = (len(jobs), hard_motion.PERIOD, size, size, 3)
    clips = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_process) as pool:
        for i, clip in enumerate(pool.map(functools.partial(_render_job, size), jobs, chunksize=32)):
            clips[i] = clip
            if sys.stderr.isatty() and i % 100 == 99:
                print(f"\rrendering {name}: {i + 1}/{len(jobs)}", end="", file=sys.stderr, flush=True)
    clips.flush()
    unfinished.rename(path)
