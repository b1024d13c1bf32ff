"""The `sifa` command: what it prints and writes, and that every failure is one line and an exit code."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from safetensors.torch import save_file
from sifa import cli
from sifa.artifact import load_artifact, read_metadata
from typer.main import get_command


@pytest.fixture
def run(capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model.pt"
    with pytest.raises(SystemExit) as exit_:
        cli.main(["export", "sifa_tiny", "--random-weights", "-o", str(path)])
    assert exit_.value.code in (0, None)
    return path


def test_export_with_random_weights(exported):
    artifact = load_artifact(exported)
    assert artifact.metadata["model"]["name"] == "sifa_tiny"
    assert artifact.num_frames == 16


def test_export_with_weights_and_sizes(run, tmp_path):
    torch.manual_seed(3)
    model = sifa.create_model("sifa_tiny", num_classes=3, num_frames=8)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    code, out, err = run(
        *["export", "sifa_tiny", "-o", tmp_path / "m.pt", "--weights", tmp_path / "weights.safetensors"],
        *["--num-classes", "3", "--num-frames", "8", "--json"],
    )
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["path"] == str(tmp_path / "m.pt")
    assert answer["metadata"]["labels"] == ["class_0", "class_1", "class_2"]
    artifact = load_artifact(tmp_path / "m.pt")
    assert artifact.num_frames == 8
    assert artifact.metadata == answer["metadata"]
    # The weights are those of the file, not random ones.
    frames = torch.randint(0, 256, (1, 8, 112, 112, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = sifa.artifact.FrameClassifier(model).eval()(frames)
    torch.testing.assert_close(artifact(frames), expected, rtol=0, atol=1e-5)


def test_export_of_the_bundled_weights(run, tmp_path):
    code, out, err = run("export", "sifa_tiny", "-o", tmp_path / "model.pt")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'model.pt'}: sifa_tiny, 10 classes, ")
    assert load_artifact(tmp_path / "model.pt").labels[0] == "right-then-left"
    assert run("export", "sifa_tiny", "--streaming", "-o", tmp_path / "stream.pt")[0] == 0
    metadata = read_metadata(tmp_path / "stream.pt")
    assert (metadata["kind"], metadata["labels"][0]) == ("streaming", "right-then-left")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of one's own as a folder of `save_pretrained` and as a checkpoint of `sifa train`."""
    folder = tmp_path_factory.mktemp("trained")
    model = lively_model(num_classes=3)
    model.labels = ["up", "down", "left"]
    model.save_pretrained(folder / "model")
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"sifa": {"model": model.facts()}, "state_dict": state}, folder / "last.ckpt")
    return folder, model


@pytest.mark.parametrize("name", ["model", "last.ckpt"])
def test_export_of_a_trained_model(run, trained, tmp_path, name):
    folder, model = trained
    path = tmp_path / "m y.pt"
    code, out, err = run("export", folder / name, "-o", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{path}: sifa_tiny, 3 classes, ")
    assert out.splitlines()[1] == f"to classify in C++: sifa-run '{path}' VIDEO"
    artifact = load_artifact(path)
    assert artifact.labels == ["up", "down", "left"]
    frames = moving_blocks(16)
    with torch.no_grad():
        expected = sifa.artifact.FrameClassifier(model).eval()(frames)
    assert expected.std() > 0.05
    torch.testing.assert_close(artifact(frames), expected, rtol=0, atol=1e-5)


def test_export_of_a_trained_model_for_other_clips(run, trained, tmp_path):
    code, _, _ = run("export", trained[0] / "model", "-o", tmp_path / "m.pt", "--num-frames", "8")
    assert (code, load_artifact(tmp_path / "m.pt").num_frames) == (0, 8)
    for option in (["--random-weights"], ["--weights", "w.safetensors"], ["--num-classes", "4"]):
        code, out, err = run("export", trained[0] / "model", "-o", tmp_path / "n.pt", *option)
        assert (code, out) == (2, "")
        assert "are for the name of a model" in " ".join(err.replace("│", "").split())
    assert not (tmp_path / "n.pt").exists()


def test_info_of_a_file(run, exported):
    code, out, _ = run("info", exported)
    assert code == 0
    for words in ("schema_version", "sifa_tiny", "class_0, class_1", "112 x 112", "tolerance 0.001"):
        assert words in out
    code, out, _ = run("info", exported, "--json")
    assert json.loads(out) == load_artifact(exported).metadata


def test_info_of_a_model(run):
    code, out, _ = run("info", "sifa_resnet50")
    assert code == 0
    assert "224 x 224" in out
    code, out, _ = run("info", "sifa_tiny", "--json")
    card = json.loads(out)
    assert card["parameters"] == sum(p.numel() for p in sifa.create_model("sifa_tiny").parameters())
    assert card["weights"] == card["streaming_weights"] == ["motion"]


def test_models(run):
    code, out, _ = run("models")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == sifa.list_models()
    code, out, _ = run("models", "--json")
    assert [card["name"] for card in json.loads(out)] == sifa.list_models()


def test_many_labels_are_cut_short():
    shown = cli.models._shown("labels", [f"class_{i}" for i in range(400)])
    assert shown.endswith("class_9, ... (400 in all)")


def test_version_and_help(run):
    assert run("--version") == (0, f"sifa {sifa.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("export", "info", "models", "demo"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "sifa_tini", "-o", "m.pt"], "no model is called 'sifa_tini'; did you mean 'sifa_tiny'"),
        (
            ["export", "sifa_resnet18", "-o", "m.pt"],
            "sifa_resnet18 has no bundled weights: give --weights FILE",
        ),
        (["export", "sifa_tiny", "-o", "m.pt", "--weights", "no.safetensors"], "no.safetensors"),
        (
            ["export", "sifa_tiny", "-o", "m.pt", "--random-weights", "--num-frames", "7"],
            "multiple of 4, got 7",
        ),
        (["export", "sifa_tiny", "-o", "no/m.pt", "--random-weights"], "there is no folder no"),
        (["export", "sifa_tiny", "-o", ".", "--random-weights"], "cannot write .: it is a folder"),
        (
            ["info", "missing.pt"],
            "there is no file missing.pt, and no model of that name: sifa_convnext_atto, ",
        ),
        (["info", "text.pt"], "text.pt is not a SIFA artifact"),
        (
            ["export", "sifa_tiny", "-o", "m.pt", "--weights", "text.safetensors"],
            "text.safetensors is not a safetensors file: ",
        ),
        (["export", "text.pt", "-o", "m.pt"], "text.pt is no model: expected a folder of save_pretrained"),
        (["export", "text.ckpt", "-o", "m.pt"], "text.ckpt cannot be read as a checkpoint of `sifa train`: "),
        (["export", ".", "-o", "m.pt"], "the folder . has no"),
        (["export", "runs/no/last.ckpt", "-o", "m.pt"], "there is no checkpoint runs/no/last.ckpt"),
        (["export", "runs/no", "-o", "m.pt"], "there is no folder or file runs/no, and no model"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.pt", "text.ckpt", "text.safetensors"):
        (tmp_path / name).write_text("no model, no weights")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("sifa: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "m.pt").exists()


@pytest.mark.parametrize(
    "arguments",
    [["export"], ["export", "sifa_tiny"], ["nonsense"], ["info", "a", "b"]]
    + [["export", "sifa_tiny", "-o", "m.pt", "--weights", "w", "--random-weights"]],
)
def test_bad_usage_is_exit_code_2(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err


def commands_in_documents():
    """Every `sifa …` line in a shell block of the documents."""
    top = Path(__file__).parents[2]
    for document in [top / "README.md", top / "CONTRIBUTING.md", *sorted((top / "docs").glob("*.md"))]:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"(?:^|\s|/)sifa (.*)", line.split("#")[0]):
                    words = shlex.split(found[1])
                    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")]
                    yield f"{document.name}: {line}", words[: ends[0] if ends else None]


def test_commands_in_the_documents_can_be_parsed():
    command = get_command(cli.app)
    names = set()
    for where, words in commands_in_documents():
        assert words[0] in command.commands, where
        try:
            command.commands[words[0]].make_context(words[0], list(words[1:]))
        except Exception as error:
            pytest.fail(f"{where}: {error}")
        names.add(words[0])
    assert {"export", "eval", "predict", "visualize"} <= names


def test_importing_the_command_line_does_not_import_the_models():
    code = "import sys, sifa.cli; print([n for n in ('timm', 'torchvision', 'PIL') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
