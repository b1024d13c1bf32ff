"""Models out of folders and off the Hugging Face hub: what VideoClassifier.save_pretrained wrote."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .classifier import CONFIG_FILE, SAVED_ATTRIBUTES, WEIGHTS_FILE, VideoClassifier
from .registry import create_model
from .weights import load_own, read_state


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    num_frames: int | None = None,
    strict: bool = True,
    revision: str | None = None,
) -> VideoClassifier:
    """Make a model that :meth:`VideoClassifier.save_pretrained` wrote.

    Args:
        source: the folder, or a repository of the Hugging Face hub (``"owner/name"``) with the same files.
        num_classes: another number of classes than the saved one: its last layers are new, random ones.
        num_frames: another clip length than the saved one.
        strict: whether a missing, unexpected or misshapen value is an error; otherwise what fits is loaded,
            and the rest is one warning.
        revision: branch, tag or commit of the hub repository.

    Raises:
        FileNotFoundError: there is no such folder or repository, or a file of it is missing.
        ValueError: the configuration is damaged, or names a model or options that do not exist.
        RuntimeError: the weights are damaged, or do not fit; all that differs is listed.
    """
    config_path, weights_path = (_file(source, name, revision) for name in (CONFIG_FILE, WEIGHTS_FILE))
    try:
        facts = json.loads(config_path.read_text())
    except ValueError as error:
        raise ValueError(f"{config_path} is no configuration of a SIFA model: {error}") from error
    model = _from_facts(facts, str(config_path))
    problems = load_own(model, read_state(weights_path), str(weights_path), strict)
    if problems:
        warnings.warn(
            f"{weights_path}: loaded what fits of {model.name}\n  " + "\n  ".join(problems), stacklevel=2
        )
    if num_classes is not None and num_classes != model.num_classes:
        model.replace_head(num_classes)
    if num_frames is not None:
        model.set_num_frames(num_frames)
    return model


def rebuild(facts: Any, state: Mapping[str, Tensor], source: str) -> VideoClassifier:
    """The model that :meth:`VideoClassifier.facts` and a state dict describe.

    Args:
        source: where they come from, for errors.

    Raises:
        ValueError: the facts are damaged, or name a model or options that do not exist.
        RuntimeError: the weights do not fit; all that differs is listed.
    """
    model = _from_facts(facts, source)
    load_own(model, state, source)
    return model


def _from_facts(facts: Any, source: str) -> VideoClassifier:
    """A model with random weights. Raises ValueError if the facts are not those of a model."""
    try:
        name, config, labels = facts["model"], facts["config"], facts["labels"]
        if not isinstance(config, dict) or not isinstance(labels, list):
            raise TypeError("config must be an object, and labels a list")
        if {"name", "pretrained"} & set(config):
            raise ValueError("config must hold neither name nor pretrained")
        model = create_model(name, **config)
        for attribute in SAVED_ATTRIBUTES:
            value = facts[attribute]
            setattr(model, attribute, tuple(value) if isinstance(value, list) else value)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is no configuration of a SIFA model: {error}") from error
    if len(labels) != model.num_classes:
        raise ValueError(f"{source} names {len(labels)} labels for {model.num_classes} classes")
    model.labels = labels
    return model


def _file(source: str | os.PathLike[str], name: str, revision: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"the folder {folder} has no {name}: it holds no model of save_pretrained"
            )
        return folder / name
    if len(folder.parts) != 2 or folder.is_absolute():
        raise FileNotFoundError(f"there is no folder {folder}, and a hub repository is named owner/name")
    import huggingface_hub  # takes a while, and most models come from folders
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(folder.as_posix(), name, revision=revision))
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder {folder}, and the hub gives no {name} of {folder.as_posix()}: {reason}"
        ) from error
