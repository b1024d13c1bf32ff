"""Reading clips from video files: the right frames of the right stream, upright, and every error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sifa.data.motion import write_video
from sifa.data.sampling import frame_indices
from sifa.data.video import VideoError, _count_with_ffmpeg, _decode_with_ffmpeg, read_frames
from torchcodec.decoders import VideoDecoder

VIDEOS = Path(__file__).parents[2].parent / "shared" / "videos"
# Frames in the first video stream, counted by decoding with ffmpeg; height and width as a viewer sees them.
KNOWN = {
    "arm_wrestling.mp4": (280, 256, 340),
    "clip_long.mp4": (300, 256, 340),
    "clip_mpeg4.avi": (164, 240, 320),
    "hevc.mp4": (10, 128, 128),
    "nasa_multi_stream.mp4": (325, 180, 320),
    "rotated.mp4": (17, 480, 270),
}


@pytest.fixture
def numbered(tmp_path):
    """A lossless video whose frame i is of the one colour (i, 255 - i, 7 i mod 256)."""

    def write(count, size=(18, 34), name="numbered.mp4"):
        colours = torch.tensor([[i, 255 - i, 7 * i % 256] for i in range(count)], dtype=torch.uint8)
        write_video(tmp_path / name, colours.view(-1, 1, 1, 3).expand(-1, *size, 3), lossless=True)
        return tmp_path / name

    return write


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.mark.parametrize(
    ("total", "num_frames", "frame_stride"), [(40, 8, 1), (40, 8, 3), (40, 8, 9), (3, 8, 1)]
)
def test_reads_the_frames_of_the_rule(numbered, total, num_frames, frame_stride):
    frames, indices = read_frames(numbered(total), num_frames, frame_stride)
    assert frames.dtype == torch.uint8
    assert frames.shape == (num_frames, 18, 34, 3)
    assert indices == frame_indices(total, num_frames, frame_stride)
    assert frames[:, 9, 17].tolist() == [[i, 255 - i, 7 * i % 256] for i in indices]


def test_counts_what_is_there_when_the_container_does_not_say(numbered):
    assert read_frames(numbered(21, name="numbered.mkv"), 4, 2)[1] == frame_indices(21, 4, 2)


def test_first_video_stream_behind_sound(numbered, tmp_path):
    video, result = numbered(12), tmp_path / "two.mkv"
    sound = ["-f", "lavfi", "-i", "sine=duration=1"]
    other = ["-f", "lavfi", "-i", "testsrc=size=640x480:duration=1"]
    streams = ["-map", "0", "-map", "1", "-map", "2", "-disposition:1", "0", "-disposition:2", "default"]
    ffmpeg(*sound, "-i", video, *other, *streams, "-c:1", "copy", result)
    # Otherwise this test could not fail: FFmpeg's own choice is the other stream.
    assert VideoDecoder(result).stream_index == 2
    assert VideoDecoder(result, stream_index=1).metadata.width == 34
    frames, indices = read_frames(result, 4)
    assert frames.shape[1:] == (18, 34, 3)
    assert frames[:, 9, 17, 0].tolist() == indices == [4, 5, 6, 7]


@pytest.mark.parametrize("name", ["stream.ts", "b_frames.avi", "no_container.h264"])
def test_files_whose_timestamps_mislead(numbered, tmp_path, name):
    # torchcodec alone gives other frames of these, without a word, or none.
    lossless = ["-c:v", "libx264rgb", "-crf", "0", "-bf", "3", "-g", "12"]
    ffmpeg("-i", numbered(50), *lossless, tmp_path / name)
    frames, indices = read_frames(tmp_path / name, 12, 3)
    assert indices == frame_indices(50, 12, 3)
    assert frames[:, 9, 17].tolist() == [[i, 255 - i, 7 * i % 256] for i in indices]
    frames, indices = read_frames(tmp_path / name, 64)  # to the last frame, with repeats
    assert indices == frame_indices(50, 64)
    assert frames[:, 9, 17, 0].tolist() == indices


@pytest.mark.parametrize("name", KNOWN)
def test_real_videos(name):
    path = VIDEOS / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    total, height, width = KNOWN[name]
    frames, indices = read_frames(path, 16, 4)
    assert frames.shape == (16, height, width, 3)
    assert indices == frame_indices(total, 16, 4)
    assert frames.float().std() > 10
    # FFmpeg's own program, which decodes from the start, says the same.
    assert torch.equal(frames, _decode_with_ffmpeg(path, indices))
    assert _count_with_ffmpeg(path) == total


@pytest.mark.parametrize("content", [b"", b"this is no video, whatever its name says\n" * 50])
def test_not_a_video(tmp_path, content):
    (tmp_path / "no.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"no\.mp4 is not a video that FFmpeg can read: \w+") as raised:
        read_frames(tmp_path / "no.mp4", 4)
    assert str(raised.value).count("no.mp4") == 1


def test_of_a_video_that_was_cut_off_only_what_helps_is_said(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:duration=1", tmp_path / "cut.mp4")
    os.truncate(tmp_path / "cut.mp4", 2000)
    with pytest.raises(VideoError, match="; moov atom not found$") as raised:
        read_frames(tmp_path / "cut.mp4", 4)
    assert "0x" not in str(raised.value)


def test_missing_and_not_a_file(tmp_path):
    missing = tmp_path / "missing.mp4"
    with pytest.raises(FileNotFoundError, match=f"there is no file {missing}"):
        read_frames(missing, 4)
    with pytest.raises(VideoError, match=f"{tmp_path} is a folder: name a video file"):
        read_frames(tmp_path, 4)


def test_sound_only(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.m4a")
    with pytest.raises(VideoError, match=r"sound\.m4a is not a video .* it has no frames$"):
        read_frames(tmp_path / "sound.m4a", 4)


def test_a_video_without_frames(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:duration=1", "-frames:v", "0", tmp_path / "none.mp4")
    with pytest.raises(VideoError, match=r"none\.mp4 is not a video .* it has no frames$"):
        read_frames(tmp_path / "none.mp4", 4)


def test_a_text_is_no_video(tmp_path):
    """FFmpeg would show it as a terminal does: `sifa predict list.txt` had an answer."""
    path = tmp_path / "list.txt"
    path.write_text("clip.mp4 0\n" * 30)
    with pytest.raises(VideoError, match=r"list\.txt is a text by its name, which FFmpeg would draw"):
        read_frames(path, 4)


def test_frames_that_cannot_be_decoded(numbered, monkeypatch):
    def fail(self, indices):
        raise RuntimeError("Requested next frame while there are no more frames left to decode.")

    monkeypatch.setattr(VideoDecoder, "get_frames_at", fail)
    with pytest.raises(
        VideoError, match=r"cannot decode frames 2 to 5 of .*: Requested next frame .* decode$"
    ):
        read_frames(numbered(8), 4)


def test_timestamps_that_mislead_without_the_ffmpeg_program(numbered, tmp_path, monkeypatch):
    ffmpeg("-i", numbered(20), "-c:v", "libx264rgb", "-bf", "3", "-g", "6", tmp_path / "stream.ts")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        VideoError, match=r"timestamps do not fit .*; there is no program ffprobe: sudo apt-get"
    ):
        read_frames(tmp_path / "stream.ts", 4)


def test_numbers_are_checked(numbered):
    with pytest.raises(ValueError, match="frame_stride must be at least 1, got 0"):
        read_frames(numbered(3), 4, 0)


def test_missing_torchcodec(numbered, monkeypatch):
    path = numbered(3)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match="pip install torchcodec"):
        read_frames(path, 4)


def test_missing_ffmpeg(numbered, monkeypatch, tmp_path):
    path = numbered(3)
    # What importing torchcodec does on a machine without FFmpeg's libraries.
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("")
    (tmp_path / "torchcodec" / "decoders.py").write_text(
        "raise RuntimeError('Could not load libtorchcodec.')"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"sudo apt-get install ffmpeg\. \(Could not load libtorchcodec\)"):
        read_frames(path, 4)
