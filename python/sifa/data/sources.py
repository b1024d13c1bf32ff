"""Where the frames of a video are: a video file, a folder of images, or an LMDB environment of them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .video import VideoError, VideoFile

_LMDB_KEY = "{:06d}.jpg"  # as the authors of the paper stored their frames, from 1 on
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Source(Protocol):
    """A video whose frames can be read in any order.

    Attributes:
        num_frames: how many there are, at least 1.
        fps: frames per second, None where nothing says so.
    """

    num_frames: int
    fps: float | None

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames of these indices, uint8 `(len(indices), H, W, 3)` RGB.

        Raises:
            VideoError: they cannot be decoded, or differ in size.
        """


def open_source(
    path: str | os.PathLike[str], *, num_frames: int | None = None, template: str | None = None
) -> Source:
    """Open a video, whatever it is stored as.

    A folder with a `data.mdb` in it, or a file whose name ends in `.lmdb`, is an LMDB environment, with the
    JPEG images of the frames under the keys `000001.jpg`, `000002.jpg`, …. Any other folder holds an image
    per frame, any other file is a video.

    Args:
        path: the file or folder.
        num_frames: how many frames of a folder or environment to use, if they have been counted before; all
            by default. For a video file nothing is taken on trust.
        template: the name of a folder's images by their number from 1, such as `"{:05d}.jpg"` or
            `"img_{:05d}.jpg"`; by default the folder is listed and its images are taken in the order of the
            numbers in their names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        VideoError: it is not a video, or has no frames.
        ValueError: the template has no place for a number.
        ImportError: what the kind of video needs is not installed.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return _Environment(path, num_frames)
        return _Folder(path, num_frames, template)
    if path.suffix == ".lmdb" and path.is_file():
        return _Environment(path, num_frames)
    return VideoFile(path)


class _Folder:
    """Images in a folder, one per frame."""

    fps: float | None = None

    def __init__(self, path: Path, num_frames: int | None, template: str | None) -> None:
        self._path = path
        self._name: Callable[[int], str]
        if template is not None:
            numbered = check_template(template)
            found = num_frames if num_frames is not None else _count(path, numbered)
            self._name = lambda index: numbered.format(index + 1)
        else:
            names = _numbered_images(path)
            found = len(names)
            self._name = names.__getitem__
        if found == 0:
            looked_for = "no images" if template is None else f"no image {self._name(0)}"
            raise VideoError(f"the folder {path} holds {looked_for}")
        self.num_frames = _stated(path, num_frames, found)

    def read(self, indices: Sequence[int]) -> Tensor:
        return _decode_images(
            self._path, indices, lambda index: (self._path / self._name(index)).read_bytes(), self._name
        )


class _Environment:
    """An LMDB environment of JPEG images. Opened for each read: workers may be forked, an environment not."""

    fps: float | None = None

    def __init__(self, path: Path, num_frames: int | None) -> None:
        self._path = path
        with self._opened() as (found, transaction):
            if found == 0 or transaction.get(_LMDB_KEY.format(1).encode()) is None:
                raise VideoError(
                    f"the LMDB environment {path} holds no frames: it has {found} entries, "
                    f"none of them {_LMDB_KEY.format(1)}"
                )
        self.num_frames = _stated(path, num_frames, found)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, Any]]:
        """The number of entries, and a transaction to read by.

        Raises:
            VideoError: it is no environment, or a damaged one, whenever that shows.
        """
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise ImportError(f"reading {self._path} needs lmdb: pip install lmdb") from error
        folder = self._path.is_dir()
        try:
            with lmdb.open(
                str(self._path), subdir=folder, readonly=True, lock=False, readahead=False
            ) as environment:
                # It is mapped into memory, where reading behind the end of the file kills the process.
                needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
                size = (self._path / "data.mdb" if folder else self._path).stat().st_size
                if size < needed:
                    raise VideoError(f"{self._path} is truncated: it has {size} bytes of {needed}")
                with environment.begin() as transaction:
                    yield environment.stat()["entries"], transaction
        except lmdb.Error as error:
            raise VideoError(f"{self._path} is not an LMDB environment that can be read: {error}") from error

    def read(self, indices: Sequence[int]) -> Tensor:
        def key(index: int) -> str:
            return _LMDB_KEY.format(index + 1)

        def content(index: int) -> bytes:
            image = transaction.get(key(index).encode())
            if image is None:
                raise FileNotFoundError("it is not there")
            return image

        with self._opened() as (_, transaction):
            return _decode_images(self._path, indices, content, key)


def check_template(template: str) -> str:
    """The template of a folder's images. Raises ValueError unless it gives every number its own name."""
    try:
        valid = template.format(1) != template.format(2)
    except (IndexError, KeyError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f'template must name the images by number, such as "{{:05d}}.jpg", got {template!r}')
    return template


def _count(path: Path, template: str) -> int:
    """How many images a folder holds, counted from 1 up to the first that is missing."""
    names = {entry.name for entry in os.scandir(path)}
    number = 1
    while template.format(number) in names:
        number += 1
    return number - 1


def _numbered_images(path: Path) -> list[str]:
    """The images of a folder by the numbers in their names, and by their names where those are the same."""
    names = [
        entry.name
        for entry in os.scandir(path)
        if entry.name.lower().endswith(_IMAGES) and not entry.name.startswith(".")
    ]
    return sorted(names, key=lambda name: ([int(part) for part in re.findall(r"\d+", name)], name))


def _stated(path: Path, stated: int | None, found: int) -> int:
    """How many frames to use of those found."""
    if stated is not None and stated > found:
        raise VideoError(f"{path} has {found} frames, its annotation says {stated}")
    return found if stated is None else stated


def _decode_images(
    path: Path, indices: Sequence[int], content: Callable[[int], bytes], name: Callable[[int], str]
) -> Tensor:
    """The images of these indices, each decoded once, uint8 `(len(indices), H, W, 3)`."""
    frames: dict[int, np.ndarray] = {}
    for index in indices:
        if index in frames:
            continue
        try:
            with Image.open(io.BytesIO(content(index))) as image:
                frames[index] = np.asarray(image.convert("RGB"))
        except UnidentifiedImageError as error:
            raise VideoError(f"cannot read frame {name(index)} of {path}: it is no image") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise VideoError(f"cannot read frame {name(index)} of {path}: {reason}") from error
        first = frames[indices[0]].shape
        if frames[index].shape != first:
            height, width = frames[index].shape[:2]
            raise VideoError(
                f"the frames of {path} differ in size: {name(indices[0])} has {first[0]} x {first[1]} "
                f"pixels, {name(index)} {height} x {width}"
            )
    return torch.from_numpy(np.stack([frames[index] for index in indices]))
