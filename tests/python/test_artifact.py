"""The artifact: what is in the file, that it computes what the model does, and every reason to refuse one."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from make_runtime_data import SmallModel, stream_model
from sifa.artifact import (
    ArtifactError,
    FrameClassifier,
    export_torchscript,
    load_artifact,
    read_metadata,
    reference_frames,
)

CLASSES = 5


@pytest.fixture(scope="module")
def model():
    return lively_model(num_classes=CLASSES, num_frames=8)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "tiny.pt"
    export_torchscript(model, path)
    return path


@pytest.fixture
def rewritten(path, tmp_path):
    """Writes the artifact again with other metadata (a function of the old) or without its entry."""

    def rewrite(change):
        result = tmp_path / "changed.pt"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(result, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("sifa.json"):
                    metadata = change(json.loads(content))
                    if metadata is None:
                        continue
                    content = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
                target.writestr(entry, content)
        return result

    return rewrite


def with_field(**fields):
    return lambda metadata: {**metadata, **fields}


def test_reference_frames_are_the_documented_integers():
    frames = reference_frames(3, (5, 4))
    assert frames.shape == (1, 3, 22, 44, 3)
    assert frames.dtype == torch.uint8
    for t, y, x, c in [(0, 0, 0, 0), (2, 21, 43, 2), (1, 7, 30, 1), (2, 0, 43, 0)]:
        assert frames[0, t, y, x, c] == (17 * t * x + 7 * y + 13 * x + 31 * t + 61 * c + ((x * y) >> 3)) % 256


def test_metadata(model, path):
    metadata = read_metadata(path)
    assert metadata["schema_version"] == 1
    assert metadata["kind"] == "clip"
    assert metadata["format"] == "torchscript"
    assert metadata["sampling"] == "center"
    assert metadata["precision"] == "float32"
    assert metadata["model"] == {"name": "sifa_tiny", "config": model.config}
    assert metadata["labels"] == model.labels
    assert metadata["num_frames"] == 8
    assert metadata["frame_stride"] == model.frame_stride
    assert metadata["input_size"] == [112, 112]
    assert metadata["torch_version"] == torch.__version__
    assert metadata["sifa_version"] == sifa.__version__
    assert metadata["operator_schema"].startswith("sifa::inter_frame_attention(Tensor query, Tensor memory")
    assert metadata["reference"]["shape"] == [1, 8, 129, 152, 3]
    assert sum(metadata["reference"]["probabilities"]) == pytest.approx(1, abs=1e-5)
    rebuilt = sifa.create_model(metadata["model"]["name"], **metadata["model"]["config"])
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_cost_is_what_one_counts_by_hand(tmp_path):
    """A multiply-add is two operations; a tap of the operator, 6 of them per channel."""
    cost = export_torchscript(SmallModel().eval(), tmp_path / "model.pt")["cost"]
    pixels, taps = 4 * 16 * 16, 9
    stem, offsets, operator, head = 8 * 3 * 9, 18 * 8 * 9, 6 * taps * 8, 3 * 8
    assert cost["operations"] == 2 * (pixels * (stem + offsets + operator) + head)
    assert cost["weight_bytes"] == 4 * (stem + 8 + offsets + head + 3)


def test_cost_of_a_step_is_its_part_of_a_clip(tmp_path):
    model = stream_model()
    clip, window, step = (
        export_torchscript(model, tmp_path / "model.pt", kind=kind)["cost"]["operations"]
        for kind in ("clip", "window", "streaming")
    )
    assert step * model.num_steps == pytest.approx(clip, rel=1e-3)
    assert step < window < clip


def test_computes_what_the_model_computes(model, path):
    artifact = load_artifact(path)
    frames = moving_blocks(8, count=3)[:, :, :90]
    with torch.no_grad():
        expected = FrameClassifier(model)(frames)
    assert expected.std() > 0.01
    torch.testing.assert_close(artifact(frames), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(artifact(frames.numpy()), expected, rtol=0, atol=1e-5)
    assert artifact.labels == model.labels
    assert (artifact.num_frames, artifact.frame_stride) == (8, model.frame_stride)


def test_export_leaves_the_model_as_it_was(model, tmp_path):
    model.train()
    model.backbone.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        export_torchscript(model, tmp_path / "model.pt")
        assert model.training
        assert not model.backbone.bn1.training
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_processes_write_the_same_bytes_under_any_name(tmp_path):
    code = "import sys; from sifa.cli import main; main(sys.argv[1:])"
    digests = set()
    for name in ("one.pt", "two.bin"):
        arguments = ["export", "sifa_tiny", "--random-weights", "-o", str(tmp_path / name)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_file_tells_nothing_of_the_machine_that_wrote_it(path):
    folders = {os.path.dirname(module.__file__).encode() for module in (sifa, torch)}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not any(folder in content for folder in folders), name


def test_nothing_is_written_when_export_fails(model, tmp_path):
    labels, model.labels = model.labels, ["too", "few"]
    try:
        with pytest.raises(ValueError, match="5 outputs but 2 labels"):
            export_torchscript(model, tmp_path / "model.pt")
    finally:
        model.labels = labels
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        export_torchscript(model, tmp_path / "nowhere" / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_field(schema_version=2), "has schema_version 2, sifa .* reads 1: export it again"),
        (with_field(schema_version="1"), "schema_version must be an integer, got '1'"),
        (with_field(kind="stream"), "kind 'stream', sifa .* reads 'clip'"),
        (with_field(format="pt2"), "format 'pt2', sifa .* reads 'torchscript'"),
        (with_field(sampling="random"), "sampling 'random', sifa .* reads 'center' or 'segments'"),
        (with_field(precision=None), "precision must be a string, got None"),
        (with_field(model="sifa_tiny"), "model must be an object, got 'sifa_tiny'"),
        (with_field(model={}), "model.name must be a string, got None"),
        (with_field(labels=["a", "b"]), "reference.probabilities must be a list of 2 numbers, one per label"),
        (with_field(labels=None), "labels must be a list of at least one string, got None"),
        (with_field(labels=[1, 2, 3, 4, 5]), "labels must be a list of at least one string, got"),
        (with_field(num_frames=0), "num_frames must be an integer from 1 to 16384, got 0"),
        (with_field(frame_stride="x"), "frame_stride must be an integer from 1 to .*, got 'x'"),
        (with_field(input_size=[112]), r"input_size must be \[height, width\], each from 1 to 16384, got"),
        (with_field(input_size=[16384, 16384]), "input_size must be such that a clip, .*, has at most 1 GiB"),
        (
            with_field(input_size=[1, 16384], num_frames=16384),
            "17 pixels higher and 40 wider, has at most 1 GiB",
        ),
        (with_field(reference={}), "reference.probabilities must be a list of 5 numbers, .* got None"),
        (
            with_field(reference={"probabilities": [0, 0, 0, 0, 10**400], "tolerance": 1}),
            "reference.probabilities must be a list of 5 numbers",
        ),
        (
            with_field(reference={"probabilities": [0.2] * 5, "tolerance": -1}),
            "reference.tolerance must be a number above 0, got -1",
        ),
        (with_field(cost=7), "cost must be an object, got 7"),
        (with_field(cost={"operations": 1}), "cost.weight_bytes must be an integer from 0 to .*, got None"),
        (lambda metadata: None, "is not a SIFA artifact: it has no entry extra/sifa.json"),
        (lambda metadata: [], "is not a SIFA artifact: its entry extra/sifa.json is not a JSON object"),
        (lambda metadata: b"{", "is not a SIFA artifact: its entry extra/sifa.json is not JSON"),
        (with_field(num_frames=float("nan")), "extra/sifa.json is not JSON: NaN is not a JSON number"),
    ],
)
def test_metadata_is_refused_by_name(rewritten, change, message):
    changed = rewritten(change)
    with pytest.raises(ArtifactError, match=message):
        read_metadata(changed)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(changed)


def test_another_reference_output_is_refused(rewritten):
    def change(metadata):
        metadata["reference"]["probabilities"][0] += 0.01
        return metadata

    changed = rewritten(change)
    assert read_metadata(changed)["num_frames"] == 8
    with pytest.raises(ArtifactError, match=r"reference output differs by 1\.0e-02 .* tolerance 1e-03"):
        load_artifact(changed)


def test_an_output_that_is_not_a_number_is_refused(path, monkeypatch):
    monkeypatch.setattr(
        torch.jit, "load", lambda *_, **__: lambda frames: torch.full((1, CLASSES), torch.nan)
    )
    with pytest.raises(ArtifactError, match="reference output differs by nan"):
        load_artifact(path)


def test_another_operator_is_refused(rewritten):
    changed = rewritten(with_field(operator_schema="sifa::other()"))
    assert read_metadata(changed)["operator_schema"] == "sifa::other()"
    with pytest.raises(
        ArtifactError, match="needs another operator: it was exported for 'sifa::other.*export"
    ):
        load_artifact(changed)


def test_a_graph_that_cannot_be_run_is_refused_with_its_reason(rewritten):
    with pytest.raises(
        ArtifactError, match=r"reference input: builtins\.ValueError: clip must have 8 frames, got 9"
    ):
        load_artifact(rewritten(with_field(num_frames=9)))


def test_labels_that_do_not_match_the_graph_are_refused(rewritten):
    def change(metadata):
        metadata["labels"].append("sixth")
        metadata["reference"]["probabilities"].append(0.0)
        return metadata

    with pytest.raises(ArtifactError, match="labels has 6 names for 5 outputs"):
        load_artifact(rewritten(change))


@pytest.mark.parametrize("keep", [0, 3, 1000, -1000, -1])
def test_a_truncated_file_is_refused(path, tmp_path, keep):
    (tmp_path / "short.pt").write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ArtifactError, match=r"damaged or truncated|is not a SIFA artifact: it is no zip file"
    ):
        load_artifact(tmp_path / "short.pt")


def test_a_flipped_bit_is_refused(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged: the checksum of its entry .*constants"):
        load_artifact(tmp_path / "flipped.pt")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*missing.pt"):
        load_artifact(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not a model")
    with pytest.raises(ArtifactError, match="text.pt is not a SIFA artifact: it is no zip file"):
        load_artifact(tmp_path / "text.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ArtifactError, match="weights.pt is not a SIFA artifact: it has no entry"):
        load_artifact(tmp_path / "weights.pt")


def test_a_graph_that_torch_cannot_load_is_refused(path, tmp_path):
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(broken, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry, b"def forward(" if entry.filename.endswith(".py") else content)
    with pytest.raises(ArtifactError, match=r"torch .* cannot load .*broken.pt, exported by torch"):
        load_artifact(broken)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((8, 4, 4, 3), np.uint8),
        np.zeros((1, 7, 4, 4, 3), np.uint8),
        np.zeros((1, 8, 4, 4, 3), np.float32),
        np.zeros((1, 8, 3, 4, 4), np.uint8),
    ],
)
def test_frames_are_checked(path, frames):
    with pytest.raises(
        ValueError, match=r"frames must be uint8 \(N, 8, H, W, 3\), RGB last, got (uint8|float32) \("
    ):
        load_artifact(path)(frames)
