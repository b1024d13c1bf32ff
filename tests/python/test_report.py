"""The report: one page that needs nothing else and shows the mistakes, and the same numbers as JSON."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sifa.data.annotations import Annotations, Video
from sifa.evaluation.classify import Views
from sifa.evaluation.evaluate import Evaluation
from sifa.evaluation.metrics import measure
from sifa.evaluation.pictures import confusion_picture, reliability_picture, thumbnail
from sifa.evaluation.report import write_report

NASTY = '<script>alert("a & b")</script>'


def evaluation_of(videos, labels, predicted, confidence=0.9, broken=()):
    """An evaluation in which video i is taken for class `predicted[i]`."""
    probabilities = torch.full((len(videos), len(labels)), (1 - confidence) / (len(labels) - 1))
    probabilities[torch.arange(len(videos)), torch.tensor(predicted)] = confidence
    targets = torch.tensor([video.label for video in videos])
    return Evaluation(
        source="model.pt",
        engine="cpp",
        model="sifa_tiny",
        annotations=Annotations(tuple(videos), tuple(labels), Path("videos & more")),
        views=Views(10, 3),
        metrics=measure(probabilities, targets, list(labels)),
        indices=torch.arange(len(videos)),
        probabilities=probabilities,
        broken=list(broken),
    )


@pytest.fixture(scope="module")
def evaluation(motion_videos):
    names = ["right-then-left/square", "left-then-right/wide", "up-then-down/square", "up-then-down/wrong"]
    videos = [
        Video(motion_videos / f"{name}.mp4", label, f"{name}.mp4")
        for name, label in zip(names, (0, 1, 2, 2), strict=True)
    ]
    return evaluation_of(videos, [NASTY, "b", "c"], [0, 2, 0, 0], broken=["gone <b>.mp4"])


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    html, data = write_report(evaluation, tmp_path_factory.mktemp("report") / "new" / "folder")
    assert json.loads(data.read_text())["results"]
    return html.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a page refers to, and its tags in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.references, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.words += [" "] if tag in ("span", "div", "p", "figcaption", "td") else []
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.words.append(data)


def test_needs_nothing_but_itself(page):
    found = Reader(page)
    assert found.references
    assert all(reference.startswith("data:image/") for reference in found.references)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "url(" not in page
    assert "@import" not in page


def test_pictures_are_pictures(page):
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(reference.split(",", 1)[1])))
        for reference in Reader(page).references
    ]
    # Three mistakes, each once under its class and once under its pair; two pictures of numbers.
    assert [picture.format for picture in pictures].count("JPEG") == 6
    assert [picture.format for picture in pictures].count("PNG") == 2
    assert all(picture.height == 84 for picture in pictures if picture.format == "JPEG")
    widths = {picture.width for picture in pictures if picture.format == "JPEG"}
    assert widths == {3 * 86 - 2, 3 * 107 - 2}  # three frames of a square and of a wide video


def test_names_are_words_and_no_markup(page):
    words = " ".join("".join(Reader(page).words).split())
    assert NASTY in words
    assert "gone <b>.mp4" in words
    assert "sifa_tiny on videos & more" in words


def test_says_what_was_found(page):
    words = " ".join("".join(Reader(page).words).split())
    assert "model.pt, in C++. 4 videos of 3 classes; 10 clips × 3 squares of the short side of each." in words
    assert "1 more could not be read" in words
    assert "25.0 % top-1" in words
    assert "top-5, " not in words  # of three classes
    assert f"c taken for {NASTY}: 2 of 2" in words
    assert "b taken for c: 1 of 1" in words
    assert "up-then-down/wrong.mp4: <script>" in words
    assert "it is over-confident on the whole" in words


def test_json_holds_the_numbers_and_every_video(evaluation, tmp_path):
    _, data = write_report(evaluation, tmp_path)
    facts = json.loads(data.read_text())
    assert facts["videos"] == 4
    assert facts["top1"] == 0.25
    assert facts["confusion"] == [[1, 0, 0], [0, 0, 1], [2, 0, 0]]
    assert facts["broken"] == ["gone <b>.mp4"]
    assert [entry["video"] for entry in facts["results"]][-1] == "up-then-down/wrong.mp4"
    assert facts["results"][1] == {
        "video": "left-then-right/wide.mp4",
        "label": "b",
        "predicted": "c",
        "probability": pytest.approx(0.9),
        "probability_of_label": pytest.approx(0.05),
    }


def test_examples_are_those_of_the_pair_and_the_surest_first(motion_videos, tmp_path):
    path = motion_videos / "right-then-left" / "square.mp4"
    videos = [Video(path, 2, name) for name in ("little-a", "much-a", "b")]
    sure = torch.tensor([[0.5, 0.1, 0.4], [0.8, 0.1, 0.1], [0.1, 0.6, 0.3]])
    evaluation = dataclasses.replace(evaluation_of(videos, "abc", [0, 0, 1]), probabilities=sure)
    html, _ = write_report(evaluation, tmp_path)
    words = " ".join("".join(Reader(html.read_text(encoding="utf-8")).words).split())
    worst, confused = words.split("Most confused")
    assert re.findall(r"(\S+): [ab], (\d+)", worst) == [("much-a", "80"), ("b", "60"), ("little-a", "50")]
    pairs = confused.split("Confusion matrix")[0]
    assert re.findall(r"(\S+): [ab], ", pairs) == ["much-a", "little-a", "b"]


def test_no_mistake(motion_videos, tmp_path):
    video = Video(motion_videos / "right-then-left" / "square.mp4", 1, "square")
    html, _ = write_report(evaluation_of([video], ["a", "b"], [1]), tmp_path)
    page = html.read_text(encoding="utf-8")
    assert "No video was mistaken." in page
    assert "Most confused" not in page
    assert "not over-confident" in page


def test_a_mistake_whose_video_is_gone_since(tmp_path):
    video = Video(tmp_path / "gone.mp4", 1, "gone")
    html, _ = write_report(evaluation_of([video], ["a", "b"], [0]), tmp_path)
    assert "gone: a, 90.0 %" in " ".join("".join(Reader(html.read_text(encoding="utf-8")).words).split())


@pytest.mark.parametrize("classes", [2, 20, 60])
def test_confusion_of_few_and_of_many_classes(classes):
    videos = [Video(Path("x"), index, "x") for index in range(classes)]
    labels = [f"a label that is rather long {index}" for index in range(classes)]
    right = evaluation_of(videos, labels, list(range(classes))).metrics
    wrong = evaluation_of(videos, labels, [0] * classes).metrics
    pictures = [confusion_picture(metrics) for metrics in (right, wrong)]
    assert pictures[0] != pictures[1]
    image = Image.open(io.BytesIO(pictures[0])).convert("RGB")
    assert 500 <= image.width <= 1400
    # Cividis: the diagonal is its bright end, all the rest its dark one.
    assert share_of(pictures[0], (0, 34, 77)) > 0.1
    bright = [share_of(picture, (253, 231, 55)) for picture in pictures]
    assert bright[0] > 0.001
    # Each row is shares of its class, wherever they lie.
    assert bright[1] == pytest.approx(bright[0], rel=0.15)


def share_of(picture, colour):
    """The share of a picture's pixels that have about this colour."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return (np.abs(pixels - np.array(colour)).sum(2) < 12).mean()


def test_reliability_differs_with_the_confidence():
    videos = [Video(Path("x"), index % 2, "x") for index in range(8)]
    pictures = [
        reliability_picture(evaluation_of(videos, ["a", "b"], [0] * 8, confidence).metrics)
        for confidence in (0.6, 0.95)
    ]
    assert pictures[0] != pictures[1]
    assert Image.open(io.BytesIO(pictures[0])).size == (600, 600)


def test_thumbnails_keep_the_shape_but_of_a_panorama():
    for height, width, expected in ((50, 100, 168), (100, 50, 42), (10, 900, 252)):
        frames = torch.zeros(3, height, width, 3, dtype=torch.uint8)
        frames[1] = 255
        image = Image.open(io.BytesIO(thumbnail(frames)))
        assert image.size == (3 * (expected + 2) - 2, 84)
        assert image.getpixel((expected // 2, 42))[0] < 20
        assert image.getpixel((expected + 2 + expected // 2, 42))[0] > 235
