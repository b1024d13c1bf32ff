"""Clips of the motion task as a network sees them: rendered, encoded, decoded, sampled; cached on disk.

The cache knows nothing of the generator: after a change to it, remove build/motion.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pathlib
import sys
import tempfile

import numpy as np
import torch
from sifa.data import motion
from sifa.data.video import read_frames

CACHE = pathlib.Path(__file__).resolve().parents[2] / "build" / "motion"
SIZE = 112
# Seeds of scenes: those of training and of evaluation never meet.
TRAINING_SEED = 0
HELD_OUT_SEED = 1_000_000


def training_clips(pairs: int, workers: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """``pairs`` scenes, each under both labels of one pair of motions, the pairs in turn: 2 * pairs clips."""
    jobs = [(TRAINING_SEED + i, label) for i in range(pairs) for label in (2 * (i % 5), 2 * (i % 5) + 1)]
    return _cached(f"train-{pairs}", jobs, workers)


def held_out_clips(scenes: int, workers: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """``scenes`` scenes, each under all ten labels: 10 * scenes clips."""
    jobs = [(HELD_OUT_SEED + i, label) for i in range(scenes) for label in range(len(motion.LABELS))]
    return _cached(f"held-out-{scenes}", jobs, workers)


def through_codec(job: tuple[int, int]) -> np.ndarray:
    """The frames (16, 112, 112, 3) that the centre rule samples from the video of (scene seed, label)."""
    seed, label = job
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "video.mp4"
        motion.write_video(path, motion.render_video(label, seed, size=SIZE))
        return read_frames(path, motion.PERIOD)[0].numpy()


def _cached(name: str, jobs: list[tuple[int, int]], workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    path = CACHE / f"{name}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        shape = (len(jobs), motion.PERIOD, SIZE, SIZE, 3)
        clips = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for i, clip in enumerate(pool.map(through_codec, jobs, chunksize=16)):
                clips[i] = clip
                if sys.stderr.isatty() and i % 50 == 49:
                    print(f"\rrendering {name}: {i + 1}/{len(jobs)}", end="", file=sys.stderr, flush=True)
        clips.flush()
        unfinished.rename(path)
    clips = np.load(path, mmap_mode="r+")
    return torch.from_numpy(clips), torch.tensor([label for _, label in jobs])
