"""Makes the models and videos that the C++ runtime is tested on: good ones, and one for every way to be bad.

Imported by the Python tests, and run by CTest before the C++ ones: `python make_runtime_data.py FOLDER`.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import sifa
import torch
from lively import lively_model
from prefixes import on_prefixes
from sifa.artifact import compile_program, export_program, export_torchscript
from sifa.data.motion import write_video
from torch import Tensor, nn

NUM_FRAMES = 4
LABELS = ["still", "left", "right"]


class SmallModel(nn.Module):
    """The smallest classifier with the operator in it; its offsets are several pixels long."""

    name = "small"
    num_classes = len(LABELS)
    frame_stride = 2
    sampling = "center"
    input_size = (16, 16)
    crop_fraction = 1.0
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, int] = {"channels": 8}
        self.labels = list(LABELS)
        self.num_frames = NUM_FRAMES
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv_offset = nn.Conv2d(8, 18, 3, padding=1, bias=False)
        self.head = nn.Linear(8, self.num_classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.5, generator=generator)

    def forward(self, clip: Tensor) -> Tensor:
        n, c, t, h, w = clip.shape
        if t != self.num_frames:
            raise ValueError(f"clip must have {self.num_frames} frames, got {t}")
        features = torch.tanh(self.stem(clip.transpose(1, 2).reshape(n * t, c, h, w)))
        offset = self.conv_offset(features).view(n, t, -1, h, w).transpose(1, 2)
        query = features.view(n, t, -1, h, w).transpose(1, 2)
        attended = sifa.inter_frame_attention(query, query, offset)
        return self.head(attended.abs().mean((2, 3, 4)))


class GrowingModel(SmallModel):
    """Gives as many classes as it should for one clip, and one more for each further clip."""

    def forward(self, clip: Tensor) -> Tensor:
        return clip.mean((1, 2, 3, 4)).unsqueeze(1).repeat(1, 2 + clip.size(0))


def pattern(frames: int, height: int, width: int, seed: int = 0, begin: int = 0) -> np.ndarray:
    """Frames, uint8 (F, H, W, 3), of 256 that repeat: the same integers in C++ and Python."""
    t, y, x, c = np.indices((frames, height, width, 3))
    t += begin
    return ((37 * t + 5 * y + 11 * x + 83 * c + t * x + (x * y >> 2) + 101 * seed) & 255).astype(np.uint8)


def rewrite(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """Copies a zip archive; `edit(name, content)` gives an entry's new content, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = edit(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content, entry.compress_type)
    return target


def with_metadata(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a model with other metadata; `...` removes a field, `a__b` is field b of object a."""

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("/extra/sifa.json"):
            return content
        metadata = json.loads(content)
        for path, value in changes.items():
            *parents, field = path.split("__")
            where = metadata
            for parent in parents:
                where = where[parent]
            if value is ...:
                del where[field]
            else:
                where[field] = value
        return json.dumps(metadata).encode()

    return rewrite(source, target, edit)


def with_entry(source: Path, target: Path, name: str) -> Path:
    """A copy of a model with one more entry, named from the top folder on."""
    rewrite(source, target, lambda _, content: content)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{name}", "not a model's")
    return target


def with_headers(source: Path, target: Path, offset: int, value: int) -> Path:
    """A copy of a model with another number at `offset` of both headers of its metadata (APPNOTE 4.3.7)."""
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        local = next(e for e in archive.infolist() if e.filename.endswith("/extra/sifa.json")).header_offset
    directory = content.rindex(b"PK\1\2", 0, content.rindex(b"/extra/sifa.json"))
    struct.pack_into("<H", content, local + offset, value)
    struct.pack_into("<H", content, directory + offset + 2, value)
    target.write_bytes(content)
    return target


GOOD_MODELS = (
    "model.pt",
    "jit_save.pt",
    "zip64.pt",
    "integer_tolerance.pt",
    "no_cost.pt",
    "operator_older.pt",
    "growing.pt",
    "segments.pt",
)
"""What every reader accepts; all other models that `make_models` writes are refused by every reader."""


def make_models(folder: Path) -> Path:
    """Writes the good models and the bad ones; returns the plainest good one, `model.pt`."""
    good = folder / "model.pt"
    metadata = export_torchscript(SmallModel().eval(), good)
    probabilities = metadata["reference"]["probabilities"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
        extra = {"sifa.json": json.dumps(metadata, indent=1)}
        torch.jit.save(torch.jit.load(str(good)), folder / "jit_save.pt", _extra_files=extra)
    with mock.patch.object(zipfile, "ZIP64_LIMIT", 0):
        rewrite(good, folder / "zip64.pt", lambda name, data: data)
    with_metadata(good, folder / "integer_tolerance.pt", reference__tolerance=1)
    with_metadata(good, folder / "no_cost.pt", cost=...)
    with_metadata(good, folder / "cost.pt", cost__operations=-1)
    # A later operator, with one more argument that has a default, serves the models of an earlier one.
    with_metadata(
        good,
        folder / "operator_older.pt",
        operator_schema=re.sub(r", [^,]*=[^,]*\) -> ", ") -> ", metadata["operator_schema"]),
    )
    export_torchscript(GrowingModel().eval(), folder / "growing.pt")
    with_metadata(good, folder / "segments.pt", sampling="segments")
    with_metadata(good, folder / "sampling.pt", sampling="random")
    with_metadata(good, folder / "schema_version.pt", schema_version=2)
    with_metadata(good, folder / "no_schema_version.pt", schema_version=...)
    with_metadata(good, folder / "kind.pt", kind="segments")
    with_metadata(good, folder / "format.pt", format="onnx")
    with_metadata(good, folder / "no_labels.pt", labels=...)
    with_metadata(good, folder / "few_labels.pt", labels=LABELS[:2])
    # Consistent in itself, so that only running the graph shows the lie.
    with_metadata(
        good, folder / "lying_labels.pt", labels=LABELS[:2], reference__probabilities=probabilities[:2]
    )
    with_metadata(good, folder / "reference.pt", reference__probabilities=probabilities[::-1])
    # Only the graph itself refuses this one.
    with_metadata(good, folder / "frames.pt", num_frames=NUM_FRAMES + 1)
    with_metadata(good, folder / "labels_type.pt", labels=[0, 1, 2])
    with_metadata(good, folder / "empty_labels.pt", labels=[], reference__probabilities=[])
    with_metadata(good, folder / "no_model_name.pt", model__name=...)
    with_metadata(good, folder / "probabilities_type.pt", reference__probabilities=["0.1", "0.2", "0.7"])
    with_metadata(good, folder / "tolerance.pt", reference__tolerance=0)
    with_metadata(good, folder / "boolean.pt", frame_stride=True)
    with_metadata(good, folder / "nan.pt", reference__tolerance=float("nan"))
    with_headers(good, folder / "encrypted.pt", 6, 1)
    with_headers(good, folder / "method.pt", 8, 12)
    with_metadata(good, folder / "no_frames.pt", num_frames=0)
    with_metadata(good, folder / "absurd_frames.pt", num_frames=2**63)
    with_metadata(good, folder / "absurd_size.pt", input_size=[16384, 16384], num_frames=16384)
    # The reference input is higher and wider.
    with_metadata(good, folder / "absurd_shape.pt", input_size=[1, 16384], num_frames=16384)
    with_metadata(
        good, folder / "operator.pt", operator_schema="sifa::inter_frame_attention(Tensor query) -> Tensor"
    )
    metadata_entry = "/extra/sifa.json"
    rewrite(
        good, folder / "no_metadata.pt", lambda name, data: None if name.endswith(metadata_entry) else data
    )
    rewrite(
        good, folder / "not_json.pt", lambda name, data: b"[1, 2" if name.endswith(metadata_entry) else data
    )
    deep = b'{"schema_version": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    rewrite(good, folder / "deep.pt", lambda name, data: deep if name.endswith(metadata_entry) else data)
    rewrite(good, folder / "no_code.pt", lambda name, data: b"}{" if name.endswith(".py") else data)
    with_entry(good, folder / "unknown_entry.pt", "evil/lib.so")
    with_entry(good, folder / "leaves_its_folder.pt", "data/../../../outside.txt")
    with zipfile.ZipFile(folder / "foreign.zip", "w") as archive:
        archive.writestr("readme.txt", "not a model")
    (folder / "text.pt").write_text("not a model either\n")
    (folder / "empty.pt").write_bytes(b"")
    return good


def make_videos(folder: Path) -> None:
    """Writes lossless videos of `pattern`, and the bad ones."""
    frames = torch.from_numpy(pattern(11, 20, 30))
    write_video(folder / "clip.mkv", frames, lossless=True)
    write_video(folder / "clip.mp4", frames, lossless=True)
    write_video(folder / "clip.avi", frames, lossless=True)
    write_video(folder / "short.mkv", frames[:2], lossless=True)
    write_video(folder / "single.mkv", frames[:1], lossless=True)
    for degrees in (90, 180, 270):
        _rotate(folder / "clip.mp4", folder / f"rotated_{degrees}.mp4", degrees)
    avi = (folder / "clip.avi").read_bytes()
    movie = avi.index(b"movi")
    (folder / "no_frames.avi").write_bytes(avi[: movie + 4])
    # A container that claims more frames than it has: its index is cut away, and its header counts 1000.
    header = bytearray(avi[: avi.rindex(b"idx1")])
    length = header.index(b"strh") + 8 + 32
    header[length : length + 4] = struct.pack("<I", 1000)
    (folder / "lying.avi").write_bytes(header)
    (folder / "truncated.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:200])
    (folder / "text.mp4").write_text("not a video\n")
    (folder / "list.TXT").write_text("clip.mp4 0\n" * 30)  # which FFmpeg would draw


def _rotate(source: Path, target: Path, degrees: int) -> None:
    """Copies an MP4 and gives its track a matrix that turns it clockwise (ISO/IEC 14496-12, tkhd)."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    content = bytearray(source.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # behind version, times, ids, duration, layer, volume
    content[matrix : matrix + 36] = struct.pack(
        ">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30
    )
    target.write_bytes(content)


def make_data(folder: Path) -> None:
    """Writes every file, and `expected.json`: what the good model answers on three clips of `pattern`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = torch.jit.load(str(make_models(folder)))
    make_videos(folder)
    clips = np.stack([pattern(NUM_FRAMES, 23, 31, seed) for seed in range(3)])
    (folder / "expected.json").write_text(json.dumps(model(torch.from_numpy(clips)).tolist()))


def make_engines(folder: Path) -> None:
    """Writes the good model as an AOTInductor package too (`model.pt2`), and as the program it is made of."""
    export_program(SmallModel().eval(), folder / "model.exported.pt2")
    compile_program(folder / "model.exported.pt2", folder / "model.pt2")
    with_metadata(
        folder / "model.pt2",
        folder / "machine.pt2",
        compiled_for={"device": "cpu", "machine": "vax", "cpu": "DEFAULT"},
    )
    with_metadata(folder / "model.pt2", folder / "reference.pt2", reference__probabilities=[0.5, 0.5, 0.0])
    # Machine code looks at no shape: with these it would read beyond what it is given.
    with_metadata(folder / "model.pt2", folder / "inputs.pt2", num_frames=1, input_size=[4096, 4096])
    with_metadata(folder / "model.pt2", folder / "more_inputs.pt2", num_frames=64)
    code = "data/aotinductor/model"
    with_entry(folder / "model.pt2", folder / "second_library.pt2", f"{code}/a.so")
    with_entry(folder / "model.pt2", folder / "leaves_its_folder.pt2", f"{code}/../../../../outside.txt")
    rewrite(
        folder / "model.pt2", folder / "no_code.pt2", lambda name, data: data if "extra/" in name else b"}{"
    )


def make_streams(folder: Path) -> None:
    """Writes a causal model as a stream, for both engines, and `stream.json`: what its steps have to equal.

    `prefixes` holds what the clip model answers on every prefix of some frames of `pattern`; `late`, by step,
    what it answers on the clip that ends with that step and starts one window plus the number of SIFA layers
    earlier.
    """
    model = stream_model()
    export_torchscript(model, folder / "stream.pt", kind="streaming")
    export_program(model, folder / "stream.exported.pt2", kind="streaming")
    compile_program(folder / "stream.exported.pt2", folder / "stream.pt2")
    stride = model.temporal_stride
    reach = model.num_steps + sum(isinstance(module, sifa.SIFA) for module in model.modules())
    late = {
        step: on_prefixes(model, stream_frames(reach * stride, (step + 1 - reach) * stride))[-1, 0].tolist()
        for step in (100, 5000, 9998, 9999)
    }
    prefixes = on_prefixes(model, stream_frames(8 * stride))[:, 0].tolist()
    (folder / "stream.json").write_text(json.dumps({"prefixes": prefixes, "late": late}))


def make_windows(folder: Path) -> None:
    """Writes a model that looks both ways as a clip's, and as a window's for both engines.

    After `make_streams`: a window that says it is a stream, and the other way round, are written too.
    """
    model = lively_model(num_classes=3, num_frames=12, input_size=32)
    export_torchscript(model, folder / "clip.pt")
    export_torchscript(model, folder / "window.pt", kind="window")
    export_program(model, folder / "window.exported.pt2", kind="window")
    compile_program(folder / "window.exported.pt2", folder / "window.pt2")
    with_metadata(folder / "window.pt", folder / "window_as_stream.pt", kind="streaming")
    with_metadata(folder / "stream.pt", folder / "stream_as_window.pt", kind="window")


def stream_model() -> torch.nn.Module:
    """A causal `sifa_tiny`, small, with large offsets."""
    return lively_model(num_classes=3, num_frames=12, input_size=32, streaming=True)


def stream_frames(count: int, begin: int = 0) -> Tensor:
    """Frames of `pattern`, from frame `begin` of an endless video on: uint8 (1, count, 40, 48, 3)."""
    return torch.from_numpy(pattern(count, 40, 48, begin=begin)).unsqueeze(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_data(Path(sys.argv[1]))
    make_engines(Path(sys.argv[1]))
    make_streams(Path(sys.argv[1]))
    make_windows(Path(sys.argv[1]))
