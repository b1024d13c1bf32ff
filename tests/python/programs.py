"""Runs the sifa-run that is tested, to its end or until it is stopped: the installed one, or SIFA_TEST_RUN's.

Nothing here imports torch: a test inside qemu would wait for it for a minute.
"""

import json
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path

TIMEOUT = 120  # seconds, for anything


def find_sifa_run() -> Path:
    """Its path; `make test-sanitizers` names one that is compiled for AddressSanitizer."""
    named = os.environ.get("SIFA_TEST_RUN")
    if named:
        return Path(named)
    from sifa.demo import find_sifa_run as find_installed

    return find_installed()


def on_a_terminal(*arguments: object) -> list[str]:
    """The lines that it prints for people; `script` makes the terminal."""
    line = shlex.join([str(find_sifa_run()), *map(str, arguments)])
    command = ["script", "-qec", line, "/dev/null"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=True
    ).stdout.splitlines()


def command(*arguments):
    return [str(find_sifa_run()), *map(str, arguments), "--threads", "1"]


def follow(*arguments, **options):
    """Runs to the end: (predictions, summary)."""
    done = subprocess.run(command(*arguments), capture_output=True, timeout=TIMEOUT, **options)
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


def parsed(output):
    *predictions, last = map(json.loads, output.splitlines())
    return predictions, last["summary"]


def refused(*arguments, code=2):
    """What it says, in one line."""
    done = subprocess.run(command(*arguments), capture_output=True, timeout=TIMEOUT, text=True)
    assert done.returncode == code, done.stderr
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.stderr


class Following:
    """A sifa-run that goes on until it is stopped."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self.lines = []
        # Whatever happens, reading ends.
        self.watchdog = threading.Timer(TIMEOUT, self.process.kill)
        self.watchdog.start()

    def read(self, count=1):
        for _ in range(count):
            line = self.process.stdout.readline()
            assert line, self.rest()[2]
            self.lines.append(json.loads(line))
        return self.lines[-1]

    def stop(self, with_signal=signal.SIGINT):
        self.process.send_signal(with_signal)
        return self.finish()

    def finish(self):
        code, output, errors = self.rest()
        assert code == 0, errors
        predictions, summary = parsed(output)
        return self.lines + predictions, summary

    def fail(self):
        code, output, errors = self.rest()
        return code, parsed(output)[1], errors.decode()

    def rest(self):
        # Not communicate(): lines that were read ahead would be lost.
        output, errors = self.process.stdout.read(), self.process.stderr.read()
        code = self.process.wait()
        self.watchdog.cancel()
        return code, output, errors


def is_sure(prediction, label):
    """Whether a model of `colours.py` says that it sees this colour."""
    best = prediction["classes"][0]
    return best["label"] == label and best["probability"] > 0.7
