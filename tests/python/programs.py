"""The sifa-run that is tested: the installed one, or that of another build, which SIFA_TEST_RUN names."""

import os
import shlex
import subprocess
from pathlib import Path

import sifa.demo


def find_sifa_run() -> Path:
    """Its path; `make test-sanitizers` names one that is compiled for AddressSanitizer."""
    named = os.environ.get("SIFA_TEST_RUN")
    return Path(named) if named else sifa.demo.find_sifa_run()


def on_a_terminal(*arguments: object) -> list[str]:
    """The lines that it prints for people; `script` makes the terminal."""
    line = shlex.join([str(find_sifa_run()), *map(str, arguments)])
    command = ["script", "-qec", line, "/dev/null"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
