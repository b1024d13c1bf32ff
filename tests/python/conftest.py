"""Fixtures that the Python tests share: a fixed seed, the devices, inputs of the operator, large offsets."""

import importlib
import os
import signal

import lively
import pytest
import torch
import torch._dynamo

# cuDNN rounds the float32 of convolutions to TF32 otherwise, and no test means that.
torch.backends.cudnn.allow_tf32 = False
# What a shell runs in the background ignores Ctrl-C, and so would the programs that are tested with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        "sifa::inter_frame_attention", "CUDA"
    )


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """Let no test see what an earlier one compiled."""
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", "cuda"] if _has_cuda_kernels() else ["cpu"])
def device(request):
    """Every device that this machine can run the operator on."""
    return request.param


@pytest.fixture
def make_inputs():
    """Return a function that makes random (query, memory, offset) for the operator."""

    def make(
        batch=2,
        channels=8,
        frames=3,
        height=5,
        width=6,
        memory_frames=None,
        kernel_size=3,
        dtype=torch.float32,
        offset_dtype=None,
        device="cpu",
        sigma=1.5,
        requires_grad=False,
    ):
        def features(count):
            values = torch.randn(batch, channels, count, height, width, dtype=torch.float64)
            values = values.to(device, dtype, memory_format=torch.channels_last_3d)
            return values.requires_grad_(requires_grad)

        query = features(frames)
        memory = features(frames if memory_frames is None else memory_frames)
        shape = (batch, 2 * kernel_size**2, frames, height, width)
        offset = sigma * torch.randn(shape, dtype=torch.float64)
        offset = offset.to(device, offset_dtype or dtype).requires_grad_(requires_grad)
        return query, memory, offset

    return make


@pytest.fixture
def randomize_offsets():
    """Return :func:`lively.randomize_offsets`."""
    return lively.randomize_offsets


@pytest.fixture(scope="session")
def runtime_module():
    """The Python module of the C++ runtime; without it the test is skipped, but in continuous integration."""
    if "CI" in os.environ:
        return importlib.import_module("sifa.runtime")
    reason = "sifa.runtime is not built (cmake.define.SIFA_RUNTIME=ON builds it)"
    return pytest.importorskip("sifa.runtime", reason=reason)


@pytest.fixture(scope="session")
def motion_videos(tmp_path_factory):
    """A folder per class with seven rendered videos of sifa_tiny's task, square, wide and high.

    One of them is in the wrong folder: `up-then-down/wrong.mp4` shows `down-then-up`.
    """
    from sifa.data.motion import render_video, write_video

    folder = tmp_path_factory.mktemp("motion")
    for number, (name, label) in enumerate(
        [
            ("right-then-left/square", None),
            ("right-then-left/wide", None),
            ("right-then-left/high", None),
            ("left-then-right/square", None),
            ("left-then-right/wide", None),
            ("up-then-down/square", None),
            ("up-then-down/wrong", "down-then-up"),
        ]
    ):
        true, shape = name.split("/")
        frames = render_video(label or true, 7000 + number, 112 if shape in ("square", "wrong") else 140, 4)
        if shape == "wide":
            frames = frames[:, 14:126]
        if shape == "high":
            frames = frames[:, :, 14:126]
        (folder / true).mkdir(exist_ok=True)
        write_video(folder / f"{name}.mp4", frames.contiguous())
    return folder
