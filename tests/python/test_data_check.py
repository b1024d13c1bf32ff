"""`sifa data`: what check says of good, few and broken videos, what bench times, what motion renders."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from sifa.cli import main
from sifa.data import motion
from sifa.data.annotations import read_annotations
from sifa.data.check import check_videos, contact_sheet
from sifa.data.motion_videos import render_task
from sifa.data.video import read_frames
from sifa.training import bench
from sifa.training.recipe import read_recipe


@pytest.fixture(scope="module")
def videos(tmp_path_factory, motion_videos):
    """Those of the session in a folder of links, with one that is broken, and a class with one video."""
    folder = tmp_path_factory.mktemp("videos")
    for source in motion_videos.glob("*/*.mp4"):
        (folder / source.parent.name).mkdir(exist_ok=True)
        (folder / source.parent.name / source.name).symlink_to(source)
    (folder / "right-then-left" / "broken.mp4").write_bytes(b"no video")
    (folder / "alone").mkdir()
    (folder / "alone" / "one.mp4").symlink_to(motion_videos / "left-then-right" / "wide.mp4")
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_what_is_said_of_videos(videos, tmp_path, capsys):
    sheet = tmp_path / "pictures" / "sheet.png"
    assert run("data", "check", videos, "--sheet", sheet) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "videos 9, 1 of them unreadable classes 4 length 24 to 24 frames, median 24" in text
    assert "length 1.5 to 1.5 s, median 1.5" in text
    assert "size 3 different, 112x112 to 112x140" in text
    assert "alone 1 left-then-right 2 up-then-down 2 right-then-left 3" in text
    assert "warning: alone has 1 readable video: give it more, or leave the class out" in text
    assert "unreadable: right-then-left/broken.mp4: " in text
    assert text.endswith(
        f"to look at them: open {sheet} to train: sifa train own-actions --data.train={videos}"
    )
    with Image.open(sheet) as picture:
        assert picture.height == 8 * 120


def test_a_training_is_told_what_was_told_here(motion_videos, tmp_path, capsys):
    labels = tmp_path / "the labels.txt"
    labels.write_text("left-then-right\nright-then-left\n")
    (tmp_path / "train").mkdir()
    for name in labels.read_text().split():
        (tmp_path / "train" / name).symlink_to(motion_videos / name)
    options = ["--split=train", "--format=folders", f"--labels={labels}", "--template={:05d}.jpg"]
    assert run("data", "check", tmp_path, *options, "--sheet", tmp_path / "sheet.png") == 0
    told = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("to train:"))
    assert told[:3] == ["sifa", "train", "own-actions"]
    data = read_recipe(told[2], told[3:]).data
    assert (data.train, data.train_split, data.format) == (str(tmp_path), "train", "folders")
    assert (data.labels, data.template, data.root) == (str(labels), "{:05d}.jpg", None)


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("sheet.xyz", "sheet.xyz is no picture that can be written: end its name in .jpg or .png"),
        ("text/sheet.png", "text is a file: name another folder with --sheet"),
        ("folder.jpg", "folder.jpg is a folder: name a picture in it"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, capsys, sheet, message
):
    monkeypatch.setattr("sifa.data.annotations.read_annotations", None)
    (tmp_path / "text").touch()
    (tmp_path / "folder.jpg").mkdir()
    assert run("data", "check", tmp_path, "--sheet", tmp_path / sheet) == 1
    assert message in capsys.readouterr().err


def test_the_same_for_programs(videos, tmp_path, capsys):
    assert run("data", "check", videos, "--sheet", tmp_path / "sheet.jpg", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["videos"] == 9
    assert facts["classes"] == {"alone": 1, "left-then-right": 2, "right-then-left": 3, "up-then-down": 2}
    assert facts["frames"] == {"least": 24, "median": 24, "most": 24}
    assert facts["sizes"] == [[112, 112], [112, 140], [140, 112]]
    assert list(facts["unreadable"]) == ["right-then-left/broken.mp4"]


def test_a_frame_that_only_the_picture_shows(tmp_path, capsys):
    """Read are the first, the middle and the last, and drawn are six."""
    folder = tmp_path / "videos" / "nod" / "1"
    folder.mkdir(parents=True)
    for number in range(1, 13):
        Image.new("RGB", (16, 12)).save(folder / f"{number:05}.jpg")
    assert run("data", "check", tmp_path / "videos", "--sheet", tmp_path / "sheet.jpg") == 0
    (folder / "00003.jpg").write_bytes(b"")
    assert run("data", "check", tmp_path / "videos", "--sheet", tmp_path / "sheet.jpg", "--json") == 1
    out, err = capsys.readouterr()
    facts = json.loads(out[out.index("{") :])
    assert "cannot read frame 00003.jpg of " in facts["unreadable"]["nod/1"]
    assert "not one of the 1 videos of " in err


def test_a_template_is_checked_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sifa.data.annotations.read_annotations", None)
    assert run("data", "check", tmp_path, "--template", "x.jpg") == 1
    assert "template must name the images by number" in capsys.readouterr().err


def test_videos_without_a_folder_for_their_class(tmp_path, capsys):
    (tmp_path / "x.mp4").write_bytes(b"")
    assert run("data", "check", tmp_path, "--sheet", tmp_path / "sheet.jpg") == 1
    assert "put them into a folder for each class" in capsys.readouterr().err


def test_nothing_can_be_read(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"")
    assert run("data", "check", tmp_path, "--sheet", tmp_path / "sheet.jpg") == 1
    assert "sifa: not one of the 1 videos of " in capsys.readouterr().err
    assert not (tmp_path / "sheet.jpg").exists()


def test_rows_show_every_class_before_a_second_video(videos, tmp_path, monkeypatch):
    from sifa.data import check

    annotations = read_annotations(videos)
    checked = check_videos(annotations)
    drawn = []

    def row(frames, text, font, draw=check._row):
        drawn.append(text)
        assert frames.shape[0] == 6
        return draw(frames, text, font)

    monkeypatch.setattr(check, "_row", row)
    monkeypatch.setattr(check, "_ROWS", 5)
    assert contact_sheet(annotations, checked, tmp_path / "sheet.png") == 5
    assert [text.split()[0] for text in drawn] == [
        "alone",
        "left-then-right",
        "left-then-right",
        "right-then-left",
        "up-then-down",
    ]


def test_progress_counts_every_video(videos):
    seen = []
    check_videos(read_annotations(videos), workers=3, progress=lambda *place: seen.append(place))
    assert seen == [(done, 9) for done in range(1, 10)]


def test_bench_times_a_training(motion_videos, capsys):
    options = [
        f"--data.train={motion_videos}",
        "--data.held_out=0.3",
        "--data.workers=1",
        "--batch_size=2",
        "--accumulate=2",
        "--model.pretrained=null",
        "--model.input_size=32",
        "--device=cpu",
    ]
    assert run("data", "bench", "own-actions", *options) == 0
    text = capsys.readouterr().out
    assert re.match(r"\d+\.\d clips per second and core: \d+ ms to read one and \d+ ms to augment it\n", text)
    assert re.search(
        r"a step of 2 clips takes \S+ s, and with 1 workers \d+ % of the time goes by waiting", text
    )
    assert run("data", "bench", "own-actions", *options, "--json") == 0
    pace = json.loads(capsys.readouterr().out)
    assert pace["clips_per_second"] > 0
    assert 0 <= pace["wait_share"] <= 1
    assert (pace["workers"], pace["batch_size"]) == (1, 2)


def test_the_time_of_programs_that_decode_counts():
    before = bench._spent()
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    assert bench._spent() - before > 0.05


def test_rendering_says_how_to_train(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("sifa.data.motion_videos.render_task", lambda *arguments: asked.append(arguments[:4]))
    assert run("data", "motion", tmp_path / "m", "--pairs", "3", "--scenes", "2", "--workers", "1") == 0
    assert asked == [(tmp_path / "m", 3, 2, 1)]
    assert capsys.readouterr().out == (
        f"{tmp_path}/m: 6 videos to train on, 20 to validate on\n"
        f"to train: sifa train motion --data.train={tmp_path}/m/train.txt "
        f"--data.validation={tmp_path}/m/val.txt --data.labels={tmp_path}/m/labels.txt\n"
    )


def test_the_motion_task_as_videos(tmp_path):
    render_task(tmp_path, pairs=2, scenes=1, workers=1, size=32)
    labels = (tmp_path / "labels.txt").read_text().splitlines()
    assert labels == list(motion.LABELS)
    training = read_annotations(tmp_path / "train.txt", labels=tmp_path / "labels.txt")
    assert [(video.name, video.label) for video in training.videos] == [
        ("train/0-0.mp4", 0),
        ("train/0-1.mp4", 1),
        ("train/1-2.mp4", 2),
        ("train/1-3.mp4", 3),
    ]
    held_out = read_annotations(tmp_path / "val.txt", labels=tmp_path / "labels.txt")
    assert [video.label for video in held_out.videos] == list(range(10))
    frames, _ = read_frames(held_out.videos[3].path, motion.PERIOD)
    expected = motion.render_clip(3, 1_000_000, 32)
    assert (frames.float() - expected.float()).abs().mean() < 12  # the codec's loss
    (tmp_path / "train" / "0-0.mp4").write_bytes(b"kept")
    (tmp_path / "train" / "0-1.mp4").unlink()
    render_task(tmp_path, pairs=2, scenes=1, workers=1, size=32)
    assert (tmp_path / "train" / "0-0.mp4").read_bytes() == b"kept"
    assert read_frames(tmp_path / "train" / "0-1.mp4", 1)[0].shape == (1, 32, 32, 3)
