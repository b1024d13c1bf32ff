"""The C++ runtime on a GPU: what it answers, in calls, recorded and replayed, and what it allocates."""

import gc
import threading

import numpy as np
import pytest
import torch
from make_runtime_data import stream_frames, stream_model
from prefixes import on_prefixes
from sifa.artifact import compile_program, export_program, export_torchscript

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

STRIDE = 4
CALLS = 8  # of which the first three are not recorded, and the fourth is recorded


@pytest.fixture(scope="module")
def runtime(runtime_module):
    return runtime_module


@pytest.fixture(scope="module")
def model():
    return stream_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A clip's and a stream's TorchScript file, `clip.pt` and `streaming.pt`."""
    folder = tmp_path_factory.mktemp("gpu")
    for kind in ("clip", "streaming"):
        export_torchscript(model, folder / f"{kind}.pt", kind=kind)
    return folder


@pytest.fixture(scope="module")
def packages(model, folder):
    """Adds `clip.pt2` and `streaming.pt2`, compiled for the GPU."""
    for kind in ("clip", "streaming"):
        export_program(model, folder / f"{kind}.exported.pt2", kind=kind)
        compile_program(folder / f"{kind}.exported.pt2", folder / f"{kind}.pt2", "cuda")


@pytest.fixture(params=["pt", "pt2"], ids=["TorchScript", "AOTInductor"])
def file(folder, request):
    """Return a function from a kind of model to a file of it."""
    if request.param == "pt2":
        request.getfixturevalue("packages")
    return lambda kind: folder / f"{kind}.{request.param}"


def clips(number, seed=0, height=40, width=48):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (number, 12, height, width, 3), dtype=np.uint8)


def feed(stream, frames):
    return [answer.probabilities for answer in map(stream.push, frames) if answer is not None]


def test_a_clip_is_answered_as_on_the_cpu(runtime, folder, file):
    expected, classifier = runtime.Classifier(folder / "clip.pt"), runtime.Classifier(file("clip"), "cuda")
    for call in range(CALLS):
        for batch in (clips(1, call), clips(3, call), clips(1, call, 64, 52)):  # three recordings
            given = classifier.classify(batch)
            np.testing.assert_allclose(given, expected.classify(batch), rtol=0, atol=1e-4)


def test_a_stream_is_answered_as_the_prefix_is(runtime, model, file):
    frames = stream_frames(CALLS * STRIDE)[0].numpy()
    expected = on_prefixes(model, torch.from_numpy(frames).unsqueeze(0))[:, 0]
    stream = runtime.Stream(file("streaming"), "cuda", frame_stride=1)
    np.testing.assert_allclose(np.stack(feed(stream, frames)), expected, rtol=0, atol=1e-4)
    stream.reset()  # replayed from the first step on
    first = feed(stream, frames[: 5 * STRIDE])
    saved = stream.save()
    other = runtime.Stream(file("streaming"), "cuda", frame_stride=1)
    other.restore(saved)
    given = np.stack(first + feed(other, frames[5 * STRIDE :]))
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4)


def test_streams_of_a_batch_keep_their_own_state(runtime, file):
    frames = [
        stream_frames(CALLS * STRIDE)[0].numpy()[::-1] if i else stream_frames(CALLS * STRIDE)[0].numpy()
        for i in range(2)
    ]
    batch = runtime.StreamBatch(file("streaming"), 2, "cuda", frame_stride=1)
    given = [[], []]
    for step in range(CALLS):
        for i in range(2):
            for frame in frames[i][step * STRIDE : (step + 1) * STRIDE]:
                batch.push(i, frame)
        for i, answer in enumerate(batch.run()):
            given[i].append(answer.probabilities)
    for i in range(2):
        alone = feed(runtime.Stream(file("streaming"), "cuda", frame_stride=1), frames[i])
        np.testing.assert_allclose(given[i], alone, rtol=0, atol=1e-4)


def test_replays_allocate_nothing(runtime, file):
    classifier = runtime.Classifier(file("clip"), "cuda")
    stream = runtime.Stream(file("streaming"), "cuda", frame_stride=1)
    frames = stream_frames(CALLS * STRIDE)[0].numpy()
    for call in range(CALLS):
        classifier.classify(clips(1, call))
    feed(stream, frames)

    def numbers(*names):
        statistics = torch.cuda.memory_stats()
        return [statistics[name] for name in names]

    # A clip's replay asks for no block of memory at all; a stream's state is a new one, from memory at hand.
    before = numbers("allocation.all.allocated", "segment.all.allocated")
    for call in range(100):
        classifier.classify(clips(1, call))
    assert numbers("allocation.all.allocated", "segment.all.allocated") == before
    for _ in range(100 // CALLS):
        feed(stream, frames)
    assert numbers("segment.all.allocated") == before[1:]


def test_engines_side_by_side(runtime, folder, file):
    batches = [clips(1, seed) for seed in range(20)]
    expected = [runtime.Classifier(folder / "clip.pt").classify(batch) for batch in batches]
    given = [[], []]

    def classify(i):
        classifier = runtime.Classifier(file("clip"), "cuda")
        given[i] = [classifier.classify(batch) for batch in batches]

    threads = [threading.Thread(target=classify, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers in given:
        np.testing.assert_allclose(np.stack(answers), np.stack(expected), rtol=0, atol=1e-4)


def test_out_of_memory_is_an_error_and_not_the_end(runtime, folder, file):
    classifier = runtime.Classifier(file("clip"), "cuda")
    batch = clips(1)
    expected = runtime.Classifier(folder / "clip.pt").classify(batch)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        with pytest.raises(runtime.Error, match="the model failed: .*out of memory"):
            classifier.classify(clips(600))
        np.testing.assert_allclose(classifier.classify(batch), expected, rtol=0, atol=1e-4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
