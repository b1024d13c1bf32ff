"""docs/your-own-actions.md as a newcomer types it: each command is the one that the one before names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-own-actions.md"
BIN = Path(sys.executable).parent


def test_five_commands_from_clips_to_the_cpp_program(tmp_path):
    if not (BIN / "sifa-run").exists():
        pytest.skip("sifa-run is not built (cmake.define.SIFA_RUNTIME=ON builds it)")
    (render,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    commands = [
        line
        for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
        for line in block.splitlines()
    ]
    assert [command.split()[0] for command in commands] == [*["sifa"] * 4, "sifa-run"]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", render], cwd=tmp_path, env=environment, check=True)
    said = f"to begin: {commands[0]}"
    for command in commands:
        # Each is what the one before has said.
        promised = re.findall(r"^to [^:]*: +(\S.*)$", said, re.M)
        assert command in [line.replace("VIDEO", "actions/nod/0.mp4") for line in promised]
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        said = done.stdout
    report = json.loads((tmp_path / "sifa-eval" / "report.json").read_text())
    assert report["videos"] == 6
    assert report["top1"] >= 0.5  # chance is a third
    assert (tmp_path / "contact-sheet.jpg").stat().st_size > 10_000
    assert json.loads(said)["classes"][0]["label"] == "nod"
