"""Makes what the fuzzers start from, of the models that the runtime is tested on: `make_corpus.py FOLDER`.

Every fuzzer has a folder: `archive` holds archives, small ones of every kind that is read, and what is none;
`metadata` the metadata of good and bad models; `uri` sources. `metadata.dict` names the fields.
"""

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import torch
from make_runtime_data import make_models, stream_model, with_metadata
from sifa.artifact import export_torchscript

# Bytes of metadata; larger inputs are mutated too slowly.
LARGEST = 1 << 14
URIS = [
    "-",
    "clip.mp4",
    "/dev/video0",
    "file://clip.mp4",
    "v4l2:///dev/video1",
    "v4l2://",
    "csi://0",
    "csi://12",
    "csi://-1",
    "csi://0!fakesink",
    "rtsp://user:word@host:8554/live",
    "http://host/a.ts",
    "https://host/a.ts",
    "udp://0.0.0.0:5000",
    "udp://@:5000",
    "tcp://host:1",
    "gst://videotestsrc",
    "ftp://host/clip.mp4",
    "://",
    "a://",
    "RTSP://host",
    "rtsp:/host",
    "rtsp:host",
]


def write_archives(folder: Path, metadata: bytes) -> None:
    """Archives that are no larger than they must be, stored, deflated and in zip64."""
    for name, method, limit in (("stored", 0, None), ("deflated", 8, None), ("zip64", 0, 0)):
        patch = mock.patch.object(zipfile, "ZIP64_LIMIT", zipfile.ZIP64_LIMIT if limit is None else limit)
        with patch, zipfile.ZipFile(folder / f"{name}.pt", "w", method) as archive:
            archive.writestr("m/extra/sifa.json", metadata)
            archive.writestr("m/data/0", bytes(8))


def metadata_of(path: Path) -> bytes | None:
    """The metadata in a model file, good or bad; None if it cannot be reached."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("/sifa.json")))
    except (zipfile.BadZipFile, StopIteration, OSError, RuntimeError, NotImplementedError):
        return None


def main(folder: Path) -> None:
    for name in ("archive", "metadata", "uri"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary)
        good = make_models(models)
        compiled_for = {"device": "cpu", "machine": "x86_64", "cpu": "AVX2"}
        with_metadata(good, models / "code.pt", format="aoti", compiled_for=compiled_for)
        export_torchscript(stream_model(), models / "stream.pt", kind="streaming")
        export_torchscript(stream_model(), models / "window.pt", kind="window")
        found = {path.name: metadata_of(path) for path in sorted(models.glob("*.pt"))}
        write_archives(folder / "archive", found["model.pt"])
        for name in ("text.pt", "empty.pt", "foreign.zip"):
            shutil.copy(models / name, folder / "archive")
    for name, metadata in found.items():
        if metadata is not None and len(metadata) <= LARGEST:
            (folder / "metadata" / name).write_bytes(metadata)
    for number, uri in enumerate(URIS):
        (folder / "uri" / str(number)).write_text(uri)
    fields = {field for name in ("code.pt", "stream.pt") for field in json.loads(found[name])}
    (folder / "metadata.dict").write_text("".join(f'"\\"{field}\\""\n' for field in sorted(fields)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
