"""Prediction for files and folders: one line of JSON per video, in a file that a later run goes on with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..data.annotations import VIDEO_SUFFIXES, Annotations, Video
from .classify import Views, classify
from .engines import Engine


def find_videos(places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The videos that files and folders stand for, each once.

    A file is taken as it is; of a folder every file below it whose name ends like a video's
    (`sifa.data.annotations.VIDEO_SUFFIXES`), sorted by path.

    Raises:
        FileNotFoundError: there is no such file or folder, or a folder holds no video.
    """
    videos: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_file():
            videos[place] = None
            continue
        if not place.is_dir():
            raise FileNotFoundError(f"there is no video or folder {place}")
        found = sorted(
            path for path in place.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        )
        if not found:
            raise FileNotFoundError(
                f"the folder {place} holds no videos: none of its files ends in {', '.join(VIDEO_SUFFIXES)}"
            )
        videos.update(dict.fromkeys(found))
    return list(videos)


def parse_shard(text: str) -> tuple[int, int]:
    """`"2/4"`: the second of four shards.

    Raises:
        ValueError: the text has another form, or there is no such shard.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard must be i/N with i from 1 to N, such as 2/4, got {text!r}")
    return int(match[1]), int(match[2])


def shard_of(videos: Sequence[Path], shard: tuple[int, int]) -> list[Path]:
    """Every N-th video, from the i-th on: the N shards together hold each video once."""
    number, count = shard
    return list(videos[number - 1 :: count])


def predict(
    engine: Engine,
    videos: Sequence[Path],
    *,
    views: Views,
    topk: int = 5,
    batch_size: int = 8,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield for each video in turn what becomes its line.

    That is its path `video`, the `model`, the `views`, and the `topk` most likely `classes`, each `label`,
    `index` and `probability`; or `error` in their place for one that cannot be read; a line in the log says
    why.

    Args:
        engine: the model.
        videos: files.
        views, batch_size, workers: see `sifa.evaluation.classify.classify`.
        topk: how many classes, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    listed = Annotations(
        tuple(Video(path, 0, str(path)) for path in videos), tuple(engine.labels), Path(engine.source)
    )
    for index, row in classify(
        *(engine, listed, range(len(videos))), views=views, batch_size=batch_size, workers=workers
    ):
        facts = {"video": str(videos[index]), **origin_of(engine, views)}
        if row is None:
            yield {**facts, "error": "it cannot be read as a video"}
            continue
        best = row.topk(min(topk, len(engine.labels)))
        yield {
            **facts,
            "classes": [
                {"label": engine.labels[place], "index": place, "probability": probability}
                for probability, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ],
        }


def origin_of(engine: Engine, views: Views) -> dict[str, str]:
    """What every line says of where it comes from: what the model was loaded from, and the views."""
    return {"model": str(Path(engine.source)), "views": str(views)}


@contextmanager
def lines_of(
    path: Path, origin: dict[str, str], resume: bool
) -> Iterator[tuple[set[str], Callable[[dict[str, Any]], None]]]:
    """Open a file of JSON lines; yields the videos that it holds already, and what appends a line.

    Every line is written as a whole as soon as it is given. What a killed run left of its last line is cut
    off, so that its video is done again.

    Args:
        path: the file.
        origin: what the lines say of it: see `origin_of`.
        resume: go on with a file that is there, instead of refusing it.

    Raises:
        FileExistsError: the file is there already, or is a folder.
        FileNotFoundError: its folder is not.
        ValueError: it is no file of predictions, or of another model or other views; the line is named.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: name a file in it")
    if path.exists() and not resume:
        raise FileExistsError(
            f"{path} is there already: go on with it with --resume, or remove it, or name another file"
        )
    done = _completed(path, origin) if path.exists() else set()
    with path.open("a", encoding="utf-8") as file:
        yield done, lambda entry: _write(file, entry)


def _write(file: TextIO, entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry) + "\n")
    file.flush()


def _completed(path: Path, origin: dict[str, str]) -> set[str]:
    """The videos of a file's whole lines; a half one at its end is cut off."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            video, found = entry["video"], {key: entry[key] for key in origin}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} is no line of `sifa predict`, so there is nothing to resume: "
                "name the file of an earlier run"
            ) from error
        for key, value in origin.items():
            if found[key] != value:
                raise ValueError(
                    f"{path}:{number} comes from {key} {found[key]}, not {value}: name another file, "
                    "so that one file holds predictions of one kind"
                )
        done.add(video)
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return done
