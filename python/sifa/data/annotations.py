"""Which videos there are and what each of them shows: lists, tables and folder trees as data sets come.

Every format has one small reader below; :func:`read_annotations` finds out which one a path is.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

VIDEO_SUFFIXES = (
    ".mp4",
    ".webm",
    ".mkv",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".wmv",
    ".lmdb",
)
"""What a video in a folder tree is known by, if it is no folder itself."""

_PROBES = 64  # videos whose place is looked at before the first batch

# Above any sensible number; a larger index is a typing error, for which no names are made.
_MAX_CLASSES = 100_000


class AnnotationError(ValueError):
    """An annotation file or its data cannot be used; the message says what, where and the way out."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One video and its class.

    Attributes:
        path: a video file, a folder of frames, or an LMDB environment.
        label: index of its class.
        name: what the annotations call it; stands for it in messages and results.
        num_frames: its length as the annotations state it, None if they do not.
    """

    path: Path
    label: int
    name: str
    num_frames: int | None = None


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What :func:`read_annotations` returns.

    Attributes:
        videos: in the order of the file.
        labels: names of the classes; a video's ``label`` is an index of it.
        source: the file or folder they come from, for messages.
    """

    videos: tuple[Video, ...]
    labels: tuple[str, ...]
    source: Path


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One video as a file states it: its class by index or by name."""

    path: str
    label: int | str
    where: str
    num_frames: int | None = None
    name: str | None = None


def read_annotations(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    root: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Annotations:
    """Read which videos there are and what each of them shows.

    Args:
        path: the annotation file, or the folder of a class-per-folder tree.
        format: ``"videos"``: lines `path label`;
            ``"frames"``: lines `folder frames label`, the folder (or LMDB environment) holding single frames;
            ``"kinetics"``: CSV with the columns label, youtube_id, time_start, time_end and mostly split;
            ``"something"``: the JSON of Something-Something, a list of objects with `id` and `template`;
            ``"folders"``: a tree `class/video`, or `split/class/video` with ``split``;
            ``"auto"``: found out from the path and its lines. Lines that all end in two numbers are
            `folder frames label`, unless more of the videos are there with the first number in their name:
            `take 12 0` is a video of 12 frames where there is a `take`, and the video `take 12` where there
            is that.
        root: the folder that relative paths start from; by default the annotation file's own.
        labels: the names of the classes in the order of their indices, or a file of them: one per line, or
            the JSON of Something-Something. By default what the format says: the file beside it named
            `*labels.json` (something), all names that occur, sorted (kinetics, folders), or `class_0`,
            `class_1`, … up to the highest index (videos, frames). Read a validation set with the labels of
            its training set, so that both mean the same.
        split: keep only the rows of this split (kinetics), or read this subfolder (folders).

    Raises:
        FileNotFoundError: there is no such file or folder, or none of the videos is where it should be.
        AnnotationError: the file is not of the format, a label is out of range or unknown, or there are no
            videos; the line is named. Or a folder of a tree that gives the classes holds no videos.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no annotation file {source}")
    if format not in ("auto", *_READERS):
        raise ValueError(f"format must be auto, {', '.join(_READERS)}, got {format!r}")
    folder = _root_of(source, root)
    chosen = _format_of(source, folder) if format == "auto" else format
    if (chosen == "folders") != source.is_dir():
        kind = "a folder" if source.is_dir() else "a file"
        raise AnnotationError(f"{source} is {kind}, which format={chosen!r} does not read")
    if split is not None and chosen not in ("kinetics", "folders"):
        raise AnnotationError(f"{source}: format {chosen!r} has no splits, got split={split!r}")
    names = _read_labels(labels)
    if names is None and chosen == "something":
        names = _read_labels(_labels_beside(source))
    entries = list(_READERS[chosen](source, folder, split))
    if not entries:
        wanted = f" of split {split!r}" if split is not None else ""
        inside = chosen == "folders" and split is None and any(entry.is_file() for entry in source.iterdir())
        hint = "; its files lie in it themselves: put them into a folder for each class" if inside else ""
        raise AnnotationError(f"{source} names no videos{wanted} (read as format {chosen!r}){hint}")
    if names is None:
        if chosen == "folders":
            _check_none_empty(_class_folders(source, split), entries)
        names = _names_in(entries)
    index = {name: i for i, name in enumerate(names)}
    videos = tuple(
        Video(folder / entry.path, _label_of(entry, index), entry.name or entry.path, entry.num_frames)
        for entry in entries
    )
    _check_places(source, folder, videos)
    return Annotations(videos, names, source)


def read_video_list(source: Path, root: Path, split: str | None = None) -> Iterable[_Entry]:
    """Lines `path label`; a path may contain spaces."""
    for where, line in _lines(source):
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise AnnotationError(f"{where} must be `path label`, got {_shown(line)}")
        yield _Entry(parts[0], _integer(parts[1], where, "label"), where)


def read_frame_list(source: Path, root: Path, split: str | None = None) -> Iterable[_Entry]:
    """Lines `folder frames label`; a folder may contain spaces."""
    for where, line in _lines(source):
        parts = line.rsplit(maxsplit=2)
        if len(parts) != 3:
            raise AnnotationError(f"{where} must be `folder frames label`, got {_shown(line)}")
        frames = _integer(parts[1], where, "frames")
        if frames < 1:
            raise AnnotationError(f"{where}: frames must be at least 1, got {frames}")
        yield _Entry(parts[0], _integer(parts[2], where, "label"), where, num_frames=frames)


def read_kinetics(source: Path, root: Path, split: str | None = None) -> Iterable[_Entry]:
    """The CSV of Kinetics; files are `<id>_<start>_<end>.mp4`, maybe in folders of their class or split."""
    try:
        rows = list(csv.DictReader(io.StringIO(_text(source))))
    except csv.Error as error:
        raise AnnotationError(f"{source} is not a Kinetics CSV: {error}") from error
    columns = ("label", "youtube_id", "time_start", "time_end")
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise AnnotationError(f"{source} is not a Kinetics CSV: it has no column {', '.join(missing)}")
    entries = []
    for number, row in enumerate(rows, 2):
        if split is not None and row.get("split") != split:
            continue
        where = f"{source}:{number}"
        if not row["label"]:
            raise AnnotationError(
                f"{where} has no label; a split without labels can be neither learned nor tested"
            )
        start, end = (_seconds(row[name], where, name) for name in ("time_start", "time_end"))
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        folders = ["", row["label"], row["label"].replace(" ", "_")]
        folders += [os.path.join(row["split"], folder) for folder in folders] if row.get("split") else []
        entries.append((where, row["label"], name, [os.path.join(folder, name) for folder in folders]))
    suffixes = (".mp4", ".mkv", ".webm", "")
    place = _layout(root, [paths for *_, paths in entries], suffixes)
    chosen = [paths[min(place, len(paths) - 1)] for *_, paths in entries]
    for (where, label, name, _), path in zip(entries, _with_suffixes(root, chosen, suffixes), strict=True):
        yield _Entry(path, label, where, name=name)


def read_something(source: Path, root: Path, split: str | None = None) -> Iterable[_Entry]:
    """The JSON of Something-Something V1 and V2; videos are `<id>.webm`, or folders `<id>` of frames."""
    rows = _read_json(source)
    if not isinstance(rows, list):
        raise AnnotationError(f"{source} must be a list of objects with id and template")
    entries = []
    for number, row in enumerate(rows):
        where = f"{source}, entry {number}"
        # By the type itself: true is an int, too.
        if not isinstance(row, dict) or not all(
            type(row.get(key)) in (str, int) for key in ("id", "template")
        ):
            raise AnnotationError(
                f"{where} must be an object with id and template, got {_shown(json.dumps(row))}"
            )
        # The label file writes the template without the brackets around what is to be filled in.
        entries.append((where, str(row["id"]), re.sub(r"[\[\]]", "", str(row["template"]))))
    paths = _with_suffixes(root, [name for _, name, _ in entries], (".webm", ".mp4", ""))
    for (where, name, template), path in zip(entries, paths, strict=True):
        yield _Entry(path, template, where, name=name)


def read_folders(source: Path, root: Path, split: str | None = None) -> Iterable[_Entry]:
    """A tree `class/video`: a class's folder holds video files, folders of frames or LMDB environments.

    What systems leave between them, whose names begin with a dot or `__MACOSX`, is neither.
    """
    for folder in _class_folders(source, split):
        for video in _shown_in(folder):
            if video.is_dir() or video.suffix.lower() in VIDEO_SUFFIXES:
                yield _Entry(str(video.relative_to(source)), folder.name, str(video))


_READERS = {
    "videos": read_video_list,
    "frames": read_frame_list,
    "kinetics": read_kinetics,
    "something": read_something,
    "folders": read_folders,
}


def _format_of(source: Path, root: Path) -> str:
    """The format of a path, by its kind, its extension, the form of its lines and what is there."""
    if source.is_dir():
        return "folders"
    if source.suffix.lower() == ".json":
        return "something"
    lines = [line for _, line in _lines(source)]
    if not lines:
        raise AnnotationError(f"{source} is empty: it names no videos")
    if source.suffix.lower() == ".csv" and "youtube_id" in lines[0]:
        return "kinetics"
    if not all(re.fullmatch(r".*\S\s+\d+\s+-?\d+", line) for line in lines):
        return "videos"
    there = [
        sum((root / line.rsplit(maxsplit=numbers)[0]).exists() for line in _spread(lines))
        for numbers in (1, 2)
    ]
    return "videos" if there[0] > there[1] else "frames"


def _root_of(source: Path, root: str | os.PathLike[str] | None) -> Path:
    """The folder that relative paths start from, which must be there and readable."""
    if root is None:
        return source if source.is_dir() else source.parent
    folder = Path(root)
    if source.is_dir() and folder != source:
        raise AnnotationError(f"{source} is a folder tree, whose videos lie in it: leave root={folder} out")
    _listed(folder)
    return folder


def _listed(folder: Path) -> list[Path]:
    """What is in a folder. Raises FileNotFoundError or PermissionError in one sentence."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no folder {folder}") from error
    except OSError as error:
        raise PermissionError(f"the folder {folder} cannot be read: {error.strerror}") from error


def _shown_in(folder: Path) -> list[Path]:
    """What people put in a folder, sorted: nothing that is hidden, or that macOS adds to an archive."""
    return sorted(path for path in _listed(folder) if not path.name.startswith((".", "__MACOSX")))


def _class_folders(source: Path, split: str | None) -> list[Path]:
    """The folders of a tree that are classes."""
    top = source if split is None else source / split
    if not top.is_dir():
        raise FileNotFoundError(f"there is no folder {top}")
    folders = [path for path in _shown_in(top) if path.is_dir()]
    if split is None and {path.name for path in folders} & {"train", "val", "validation", "test"}:
        names = ", ".join(path.name for path in folders)
        raise AnnotationError(f"{top} holds splits, not classes: say which with split=, one of {names}")
    return folders


def _check_none_empty(folders: Sequence[Path], entries: Sequence[_Entry]) -> None:
    """Refuse a tree that gives the classes and has one without videos: leaving it out renumbers the rest."""
    with_videos = {entry.label for entry in entries}
    empty = [str(folder) for folder in folders if folder.name not in with_videos]
    if empty:
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise AnnotationError(
            f"no videos ({kinds}, or folders of images) in {', '.join(empty)}: a class needs some; put them "
            "there, or move the folder away"
        )


def _text(source: Path) -> str:
    """A text file, with or without a byte-order mark."""
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{source} is not an annotation file: it is no text in UTF-8") from error


def _lines(source: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place for messages."""
    lines = enumerate(_text(source).splitlines(), 1)
    return [(f"{source}:{number}", line.strip()) for number, line in lines if line.strip()]


def _read_json(source: Path) -> object:
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{source} is not JSON: {error}") from error


def _read_labels(labels: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """Names of classes as they are given: in order, or a file of lines or JSON (name to index, or a list)."""
    if labels is None:
        return None
    if isinstance(labels, str | os.PathLike):
        file = Path(labels)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file of labels {file}")
        if file.suffix.lower() != ".json":
            names = [line for _, line in _lines(file)]
        else:
            content = _read_json(file)
            if isinstance(content, dict):
                order = {
                    name: _integer(str(index), f"{file}: {name}", "index") for name, index in content.items()
                }
                if sorted(order.values()) != list(range(len(order))):
                    raise AnnotationError(
                        f"{file} must give its {len(order)} labels the indices 0 to {len(order) - 1}"
                    )
                names = sorted(order, key=order.__getitem__)
            elif isinstance(content, list) and all(isinstance(name, str) for name in content):
                names = content
            else:
                raise AnnotationError(f"{file} must be an object of label to index, or a list of labels")
    else:
        names = list(labels)
    if not names:
        raise AnnotationError(f"there are no labels in {labels}")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise AnnotationError(f"the label {twice[0]!r} occurs twice")
    return tuple(names)


def _labels_beside(source: Path) -> Path:
    """The file of labels that belongs to a JSON of Something-Something."""
    found = sorted(path for path in source.parent.glob("*labels.json") if path != source)
    if len(found) != 1:
        count = "no file" if not found else f"{len(found)} files"
        raise AnnotationError(f"beside {source} there is {count} *labels.json: give labels=, its label file")
    return found[0]


def _names_in(entries: Sequence[_Entry]) -> tuple[str, ...]:
    """The names of the classes where nothing else gives them."""
    indices = [entry.label for entry in entries if isinstance(entry.label, int)]
    for entry in entries:
        if isinstance(entry.label, int) and not 0 <= entry.label < _MAX_CLASSES:
            raise AnnotationError(
                f"{entry.where}: label must be 0 to {_MAX_CLASSES - 1}, the index of a class, "
                f"got {entry.label}"
            )
    if indices:
        return tuple(f"class_{i}" for i in range(max(indices) + 1))
    return tuple(sorted({str(entry.label) for entry in entries}))


def _label_of(entry: _Entry, index: dict[str, int]) -> int:
    if isinstance(entry.label, int):
        if not 0 <= entry.label < len(index):
            raise AnnotationError(
                f"{entry.where}: label must be 0 to {len(index) - 1}, an index of the {len(index)} classes, "
                f"got {entry.label}"
            )
        return entry.label
    if entry.label not in index:
        raise AnnotationError(f"{entry.where}: {entry.label!r} is none of the {len(index)} labels")
    return index[entry.label]


def _layout(root: Path, paths: Sequence[Sequence[str]], suffixes: Sequence[str]) -> int:
    """How a data set is laid out, by its first video that is there: which of its paths is the right one."""
    for candidates in _spread(paths):
        for place, path in enumerate(candidates):
            if any((root / (path + suffix)).exists() for suffix in suffixes):
                return place
    return 0


def _with_suffixes(root: Path, paths: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Each path with the suffix that it has there, which may differ; with the first where it has none."""
    names: dict[str, set[str]] = {}  # of each folder, listed once: data sets lie on slow file systems
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names:
            try:
                names[folder] = set(os.listdir(root / folder))
            except OSError:  # its videos are broken ones
                names[folder] = set()
        found.append(path + next((s for s in suffixes if name + s in names[folder]), suffixes[0]))
    return found


def _check_places(source: Path, root: Path, videos: Sequence[Video]) -> None:
    """Refuse annotations of which not one video is where it should be: their root is wrong."""
    if not any(video.path.exists() for video in _spread(videos)):
        raise FileNotFoundError(
            f"none of the videos of {source} is there, the first would be {videos[0].path}: "
            f"give the folder that its paths start from as root= (now {root})"
        )


def _spread(items: Sequence) -> Sequence:
    """At most `_PROBES` of the items, spread over all of them."""
    return items[:: max(1, len(items) // _PROBES)]


def _integer(text: str, where: str, what: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise AnnotationError(f"{where}: {what} must be an integer, got {_shown(text)}")
    return int(text)


def _seconds(text: str, where: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", text or ""):
        raise AnnotationError(f"{where}: {what} must be a number of seconds, got {_shown(text or '')}")
    return int(float(text))


def _shown(text: str) -> str:
    """A piece of a file in a message: quoted, and not too long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
