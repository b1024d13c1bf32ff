"""The bundled motion task as video files and lists of them, as any training reads them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from .motion import LABELS, render_video, write_video

# Seeds of scenes: those of training and of evaluation never meet.
TRAINING_SEED = 0
HELD_OUT_SEED = 1_000_000


def render_task(
    folder: str | os.PathLike[str],
    pairs: int,
    scenes: int,
    workers: int = 2,
    progress: Callable[[int, int], object] = lambda done, total: None,
    size: int = 112,
) -> None:
    """Render the videos that are not there yet, and write `train.txt`, `val.txt` and `labels.txt`.

    Args:
        folder: where they go, the videos in `train/` and `val/`.
        pairs: scenes to train on, each under both labels of one pair of motions, the pairs in turn.
        scenes: scenes to validate on, each under all ten labels.
        workers: processes that render.
        progress: called with how many videos are done, and of how many.
        size: height and width of a video in pixels.
    """
    folder = Path(folder)
    lists = {
        "train": [
            (TRAINING_SEED + i, label) for i in range(pairs) for label in (2 * (i % 5), 2 * (i % 5) + 1)
        ],
        "val": [(HELD_OUT_SEED + i, label) for i in range(scenes) for label in range(len(LABELS))],
    }
    jobs = [
        (str(folder / split / f"{seed}-{label}.mp4"), seed, label, size)
        for split, clips in lists.items()
        for seed, label in clips
    ]
    for split in lists:
        (folder / split).mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done, _ in enumerate(pool.map(_render, jobs, chunksize=4), 1):
            progress(done, len(jobs))
    for split, clips in lists.items():
        lines = [f"{split}/{seed}-{label}.mp4 {label}\n" for seed, label in clips]
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))


def _render(job: tuple[str, int, int, int]) -> None:
    path, seed, label, size = job
    if os.path.exists(path):
        return
    unfinished = f"{path}.part.mp4"
    write_video(unfinished, render_video(label, seed, size))
    os.replace(unfinished, path)
