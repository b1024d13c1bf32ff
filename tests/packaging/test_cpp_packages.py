"""The .deb and the tarball of `make package`: what they hold, and that they work where they are unpacked."""

import json
import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # everything is compiled


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages():
    out = run("make", "package", cwd=ROOT, env={**os.environ, "CMAKE_ARGS": "-DSIFA_CUDA=OFF"})
    return {path.suffix: path for path in (ROOT / line for line in out.splitlines() if "/sifa" in line)}


@pytest.fixture(scope="module", params=[".deb", ".gz"])
def unpacked(packages, request, tmp_path_factory):
    """The folder that is to be /opt/sifa, with a torch in it."""
    folder = tmp_path_factory.mktemp("package")
    if request.param == ".deb":
        run("dpkg-deb", "--extract", packages[".deb"], folder)
        folder = folder / "opt" / "sifa"
    else:
        run("tar", "-xf", packages[".gz"], "-C", folder, "--strip-components", 1)
    (folder / "torch").symlink_to(Path(torch.__file__).parent)
    return folder


def test_the_deb_says_what_it_needs(packages):
    fields = dict(line.split(": ", 1) for line in run("dpkg-deb", "--field", packages[".deb"]).splitlines())
    assert (fields["Package"], fields["Version"]) == ("sifa", version("sifa"))
    assert re.search(r"libstdc\+\+6.*libopencv-videoio", fields["Depends"])
    assert torch.__version__.partition("+")[0] in fields["Description"]


def test_nothing_names_a_folder_of_the_machine_that_built_it(unpacked):
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files if path.parent.parent.name != "include"}
    assert {"sifa-run", "libsifa_ops.so", "libsifa_runtime.so", "libsifa_video.so", "libsifa_c.so"} <= names
    assert not [path for path in files if "python" in path.name]
    for path in files:
        content = path.read_bytes()
        assert os.fsencode(ROOT) not in content, path
        assert os.fsencode(Path(torch.__file__).parent) not in content, path


def test_it_works_where_it_is_unpacked(unpacked, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LD_", "PYTHON", "SIFA_"))}
    findings = json.loads(run(unpacked / "bin" / "sifa-run", "--doctor", "--json", env=environment))
    assert not [finding for finding in findings if finding["problem"]]
    source = ROOT / "cpp" / "examples" / "classify"
    run("cmake", "-S", source, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={unpacked}")
    run("cmake", "--build", tmp_path)
    done = subprocess.run([tmp_path / "classify", "/nothing.pt", "x"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (3, b"model file not found: /nothing.pt\n")
