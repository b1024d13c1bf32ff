"""The demo: one rendered video through everything, from the codec to C++, and a picture of the attention."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .artifact import FrameClassifier, export_torchscript
from .data.motion import render_video, write_video
from .data.video import read_frames
from .models import create_model
from .visualize import draw_attention

LABEL, SEED, SIZE = "right-then-left", 3, 224


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


def classify_with_cpp(model: Path, video: Path, num_classes: int) -> dict[str, Any]:
    """What `sifa-run --json` says of a video, all classes.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    command = [str(find_sifa_run()), str(model), str(video), "--topk", str(num_classes), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"sifa-run ended with exit code {done.returncode}")
    return json.loads(done.stdout)


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
        RuntimeError: an engine disagrees with eager about the class, or by more than 1e-3.
    """
    find_sifa_run()
    folder.mkdir(parents=True, exist_ok=True)
    video, artifact, picture = folder / "motion.mp4", folder / "sifa_tiny.pt", folder / "attention.png"

    progress("rendering a video")
    write_video(video, render_video(LABEL, SEED, SIZE))
    progress("exporting sifa_tiny")
    model = create_model("sifa_tiny", pretrained="motion").eval()
    export_torchscript(model, artifact)
    progress("classifying with sifa-run")
    answer = classify_with_cpp(artifact, video, model.num_classes)
    by_index = sorted(answer["classes"], key=lambda entry: entry["index"])
    outputs = {"C++ (sifa-run)": torch.tensor([[entry["probability"] for entry in by_index]])}

    frames, _ = read_frames(video, model.num_frames, model.frame_stride)
    classifier = FrameClassifier(model).eval()
    # The compiler's cache lies with the demo, so that a second run takes seconds and a clean-up removes
    # all.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((folder / "compiler-cache").absolute()))
    with torch.inference_mode():
        progress("classifying in Python, eager")
        eager = classifier(frames.unsqueeze(0))
        progress("classifying in Python, torch.compile (the first time it compiles for about a minute)")
        outputs["torch.compile"] = torch.compile(classifier, fullgraph=True)(frames.unsqueeze(0))
    agreement = []
    for engine, output in {"Python, eager": eager, **outputs}.items():
        label = model.labels[int(output.argmax())]
        difference = (output - eager).abs().max().item()
        if label != model.labels[int(eager.argmax())] or not difference <= 1e-3:
            raise RuntimeError(
                f"{engine} disagrees with eager: {label}, probabilities differ by {difference:.1e}"
            )
        agreement.append({"engine": engine, "label": label, "difference": difference})

    progress("drawing")
    draw_attention(model, frames, picture)
    return {
        "video": str(video),
        "truth": LABEL,
        "model": str(artifact),
        "classes": answer["classes"][:3],
        "agreement": agreement,
        "picture": str(picture),
    }
