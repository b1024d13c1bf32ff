"""Frames out of whatever a video is stored as: video files, folders of images, LMDB environments."""

import io
import os
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from sifa.data import video
from sifa.data.motion import write_video
from sifa.data.sources import open_source
from sifa.data.video import VideoError, VideoFile


def colour(index):
    return (8 * index, 255 - 8 * index, 40)


def image(index, size=(10, 14), kind="PNG", mode="RGB"):
    """The bytes of an image, of one colour that tells its number."""
    picture = Image.new("RGB", size[::-1], colour(index))
    picture = picture.quantize() if mode == "P" else picture.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, quality=100)
    return stream.getvalue()


def numbers(frames):
    """What `colour` was given for each frame, give or take what JPEG does to it."""
    return [round((red + 255 - green) / 16) for red, green, _ in frames[:, 5, 7].tolist()]


@pytest.fixture
def folder(tmp_path):
    """Writes images 1 to `count` of a folder under the names of a template."""

    def write(count, template="{:05d}.png", **settings):
        for number in range(1, count + 1):
            (tmp_path / template.format(number)).write_bytes(image(number, **settings))
        return tmp_path

    return write


@pytest.fixture
def environment(tmp_path):
    """Writes an LMDB environment as the authors of the paper stored a video."""

    def write(images, subdir=True):
        path = tmp_path / ("video" if subdir else "video.lmdb")
        with (
            lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as env,
            env.begin(write=True) as transaction,
        ):
            for key, content in images.items():
                transaction.put(key.encode(), content)
        return path

    return write


def test_video_file(tmp_path):
    colours = torch.tensor([colour(i) for i in range(30)], dtype=torch.uint8)
    path = tmp_path / "video.mp4"
    write_video(path, colours.view(-1, 1, 1, 3).expand(-1, 18, 34, 3), frame_rate=12.5, lossless=True)
    source = open_source(path, num_frames=7)  # what an annotation says of a file is not needed
    assert isinstance(source, VideoFile)
    assert (source.num_frames, source.fps) == (30, 12.5)
    frames = source.read([29, 3, 3, 17])  # in any order
    assert frames.shape == (4, 18, 34, 3)
    assert numbers(frames) == [29, 3, 3, 17]


@pytest.mark.parametrize("template", ["{:05d}.jpg", "img_{:03d}.png", "frame7-{}.png"])
def test_folder_of_images(folder, template):
    root = folder(12, template, kind="JPEG" if template.endswith("jpg") else "PNG")
    (root / "notes.txt").touch()
    for given in (template, None):
        source = open_source(root, template=given)
        assert (source.num_frames, source.fps) == (12, None)
        frames = source.read([0, 11, 4, 4])
        assert frames.dtype == torch.uint8
        assert frames.shape == (4, 10, 14, 3)
        assert numbers(frames) == [1, 12, 5, 5]


def test_images_without_numbers_come_by_name_and_hidden_ones_do_not_come(tmp_path):
    for index, name in [(4, "d"), (2, "b"), (1, "a"), (3, "c"), (9, "._a")]:
        (tmp_path / f"{name}.png").write_bytes(image(index))
    source = open_source(tmp_path)
    assert source.num_frames == 4
    assert numbers(source.read(range(4))) == [1, 2, 3, 4]


def test_the_stated_length_of_a_folder_counts(folder):
    assert open_source(folder(6), num_frames=4).num_frames == 4
    with pytest.raises(VideoError, match="has 6 frames, its annotation says 7"):
        open_source(folder(6), num_frames=7)
    # With both template and length nothing is listed; a frame that is missing shows when it is read.
    source = open_source(folder(6), num_frames=7, template="{:05d}.png")
    assert source.num_frames == 7
    with pytest.raises(VideoError, match=r"cannot read frame 00007.png of .*: No such file or directory"):
        source.read([0, 6])


def test_images_of_other_modes(folder):
    root = folder(2, kind="PNG", mode="P")
    (root / "00003.png").write_bytes(image(30, mode="L"))
    frames = open_source(root).read([0, 2])
    assert numbers(frames)[0] == 1
    assert frames[1].unique().numel() == 1


@pytest.mark.parametrize("subdir", [True, False])
@pytest.mark.parametrize("count", [None, 9])
def test_lmdb_environment(environment, subdir, count):
    images = {f"{number:06d}.jpg": image(number, kind="JPEG") for number in range(1, 12)}
    source = open_source(environment(images, subdir), num_frames=count)
    assert (source.num_frames, source.fps) == (count or 11, None)
    frames = source.read([8, 0, 3, 3])
    assert frames.shape == (4, 10, 14, 3)
    assert numbers(frames) == [9, 1, 4, 4]


def test_lmdb_environments_that_are_no_video(environment, tmp_path):
    with pytest.raises(VideoError, match=r"holds no frames: it has 1 entries, none of them 000001.jpg"):
        open_source(environment({"x.jpg": image(1)}))
    with pytest.raises(VideoError, match="has 2 frames, its annotation says 3"):
        open_source(environment({"000001.jpg": image(1)}), num_frames=3)
    source = open_source(environment({"000001.jpg": image(1)}))
    with pytest.raises(VideoError, match=r"cannot read frame 000002.jpg of .*: it is not there"):
        source.read([0, 1])
    (tmp_path / "text.lmdb").write_text("no environment")
    with pytest.raises(
        VideoError, match=r"text.lmdb is not an LMDB environment that can be read: .*text.lmdb"
    ):
        open_source(tmp_path / "text.lmdb")
    whole = environment({f"{number:06d}.jpg": image(number) for number in range(1, 40)})
    file = whole / "data.mdb" if whole.is_dir() else whole
    content = file.read_bytes()
    file.write_bytes(content[:8192] + bytes(4096) + content[12288:])  # the first page that is no head
    with pytest.raises(VideoError, match="is not an LMDB environment that can be read: .*CORRUPTED"):
        open_source(whole).read(range(39))
    file.write_bytes(content)
    os.truncate(file, file.stat().st_size // 3)
    with pytest.raises(VideoError, match=r"is truncated: it has \d+ bytes of \d+"):
        open_source(whole)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.mdb").write_bytes(b"")
    with pytest.raises(VideoError, match="folder is not an LMDB environment that can be read"):
        open_source(tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is no image$"), (image(2)[:50], "truncated|broken")],
)
def test_broken_images(folder, content, message):
    root = folder(3)
    (root / "00002.png").write_bytes(content)
    source = open_source(root)
    with pytest.raises(VideoError, match=f"cannot read frame 00002.png of .*: .*({message})"):
        source.read([0, 1, 2])


def test_images_that_differ_in_size(folder):
    root = folder(2)
    (root / "00003.png").write_bytes(image(3, size=(11, 14)))
    with pytest.raises(VideoError, match=r"differ in size: 00001.png has 10 x 14 pixels, 00003.png 11 x 14"):
        open_source(root).read([0, 1, 2])


def test_empty_folder_and_nothing(tmp_path):
    with pytest.raises(VideoError, match="the folder .* holds no images"):
        open_source(tmp_path)
    with pytest.raises(VideoError, match="the folder .* holds no image x1.png"):
        open_source(tmp_path, template="x{}.png")
    with pytest.raises(FileNotFoundError, match="there is no file .*none"):
        open_source(tmp_path / "none")
    with pytest.raises(VideoError, match="is a folder: name a video file"):
        video.VideoFile(tmp_path)


@pytest.mark.parametrize("template", ["frame.jpg", "{}{}.jpg", "{name}.jpg", "{:zz}.jpg", "{0"])
def test_templates_without_a_number(tmp_path, template):
    with pytest.raises(ValueError, match=r"template must name the images by number, such as .*, got"):
        open_source(tmp_path, template=template)


def test_missing_lmdb(environment, monkeypatch):
    path = environment({"000001.jpg": image(1)})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match="reading .*video needs lmdb: pip install lmdb"):
        open_source(path)


def test_a_decoder_that_does_not_end_is_ended(tmp_path, monkeypatch):
    command = "ffmpeg -v error -f lavfi -i testsrc=size=32x32:duration=1 -c:v mpeg2video a.ts"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    (tmp_path / "ffprobe").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ffprobe").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(video, "TIMEOUT", 0.2)
    with pytest.raises(VideoError, match=r"a.ts is not a video .*; ffprobe was still busy after 0.2 seconds"):
        open_source(tmp_path / "a.ts")


def test_frames_are_a_tensor_of_their_own(folder):
    frames = open_source(folder(2)).read([0, 1])
    assert frames.is_contiguous()
    frames += 1
    np.testing.assert_array_equal(open_source(folder(2)).read([0])[0, 0, 0].numpy(), colour(1))
