"""Streams of the C++ runtime in Python: every step equals the clip model, in NumPy and with the GIL away."""

import numpy as np
import pytest
import torch
from make_runtime_data import stream_frames, stream_model
from prefixes import on_prefixes
from sifa.artifact import export_torchscript

STRIDE = 4
STEPS = 6


@pytest.fixture(scope="module")
def runtime(runtime_module):
    return runtime_module


@pytest.fixture(scope="module")
def model():
    return stream_model()


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    export_torchscript(model, folder / "stream.pt", kind="streaming")
    export_torchscript(model, folder / "clip.pt")
    return folder / "stream.pt", folder / "clip.pt"


@pytest.fixture(scope="module")
def frames():
    return stream_frames(STEPS * STRIDE)[0].numpy()


@pytest.fixture
def stream(runtime, paths):
    return runtime.Stream(paths[0], frame_stride=1)


def feed(stream, frames):
    return [answer for answer in map(stream.push, frames) if answer is not None]


def test_every_step_equals_the_clip_model_on_the_prefix(model, stream, frames):
    answers = feed(stream, frames)
    assert [answer.frame for answer in answers] == list(range(STRIDE - 1, len(frames), STRIDE))
    expected = on_prefixes(model, torch.from_numpy(frames).unsqueeze(0))[:, 0]
    got = np.stack([answer.probabilities for answer in answers])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_a_clip_s_model_slides_over_the_frames(runtime, paths, frames):
    classifier = runtime.Classifier(paths[1])
    answers = feed(runtime.Stream(paths[1], frame_stride=1, hop=8), frames)
    assert [answer.frame for answer in answers] == [11, 19]
    for answer in answers:
        clip = frames[answer.frame - 11 : answer.frame + 1]
        np.testing.assert_allclose(answer.probabilities, classifier.classify(clip), rtol=0, atol=1e-5)


def test_frames_of_any_layout(stream, frames):
    expected = feed(stream, frames)
    stream.reset()
    answers = feed(stream, [np.asfortranarray(frame) for frame in frames])
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.probabilities, other.probabilities)
        assert answer.frame == other.frame


def test_a_saved_stream_goes_on(runtime, paths, stream, frames):
    feed(stream, frames[:10])
    saved = stream.save()
    assert isinstance(saved, bytes)
    expected = feed(stream, frames[10:])
    batch = runtime.StreamBatch(paths[0], 2, frame_stride=1)
    batch.restore(1, saved)
    assert batch.save(1) == saved
    answers = []
    for frame in frames[10:]:
        if batch.push(1, frame):
            none, answer = batch.run()
            assert none is None
            answers.append(answer)
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.probabilities, other.probabilities)
    with pytest.raises(runtime.Error, match="these bytes are not a saved stream") as caught:
        stream.restore(b"x")
    assert caught.value.code == 2


def test_streams_of_a_batch_are_as_if_alone(runtime, paths, frames):
    batch = runtime.StreamBatch(paths[0], 3, frame_stride=1)
    assert len(batch) == 3
    videos = [frames, frames[::-1], frames]
    together = [[], [], []]
    for i in range(len(frames)):
        if i == 2 * STRIDE:
            batch.reset(2)
        due = [batch.push(stream, video[i]) for stream, video in enumerate(videos)]
        for stream, answer in enumerate(batch.run()):
            assert (answer is not None) == due[stream]
            if answer is not None:
                together[stream].append(answer.probabilities)
    for stream, video in enumerate(videos):
        alone = runtime.Stream(paths[0], frame_stride=1)
        begin = 2 * STRIDE if stream == 2 else 0
        expected = feed(alone, video[:begin])
        alone.reset()
        expected += feed(alone, video[begin:])
        expected = [answer.probabilities for answer in expected]
        np.testing.assert_allclose(together[stream], expected, rtol=0, atol=1e-5)


def test_labels_and_metadata(stream):
    assert len(stream.labels) == 3
    assert stream.metadata["kind"] == "streaming"
    assert stream.metadata["temporal_stride"] == STRIDE


def test_arguments_are_refused(runtime, paths, stream, frames):
    def message(function):
        with pytest.raises(runtime.Error) as caught:
            function()
        assert caught.value.code == 2
        return str(caught.value)

    assert "frame must be uint8 (H, W, 3), RGB last, got float32 (40, 48, 3)" in message(
        lambda: stream.push(frames[0].astype(np.float32))
    )
    assert "got uint8 (1, 40, 48, 3)" in message(lambda: stream.push(frames[:1]))
    assert "got 0 x 48" in message(lambda: stream.push(frames[0][:0]))
    for name in ("frame_stride", "hop", "threads"):
        assert message(lambda name=name: runtime.Stream(paths[0], **{name: 0})) == (
            f"{name} must be at least 1, got 0"
        )
    assert "hop must be 4" in message(lambda: runtime.Stream(paths[0], hop=3))
    assert "streams must be 1 to 65536, got 0" in message(lambda: runtime.StreamBatch(paths[0], -1))
    with pytest.raises(runtime.Error, match="is a stream's model: run it with sifa::Stream") as caught:
        runtime.Classifier(paths[0])
    assert caught.value.code == 6


def test_hysteresis(runtime):
    hysteresis = runtime.Hysteresis(enter=0.7, leave=0.4)
    steps = [[0.6, 0.4], [0.7, 0.3], [0.4, 0.6], [0.3, 0.6], [0.1, 0.9]]
    assert [hysteresis.update(step) for step in steps] == [None, 0, 0, None, 1]
    assert hysteresis.update(np.array([0.2, 0.8], np.float32)) == hysteresis.decision == 1
    hysteresis.reset()
    assert hysteresis.decision is None
    with pytest.raises(runtime.Error, match="must be 0 < leave <= enter <= 1, got leave 0.8 and enter 0.7"):
        runtime.Hysteresis(0.7, 0.8)
