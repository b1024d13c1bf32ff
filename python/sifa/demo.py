"""The demo: one rendered video through everything, from the codec to C++, and a picture of the attention."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .artifact import FrameClassifier, export_torchscript
from .data.motion import render_video, write_video
from .data.video import read_frames
from .models import create_model
from .visualize import draw_attention

LABEL, SEED, SIZE = "right-then-left", 13, 224


def find_sifa_run() -> Path:
    """The C++ program: beside this Python, where it is installed, or in the PATH.

    Raises:
        FileNotFoundError: it is in neither.
    """
    beside = Path(sys.executable).with_name("sifa-run")
    found = str(beside) if beside.is_file() else shutil.which("sifa-run")
    if found is None:
        raise FileNotFoundError(
            f"there is no program {beside}: `make build` builds it, "
            "or `pip install . -C cmake.define.SIFA_RUNTIME=ON`"
        )
    return Path(found)


def classify_with_cpp(model: Path, video: Path, num_classes: int) -> tuple[list[dict[str, Any]], list[float]]:
    """What `sifa-run` says of a video: the classes as it ranks them, and the probability of each class.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    command = [str(find_sifa_run()), str(model), str(video), "--topk", str(num_classes), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"sifa-run ended with exit code {done.returncode}")
    classes = json.loads(done.stdout)["classes"]
    return classes, [entry["probability"] for entry in sorted(classes, key=lambda entry: entry["index"])]


def compare(outputs: dict[str, list[float]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each engine its top class and how far it is, at most, from the first engine's probabilities.

    Raises:
        RuntimeError: an engine names another class than the first one, or differs by more than 1e-3.
    """
    first, *_ = outputs.values()
    table = []
    for engine, output in outputs.items():
        index = max(range(len(labels)), key=output.__getitem__)
        difference = (torch.tensor(output) - torch.tensor(first)).abs().max().item()
        if index != max(range(len(labels)), key=first.__getitem__) or not difference <= 1e-3:
            raise RuntimeError(
                f"{engine} disagrees with eager: {labels[index]}, probabilities differ by {difference:.1e}"
            )
        table.append({"engine": engine, "label": labels[index], "difference": difference})
    return table


def run_demo(folder: Path, progress: Callable[[str], Any] = lambda text: None) -> dict[str, Any]:
    """Render, export, classify, compare, draw.

    Args:
        folder: where everything is written; made if need be.
        progress: called with what is being done.

    Returns:
        The `video`, its true label `truth`, the `model` file, the top `classes` of sifa-run (label, index,
        probability), the `agreement` of every engine with eager (engine, label, largest difference of a
        probability), and the `picture`.

    Raises:
        FileNotFoundError: the C++ program is not installed.
        RuntimeError: it failed, or engines disagree.
    """
    find_sifa_run()
    folder.mkdir(parents=True, exist_ok=True)
    video, artifact, picture = folder / "motion.mp4", folder / "sifa_tiny.pt", folder / "attention.png"
    # torch.compile remarks on a CUDA toolkit without a GPU, which is none of this demo's business.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    progress("rendering a video")
    write_video(video, render_video(LABEL, SEED, SIZE))
    progress("exporting sifa_tiny")
    model = create_model("sifa_tiny", pretrained="motion").eval()
    export_torchscript(model, artifact)
    progress("classifying with sifa-run")
    classes, cpp = classify_with_cpp(artifact, video, model.num_classes)

    classifier = FrameClassifier(model).eval()
    frames, _ = read_frames(video, model.num_frames, model.frame_stride, model.sampling)
    with torch.inference_mode():
        progress("classifying in Python, eager")
        eager = classifier(frames.unsqueeze(0))[0].tolist()
        progress("classifying in Python, torch.compile (compiles for about a minute the first time)")
        compiled = torch.compile(classifier, fullgraph=True)(frames.unsqueeze(0))[0].tolist()
    outputs = {"Python, eager": eager, "Python, torch.compile": compiled, "C++, sifa-run": cpp}
    agreement = compare(outputs, model.labels)

    progress("drawing")
    draw_attention(model, frames, picture)
    return {
        "video": str(video),
        "truth": LABEL,
        "model": str(artifact),
        "classes": classes[:3],
        "agreement": agreement,
        "picture": str(picture),
    }
