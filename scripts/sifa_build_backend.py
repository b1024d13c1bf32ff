"""The build backend: scikit-build-core, plus the two things that change when the runtime is built.

``pip install .`` makes ``sifa-…-py3-none-<platform>.whl``: Python and ``libsifa_ops.so``, which knows no
Python and runs beside every torch from 2.10 on. With ``-C cmake.define.SIFA_RUNTIME=ON`` the wheel also
holds the C++ runtime and ``sifa.runtime``, so it is tagged for this Python (``cpXY-cpXY-<platform>``) and
requires exactly the torch it was built against, whose C++ ABI it uses. An override in ``pyproject.toml``
cannot see a CMake definition; hence these hooks around scikit-build-core's own.
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version
from scikit_build_core import build as skbuild
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist
from scikit_build_core.settings.skbuild_read_settings import SettingsReader

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "dynamic_metadata",
    "dynamic_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = dict[str, list[str] | str]

# scikit-build-core imports this very module as the metadata provider but passes it no config settings:
# each hook leaves here what it found, before the provider is called in the same process.
_with_runtime = False


def _configure(config_settings: ConfigSettings | None) -> ConfigSettings:
    """Read SIFA_RUNTIME as scikit-build-core will, and add the wheel tag that follows from it."""
    global _with_runtime
    settings = SettingsReader.from_file("pyproject.toml", config_settings or {}, state="wheel").settings
    others = {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS", ""), "cmake.args": " ".join(settings.cmake.args)}
    for place, value in others.items():
        if "SIFA_RUNTIME" in value:
            raise ValueError(
                f"SIFA_RUNTIME decides the wheel's tag and dependencies, which {place} ({value!r}) cannot: "
                "give it as -C cmake.define.SIFA_RUNTIME=ON"
            )
    value = settings.cmake.define.get("SIFA_RUNTIME", "OFF").upper()
    _with_runtime = value not in {"", "0", "OFF", "NO", "N", "FALSE"}  # CMake's own false constants
    return {**(config_settings or {}), **({"wheel.py-api": ""} if _with_runtime else {})}


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the dependencies of ``pyproject.toml``, with torch pinned when the runtime is in the wheel."""
    dependencies = list(settings["dependencies"])
    if _with_runtime:
        # The public version: the same release comes as 2.14.1 from PyPI and as 2.14.1+cu130 elsewhere.
        dependencies.append(f"torch=={Version(version('torch')).public}")
    return {"dependencies": dependencies}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Say that the dependencies of a wheel may differ from those its sdist states."""
    return {"dependencies": True}


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings | None = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_wheel(wheel_directory, _configure(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: ConfigSettings | None = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_editable(wheel_directory, _configure(config_settings), metadata_directory)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: ConfigSettings | None = None
) -> str:
    return skbuild.prepare_metadata_for_build_wheel(metadata_directory, _configure(config_settings))


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: ConfigSettings | None = None
) -> str:
    return skbuild.prepare_metadata_for_build_editable(metadata_directory, _configure(config_settings))


def get_requires_for_build_wheel(config_settings: ConfigSettings | None = None) -> list[str]:
    settings = _configure(config_settings)
    return skbuild.get_requires_for_build_wheel(settings) + (["pybind11"] if _with_runtime else [])


def get_requires_for_build_editable(config_settings: ConfigSettings | None = None) -> list[str]:
    settings = _configure(config_settings)
    return skbuild.get_requires_for_build_editable(settings) + (["pybind11"] if _with_runtime else [])
