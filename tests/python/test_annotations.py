"""Annotations: a file of each form as the data sets come, and a clear sentence for each way to be wrong."""

import json
import re
from pathlib import Path

import pytest
from sifa.data.annotations import AnnotationError, Annotations, Video, read_annotations


@pytest.fixture
def place(tmp_path):
    """Makes files and folders (names that end in /), empty ones, and returns their root."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name.endswith("/") else path.touch()
        return tmp_path

    return make


def write(path, text):
    path.write_text(text)
    return path


def facts(annotations):
    return [(video.name, video.label) for video in annotations.videos]


def test_video_list(place):
    root = place("videos/a b 7.mp4", "c.avi")
    lists = write(root / "train.txt", "videos/a b 7.mp4 1\n\nc.avi\t0  \n/abs/d.mp4 2\n")
    annotations = read_annotations(lists)
    assert annotations == Annotations(
        (
            Video(root / "videos/a b 7.mp4", 1, "videos/a b 7.mp4"),
            Video(root / "c.avi", 0, "c.avi"),
            Video(Path("/abs/d.mp4"), 2, "/abs/d.mp4"),
        ),
        ("class_0", "class_1", "class_2"),
        lists,
    )


def test_frame_folder_list(place):
    # Lines as the paper's authors, TSM and mmaction2 write them.
    root = place("frames/Kinetics/air drumming/x_1/")
    lists = write(root / "val.txt", "Kinetics/air drumming/x_1 299 0\n100218 42 31\n")
    annotations = read_annotations(lists, root=root / "frames")
    assert [(v.name, v.num_frames, v.label) for v in annotations.videos] == [
        ("Kinetics/air drumming/x_1", 299, 0),
        ("100218", 42, 31),
    ]
    assert annotations.videos[1].path == root / "frames" / "100218"
    assert len(annotations.labels) == 32


def test_what_is_there_tells_a_name_that_ends_in_a_number_from_a_frame_count(place):
    root = place("videos/take 12", "videos/take 13/", "frames/take/", "both/take/", "both/take 12")
    lists = write(root / "train.txt", "take 12 0\n\ntake 13 1\n")
    as_videos = [("take 12", 0, None), ("take 13", 1, None)]
    as_frames = [("take", 0, 12), ("take", 1, 13)]
    for folder, settings, expected in [
        ("videos", {}, as_videos),
        ("frames", {}, as_frames),
        ("both", {}, as_frames),  # of the videos one is there, of the folders two
        ("both", {"format": "videos"}, as_videos),
    ]:
        found = read_annotations(lists, root=root / folder, **settings).videos
        assert [(video.name, video.label, video.num_frames) for video in found] == expected
    with pytest.raises(FileNotFoundError, match="none of the videos .*, the first would be .*/take: "):
        read_annotations(lists)


KINETICS = """label,youtube_id,time_start,time_end,split
"dancing, tap",--abc-_1,7,17,train
air drumming,-x,120,130,val
"dancing, tap",zz,0.0,10.0,train
"""


@pytest.mark.parametrize(
    ("pattern", "suffix"),
    [("{label}/{name}", ".mp4"), ("{underscored}/{name}", ".mkv"), ("{name}", ".webm"), ("train/{name}", "")],
)
def test_kinetics_csv(place, pattern, suffix):
    # The first of them was taken off its site, as many were.
    name = pattern.format(label="dancing, tap", underscored="dancing,_tap", name="zz_000000_000010")
    root = place(name + suffix)
    table = write(root / "kinetics.csv", KINETICS)
    annotations = read_annotations(table, split="train")
    assert annotations.labels == ("dancing, tap",)
    assert facts(annotations) == [("--abc-_1_000007_000017", 0), ("zz_000000_000010", 0)]
    assert annotations.videos[1].path == root / (name + suffix)
    everything = read_annotations(table)
    assert everything.labels == ("air drumming", "dancing, tap")
    assert [video.label for video in everything.videos] == [1, 0, 1]


def test_kinetics_as_downloads_and_spreadsheets_leave_it(place):
    root = place("air drumming/-x_000120_000130.mkv", "dancing, tap/zz_000000_000010.mp4")
    table = root / "kinetics.csv"
    table.write_text(KINETICS, encoding="utf-8-sig")
    assert [str(video.path.relative_to(root)) for video in read_annotations(table).videos] == [
        "dancing, tap/--abc-_1_000007_000017.mp4",
        "air drumming/-x_000120_000130.mkv",
        "dancing, tap/zz_000000_000010.mp4",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KINETICS.replace("air", "\xe9").encode("latin-1"), "table.csv is not .*: it is no text in UTF-8"),
        (
            KINETICS.replace("air", "x" * 140_000).encode(),
            "table.csv is not a Kinetics CSV: field larger than",
        ),
    ],
)
def test_what_is_no_kinetics_csv(place, content, message):
    table = place("a.mp4") / "table.csv"
    table.write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(table, format="kinetics")


@pytest.mark.parametrize("suffix", [".webm", "/"])  # V2 has video files, V1 folders of frames
@pytest.mark.parametrize("given", [True, False])
def test_something_something_json(place, suffix, given):
    root = place(f"78687{suffix}")
    rows = [
        {"id": "1", "label": "dropping a cup", "template": "Dropping [something]", "placeholders": ["a cup"]},
        {"id": 78687, "label": "x", "template": "Putting [something] on [something]", "placeholders": []},
    ]
    indices = {"Putting something on something": "1", "Dropping something": "0"}
    labels = write(root / "something-something-v2-labels.json", json.dumps(indices))
    train = write(root / "something-something-v2-train.json", json.dumps(rows))
    annotations = read_annotations(train, labels=labels if given else None)
    assert annotations.labels == ("Dropping something", "Putting something on something")
    assert facts(annotations) == [("1", 0), ("78687", 1)]
    assert annotations.videos[1].path == root / f"78687{suffix.rstrip('/')}"


def test_class_per_folder_tree(place):
    root = place(
        "run/b.MP4", "run/a.webm", "run/notes.txt", "jump high/frames/", "jump high/c.lmdb", "readme.md"
    )
    annotations = read_annotations(root)
    assert annotations.labels == ("jump high", "run")
    assert facts(annotations) == [
        ("jump high/c.lmdb", 0),
        ("jump high/frames", 0),
        ("run/a.webm", 1),
        ("run/b.MP4", 1),
    ]
    assert annotations.videos[3].path == root / "run/b.MP4"


def test_what_systems_leave_in_a_tree_is_no_class_and_no_video(place):
    root = place("run/a.mp4", "run/._a.mp4", ".git/objects/", "__MACOSX/run/._a.mp4")
    annotations = read_annotations(root)
    assert (annotations.labels, facts(annotations)) == (("run",), [("run/a.mp4", 0)])


def test_a_class_without_videos_is_an_error_unless_others_say_the_classes(place):
    root = place("jump/", "run/a.mp4", "walk/notes.txt")
    with pytest.raises(
        AnnotationError, match=r"no videos \(\.mp4, .*\) in .*/jump, .*/walk: a class needs some; put them"
    ):
        read_annotations(root)
    annotations = read_annotations(root, labels=["walk", "run", "jump"])
    assert facts(annotations) == [("run/a.mp4", 1)]


def test_class_per_folder_tree_of_splits(place):
    root = place("train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4")
    with pytest.raises(AnnotationError, match=r"holds splits, not classes: .* split=, one of train, val"):
        read_annotations(root)
    train = read_annotations(root, split="train")
    assert train.labels == ("jump", "run")
    validation = read_annotations(root, split="val", labels=train.labels)
    assert facts(validation) == [("val/run/c.mp4", 1)]
    assert validation.videos[0].path == root / "val/run/c.mp4"


def test_labels_of_a_file_of_lines(place):
    root = place("a.mp4")
    labels = write(root / "labels.txt", "jump high\nrun\n")
    lists = write(root / "train.txt", "a.mp4 0\n")
    assert read_annotations(lists, labels=labels).labels == ("jump high", "run")
    assert read_annotations(lists, labels=["x"]).labels == ("x",)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            "a.mp4 0\na.mp4 5\n",
            {"labels": ["x", "y"]},
            r"list.txt:2: label must be 0 to 1, .* 2 classes, got 5",
        ),
        ("a.mp4 -1\n", {}, r"list.txt:1: label must be 0 to .*, got -1"),
        ("a.mp4 0\na.mp4 900000000\n", {}, r"list.txt:2: label must be 0 to 99999, .*, got 900000000"),
        ("a.mp4 0\na.mp4 one\n", {}, r"list.txt:2: label must be an integer, got 'one'"),
        ("a.mp4\n", {}, r"list.txt:1 must be `path label`, got 'a.mp4'"),
        ("folder 0 1\n", {}, r"list.txt:1: frames must be at least 1, got 0"),
        ("folder 3\n", {"format": "frames"}, r"list.txt:1 must be `folder frames label`"),
        ("\n \n", {}, r"list.txt is empty: it names no videos"),
        ("a.mp4 0\n", {"split": "val"}, r"format 'videos' has no splits, got split='val'"),
        ("a.mp4 0\n", {"format": "folders"}, r"is a file, which format='folders' does not read"),
        ("a.mp4 0\n", {"format": "csv"}, r"format must be auto, videos, frames, .*, got 'csv'"),
        ("a.mp4 0\n", {"labels": []}, r"there are no labels in \[\]"),
        ("a.mp4 0\n", {"labels": ["x", "y", "x"]}, r"the label 'x' occurs twice"),
    ],
)
def test_errors_of_lists(place, text, settings, message):
    lists = write(place("a.mp4") / "list.txt", text)
    with pytest.raises(ValueError, match=message):
        read_annotations(lists, **settings)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("label,youtube_id,time_start\nrun,x,0\n", {}, "is not a Kinetics CSV: it has no column time_end"),
        (KINETICS, {"split": "test"}, "names no videos of split 'test'"),
        (KINETICS.replace("air drumming", ""), {}, "table.csv:3 has no label; a split without labels"),
        (
            KINETICS.replace("120", "soon"),
            {},
            "table.csv:3: time_start must be a number of seconds, got 'soon'",
        ),
        (
            KINETICS.replace("120,130", "120"),
            {},
            "table.csv:3: time_end must be a number of seconds, got 'val'",
        ),
        (KINETICS, {"labels": ["dancing, tap"]}, "table.csv:3: 'air drumming' is none of the 1 labels"),
    ],
)
def test_errors_of_kinetics(place, text, settings, message):
    table = write(place("zz_000000_000010.mp4") / "table.csv", text)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(table, **settings)


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("[1", {"x": "0"}, "train.json is not JSON: "),
        ("{}", {"x": "0"}, "train.json must be a list of objects with id and template"),
        (
            '[{"id": true, "template": "x"}]',
            {"x": "0"},
            "entry 0 must be an object with id and template, got",
        ),
        ('[{"id": "1"}]', {"x": "0"}, "train.json, entry 0 must be an object with id and template, got"),
        ('[{"id": "1", "template": "y"}]', {"x": "0"}, "train.json, entry 0: 'y' is none of the 1 labels"),
        ('[{"id": "1", "template": "x"}]', {"x": "1"}, "must give its 1 labels the indices 0 to 0"),
        ('[{"id": "1", "template": "x"}]', {"x": "first"}, "x: index must be an integer, got 'first'"),
        ('[{"id": "1", "template": "x"}]', [1], "must be an object of label to index, or a list of labels"),
        ('[{"id": "1", "template": "x"}]', None, r"there is no file \*labels.json: give labels="),
    ],
)
def test_errors_of_something_something(place, text, labels, message):
    root = place("1.webm")
    train = write(root / "train.json", text)
    if labels is not None:
        write(root / "labels.json", json.dumps(labels))
    with pytest.raises(AnnotationError, match=message):
        read_annotations(train)


def test_what_is_not_there(place, monkeypatch):
    root = place("a.mp4", "empty/")
    lists = write(root / "list.txt", "gone.mp4 0\n" * 1000)
    for path, settings, message in [
        (root / "none.txt", {}, "there is no annotation file .*none.txt"),
        (lists, {"root": root / "none"}, "there is no folder .*none$"),
        (lists, {"root": root / "a.mp4"}, "there is no folder .*a.mp4$"),
        (lists, {"labels": root / "none.txt"}, "there is no file of labels .*none.txt"),
        (lists, {}, r"none of the videos of .*list.txt is there, the first would be .*gone.mp4: .* root="),
        (root, {"split": "val"}, "there is no folder .*val"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            read_annotations(path, **settings)
    with pytest.raises(AnnotationError, match=f"{re.escape(str(root))} names no videos"):
        read_annotations(root)
    with pytest.raises(AnnotationError, match="is a folder tree, .*: leave root=.* out"):
        read_annotations(root, root=root / "empty")
    (root / "a.mp4").write_bytes(b"\xff\xfe\x00 0")
    with pytest.raises(AnnotationError, match="it is no text in UTF-8"):
        read_annotations(root / "a.mp4")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(root), "iterdir", refuse)
    with pytest.raises(PermissionError, match="the folder .*empty cannot be read: Permission denied"):
        read_annotations(lists, root=root / "empty")


def test_a_few_missing_videos_are_no_error_here(place):
    root = place("there.mp4")
    lists = write(root / "list.txt", "gone.mp4 0\n" * 40 + "there.mp4 0\n")
    assert len(read_annotations(lists).videos) == 41
