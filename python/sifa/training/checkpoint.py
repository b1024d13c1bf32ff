"""Checkpoints of a training: tensors and plain values only, enough to go on and to make the model again."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..models import VideoClassifier
from ..models.hub import rebuild

FILE = "last.ckpt"
"""Name of the checkpoint in the folder of a training."""

_PREFIX = "model."


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `sifa train` saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no checkpoint of `sifa train`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch compares no checksum
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling meets; torch's words advise to trust the file
        raise ValueError(
            f"{path} cannot be read as a checkpoint of `sifa train`: it is damaged, or something else"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("sifa"), dict):
        raise ValueError(f"{path} is no checkpoint of `sifa train`: it has no entry 'sifa'")
    if "model" not in checkpoint["sifa"] or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} is a checkpoint of `sifa train` without its model")
    return checkpoint


def load_checkpoint(path: str | os.PathLike[str]) -> VideoClassifier:
    """The model of a checkpoint, in eval mode; the average of its weights where the recipe has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no checkpoint of `sifa train`.
        RuntimeError: its weights do not fit its model.
    """
    checkpoint = read_checkpoint(path)
    state = {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    return rebuild(checkpoint["sifa"]["model"], state, str(path)).eval()
