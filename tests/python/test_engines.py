"""Every format, kind and precision of artifact: the same answers, the same metadata, refusals by name."""

import json
import subprocess
import warnings
import zipfile

import numpy as np
import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from sifa import cli
from sifa.artifact import (
    ArtifactError,
    FrameClassifier,
    compile_program,
    export_program,
    export_torchscript,
    load_artifact,
    load_stream,
    read_metadata,
)
from sifa.artifact.metadata import KINDS
from sifa.models.streaming import StreamingClassifier

STRIDE, STEPS = 4, 6
FORMATS = ("torchscript", "exported", "aoti")


@pytest.fixture(scope="module")
def models():
    settings = {"num_classes": 5, "num_frames": 2 * STRIDE, "input_size": 64}
    return {
        "clip": lively_model(**settings, dropout=0.3),
        "window": lively_model(**settings, global_context="frame"),
        "streaming": lively_model(**settings, streaming=True),
    }


@pytest.fixture(scope="module")
def paths(models, tmp_path_factory):
    """An artifact of every format and kind; AOTInductor compiles three of them."""
    folder = tmp_path_factory.mktemp("engines")
    paths = {}
    for kind in KINDS:
        paths[kind, "torchscript"] = folder / f"{kind}.pt"
        paths[kind, "exported"] = folder / f"{kind}.exported.pt2"
        paths[kind, "aoti"] = folder / f"{kind}.pt2"
        export_torchscript(models[kind], paths[kind, "torchscript"], kind=kind)
        export_program(models[kind], paths[kind, "exported"], kind=kind)
        compile_program(paths[kind, "exported"], paths[kind, "aoti"])
    return paths


def stream(step, state, frames):
    answers = []
    for i in range(STEPS):
        first = torch.full((frames.shape[0],), i == 0)
        probabilities, state = step(frames[:, i * STRIDE : (i + 1) * STRIDE], state, first)
        answers.append(probabilities)
    return torch.stack(answers)


def some_frames(count, num_frames, height, width):
    """Strided, as a user's are."""
    return moving_blocks(num_frames, count=4, size=100)[:count, :, :height, :width]


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_gives_the_same_in_every_format(models, paths, format):
    artifact = load_artifact(paths["clip", format])
    for count, height, width in ((3, 70, 90), (1, 100, 41), (2, 64, 64)):
        frames = some_frames(count, 2 * STRIDE, height, width)
        with torch.no_grad():
            expected = FrameClassifier(models["clip"])(frames)
        assert expected.std() > 0.01
        torch.testing.assert_close(artifact(frames), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_gives_the_same_in_every_format(models, paths, format):
    artifact = load_stream(paths["streaming", format])
    stepping = StreamingClassifier(models["streaming"])
    for count, height, width in ((3, 70, 90), (1, 100, 41)):
        frames = some_frames(count, STEPS * STRIDE, height, width)
        with torch.no_grad():
            expected = stream(stepping, stepping.initial_state(count), frames)
        assert (expected[1:] - expected[:-1]).abs().max() > 1e-2
        answers = stream(artifact, artifact.initial_state(count), frames)
        torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)


def windows(model, frames):
    """What the clip model answers on every window of two steps of (N, F, H, W, 3), (windows, N, classes)."""
    classifier = FrameClassifier(model)
    ends = range(2 * STRIDE, frames.shape[1] + 1, STRIDE)
    with torch.no_grad():
        return torch.stack([classifier(frames[:, end - 2 * STRIDE : end]) for end in ends])


@pytest.mark.parametrize("format", FORMATS)
def test_a_window_equals_the_clip_in_every_format(models, paths, format):
    artifact = load_stream(paths["window", format])
    for count, height, width in ((3, 70, 90), (1, 100, 41)):
        frames = some_frames(count, STEPS * STRIDE, height, width)
        expected = windows(models["window"], frames)
        assert (expected[1:] - expected[:-1]).abs().max() > 1e-2
        state = [torch.full_like(tensor, float("nan")) for tensor in artifact.initial_state(count)]
        answers, begin = [], 0
        for steps in (2, 1, 1, 2):  # a window first; the last call moves on by a whole one
            given = frames[:, begin : begin + steps * STRIDE]
            answer, state = artifact(given, state, torch.full((count,), begin == 0))
            answers.append(answer)
            begin += steps * STRIDE
        torch.testing.assert_close(torch.stack(answers), expected[[0, 1, 2, 4]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", ["torchscript", "aoti"])
def test_the_cpp_runtime_gives_the_same(models, paths, format, runtime_module):
    frames = some_frames(3, 2 * STRIDE, 70, 90)
    with torch.no_grad():
        expected = FrameClassifier(models["clip"])(frames)
    classifier = runtime_module.Classifier(paths["clip", format])
    assert classifier.metadata == read_metadata(paths["clip", format])
    answers = torch.from_numpy(classifier.classify(frames.numpy()))
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)
    stepping = StreamingClassifier(models["streaming"])
    frames = some_frames(1, STEPS * STRIDE, 70, 90)
    with torch.no_grad():
        expected = stream(stepping, stepping.initial_state(1), frames)[:, 0]
    steps = runtime_module.Stream(paths["streaming", format], frame_stride=1)
    predictions = [steps.push(frame) for frame in frames[0].numpy()]
    answers = torch.tensor(np.stack([p.probabilities for p in predictions if p is not None]))
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)
    expected = windows(models["window"], frames)[:, 0]
    window = runtime_module.Stream(paths["window", format], frame_stride=1)
    predictions = [window.push(frame) for frame in frames[0].numpy()]
    answers = torch.tensor(np.stack([p.probabilities for p in predictions if p is not None]))
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cpp_runtime_in_half_precision(models, tmp_path, precision, kind, runtime_module):
    """Loading compares it with the recorded output, in the tolerance of its precision."""
    path = tmp_path / "half.pt"
    export_torchscript(models[kind], path, precision=precision, kind=kind)
    load = runtime_module.Classifier if kind == "clip" else runtime_module.Stream
    assert load(path).metadata["precision"] == precision


def test_the_metadata_says_what_the_file_is(models, paths):
    common = []
    for (kind, format), path in paths.items():
        metadata = read_metadata(path)
        assert metadata["kind"] == kind
        assert metadata["format"] == format
        assert metadata["temporal_stride"] == STRIDE
        assert metadata["model"]["config"] == models[kind].config
        assert ("compiled_for" in metadata) == (format == "aoti")
        if kind == "streaming":
            assert [entry["dtype"] for entry in metadata["state"]] == ["float32"] * 4 + ["int64"]
            assert metadata["state"][-2]["shape"] == [2, models[kind].head.in_features]
        if kind == "window":  # cut behind the first block, whose context is a frame's
            assert metadata["state"] == [{"shape": [2, 8, 8, 48], "dtype": "float32"}]
        common.append({key: metadata[key] for key in ("labels", "num_frames", "input_size", "sampling")})
    assert all(facts == common[0] for facts in common)
    assert read_metadata(paths["clip", "aoti"])["compiled_for"]["device"] == "cpu"


def test_each_kind_is_loaded_by_its_function(paths):
    with pytest.raises(ArtifactError, match="is a stream's, not a clip's: load it with load_stream"):
        load_artifact(paths["streaming", "torchscript"])
    with pytest.raises(ArtifactError, match="is a clip's, not a stream's: load it with load_artifact"):
        load_stream(paths["clip", "torchscript"])


def test_a_stream_checks_its_arguments(paths):
    artifact = load_stream(paths["streaming", "torchscript"])
    frames, first = some_frames(2, STRIDE, 20, 20), torch.ones(2, dtype=torch.bool)
    state = artifact.initial_state(2)
    with pytest.raises(
        ValueError, match=r"frames must be uint8 \(N, 4, H, W, 3\), RGB last, got uint8 \(2, 3"
    ):
        artifact(frames[:, :3], state, first)
    with pytest.raises(ValueError, match="state must be 5 tensors of 2 rows, .*, got 4 of shapes"):
        artifact(frames, state[1:], first)
    with pytest.raises(ValueError, match="state must be 5 tensors of 2 rows, as initial_state"):
        artifact(frames, artifact.initial_state(1), first)
    with pytest.raises(ValueError, match=r"first must be bool \(2,\), got int64 \(2,\)"):
        artifact(frames, state, first.long())


def test_a_window_checks_its_frames(paths):
    artifact = load_stream(paths["window", "torchscript"])
    state, first = artifact.initial_state(1), torch.ones(1, dtype=torch.bool)
    expected = r"frames must be uint8 \(N, 4 to 8 in steps of 4, H, W, 3\), .* got uint8 "
    for count in (3, 12):
        with pytest.raises(ValueError, match=expected + rf"\(1, {count}, 20, 20, 3\)"):
            artifact(some_frames(1, count, 20, 20), state, ~first)
    with pytest.raises(ValueError, match="frames must be the 8 of a window where a stream begins, got 4"):
        artifact(some_frames(1, 4, 20, 20), state, first)
    with pytest.raises(
        ValueError, match="as initial_state.* makes them, got 1 of shapes .* types .'float16'"
    ):
        artifact(some_frames(1, 4, 20, 20), [state[0].half()], ~first)


def changed(source, target, change, code=None):
    """A copy of an artifact with other metadata, or with `code` for everything else."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("extra/sifa.json"):
                metadata = json.loads(content)
                change(metadata)
                content = json.dumps(metadata).encode()
            elif code is not None:
                content = code
            new.writestr(entry, content)
    return target


@pytest.mark.parametrize(
    ("key", "field", "value", "message"),
    [
        (("streaming", "torchscript"), "state", [], "state must be a list of 1 to 1024 objects, each with"),
        (("streaming", "torchscript"), "state", [{"shape": [0], "dtype": "float32"}], "state must be a list"),
        (("streaming", "torchscript"), "state", [{"shape": [1], "dtype": "bool"}], "state must be a list"),
        (("streaming", "torchscript"), "state", [{"shape": [2**20] * 2, "dtype": "int64"}], "state must be"),
        (
            ("streaming", "torchscript"),
            "temporal_stride",
            3,
            "temporal_stride must be a divisor of num_frames, 8",
        ),
        (("window", "torchscript"), "state", [], "state must be a list of 1 to 1024 objects"),
        (
            ("window", "torchscript"),
            "state",
            [{"shape": [2, 8, 8, 48], "dtype": "float16"}],
            "cannot be run on its reference input: .*float32",
        ),
        (
            ("window", "torchscript"),
            "state",
            [{"shape": [2, 7, 8, 48], "dtype": "float32"}],
            "cannot be run on its reference input: .*Sizes of tensors must match",
        ),
        (
            ("window", "torchscript"),
            "state",
            [{"shape": [3, 8, 8, 48], "dtype": "float32"}],
            "state must be one tensor of 2 rows, the steps of the window",
        ),
        (("streaming", "torchscript"), "kind", "window", "state must be one tensor of 2 rows"),
        (
            ("window", "torchscript"),
            "kind",
            "streaming",
            "state must be such that the last two tensors",
        ),
        (("streaming", "torchscript"), "num_frames", 16384, "the last two tensors are 4096 rows"),
        (
            ("streaming", "aoti"),
            "state",
            [{"shape": [1, 1, 1], "dtype": "float32"}] * 3
            + [{"shape": [2, 96], "dtype": "float32"}, {"shape": [], "dtype": "int64"}],
            "compiled for streaming of 8 frames in steps of 4, .* metadata states streaming of 8 frames",
        ),
        (("clip", "aoti"), "num_frames", 16, "compiled for clip of 8 frames .* states clip of 16 frames"),
        (("window", "torchscript"), "temporal_stride", 3, "temporal_stride must be a divisor of num_frames"),
        (("clip", "torchscript"), "temporal_stride", None, "temporal_stride must be an integer from 1 to 8"),
        (("clip", "torchscript"), "format", "exported", "entry 'data.pkl' is none .* of format exported"),
        (
            ("clip", "exported"),
            "format",
            "torchscript",
            "is none that torch writes into a file of format torch",
        ),
        (
            ("clip", "torchscript"),
            "precision",
            "int8",
            "precision 'int8', sifa .* reads 'float32' or 'float16'",
        ),
        (("clip", "aoti"), "compiled_for", {"device": "cpu"}, "compiled_for must be an object of strings"),
        (
            ("clip", "aoti"),
            "compiled_for",
            {"device": "cpu", "machine": "x86_64", "cpu": "Z80"},
            "was compiled for cpu 'Z80', not for '.*': compile the exported program here",
        ),
        (
            ("clip", "aoti"),
            "compiled_for",
            {"device": "cuda", "machine": "x86_64", "cpu": "AVX2"},
            "was compiled for device 'cuda', not for 'cpu'",
        ),
    ],
)
def test_metadata_that_lies_is_refused_by_name(paths, tmp_path, key, field, value, message):
    path = changed(paths[key], tmp_path / "changed.pt", lambda metadata: metadata.update({field: value}))
    load = load_artifact if key[0] == "clip" else load_stream
    with pytest.raises(ArtifactError, match=message):
        load(path)


@pytest.mark.parametrize("format", ["exported", "aoti"])
def test_a_package_that_torch_cannot_load_is_refused(paths, tmp_path, format):
    path = changed(paths["clip", format], tmp_path / "broken.pt2", lambda metadata: None, b"garbage")
    with pytest.raises(ArtifactError, match=r"torch .* cannot load .*broken.pt2, exported by torch"):
        load_artifact(path)


def test_another_reference_output_is_refused(paths, tmp_path):
    def change(metadata):
        metadata["reference"]["probabilities"].reverse()

    path = changed(paths["streaming", "aoti"], tmp_path / "changed.pt2", change)
    with pytest.raises(ArtifactError, match="reference output differs by"):
        load_stream(path)


@pytest.mark.parametrize("flag", ["-static-libstdc++", ""])
def test_a_compiler_that_links_its_library_statically(paths, tmp_path, monkeypatch, flag):
    """Any package made by it crashes while it loads, so it must not get there."""
    (tmp_path / "code.cpp").write_text("#include <iostream>\nvoid f() { std::cout << 1; }\n")
    library = tmp_path / "code.so"
    subprocess.run(
        ["g++", "-shared", "-fPIC", tmp_path / "code.cpp", "-o", library, *flag.split()], check=True
    )

    def compile_to(program, package_path, inductor_configs):
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.write(library, "model/data/aotinductor/model/code.so")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_to)
    output = tmp_path / "model.pt2"
    # What is no model, but linked as it should be, is refused only when it is loaded.
    message = "put its standard library into the package" if flag else "cannot load .*model.pt2"
    with pytest.raises(RuntimeError if flag else ArtifactError, match=message):
        compile_program(paths["clip", "exported"], output)
    assert not output.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_size_becomes_a_tensor(paths, kind):
    """A trace may hold sizes as tensors of the CPU, which on a GPU fail or have to be waited for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
        graph = str(torch.jit.load(paths[kind, "torchscript"]).inlined_graph)
    assert "aten::softmax" in graph
    assert "prim::NumToTensor" not in graph


@pytest.mark.parametrize("kind", ["window", "streaming"])
def test_no_device_is_fixed_by_tracing(tmp_path, kind):
    """Offsets from a difference index frames, on the device where they are."""
    options = {"num_classes": 5, "num_frames": 2 * STRIDE, "input_size": 64, "offset_from": "difference"}
    model = lively_model(**options, streaming=kind == "streaming")
    export_torchscript(model, tmp_path / "model.pt", kind=kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
        graph = str(torch.jit.load(tmp_path / "model.pt").inlined_graph)
    assert "aten::arange" in graph
    assert 'Device = prim::Constant[value="cpu"]' not in graph


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(models, tmp_path, precision, kind):
    metadata = export_torchscript(models[kind], tmp_path / "half.pt", precision=precision, kind=kind)
    assert metadata["precision"] == precision
    whole = export_torchscript(models[kind], tmp_path / "whole.pt", kind=kind)
    assert (tmp_path / "half.pt").stat().st_size < 0.6 * (tmp_path / "whole.pt").stat().st_size
    difference = torch.tensor(metadata["reference"]["probabilities"]) - torch.tensor(
        whole["reference"]["probabilities"]
    )
    assert 0 < difference.abs().max() < (0.1 if precision == "bfloat16" else 0.02)
    load = load_artifact if kind == "clip" else load_stream
    loaded = load(tmp_path / "half.pt")  # which runs it on its reference input
    if kind == "streaming":
        assert [entry["dtype"] for entry in metadata["state"]] == [precision] * 3 + ["float32", "int64"]
        assert loaded.initial_state(1)[0].dtype == getattr(torch, precision)


def test_a_package_in_half_precision(models, tmp_path, runtime_module):
    export_program(models["streaming"], tmp_path / "program.pt2", precision="bfloat16", kind="streaming")
    path = tmp_path / "model.pt2"
    compile_program(tmp_path / "program.pt2", path)
    loaded = load_stream(path)
    assert loaded.initial_state(1)[0].dtype == torch.bfloat16
    stream = runtime_module.Stream(path, frame_stride=1)
    frames = some_frames(1, 2 * STRIDE, 70, 90)
    state, answers = loaded.initial_state(1), []
    for i in (0, 1):
        part = frames[:, i * STRIDE : (i + 1) * STRIDE]
        probabilities, state = loaded(part, state, torch.tensor([i == 0]))
        answers += [a.probabilities for f in part[0].numpy() if (a := stream.push(f)) is not None]
        np.testing.assert_allclose(answers[i], probabilities[0].numpy(), atol=1e-6)


def test_what_cannot_be_exported(models, tmp_path):
    for export in (export_torchscript, export_program):
        with pytest.raises(
            ValueError, match="precision must be 'float32' or 'float16' or 'bfloat16', got 'x'"
        ):
            export(models["clip"], tmp_path / "m", precision="x")
        with pytest.raises(ValueError, match="kind must be 'clip' or 'window' or 'streaming', got 'x'"):
            export(models["clip"], tmp_path / "m", kind="x")
        with pytest.raises(
            ValueError, match="cannot be streamed: SIFA at backbone.layer2.1.conv2 depends on"
        ):
            export(models["clip"], tmp_path / "m", kind="streaming")
        with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
            export(models["clip"], tmp_path / "nowhere" / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_compiled(paths, tmp_path, monkeypatch):
    output = tmp_path / "m.pt2"
    with pytest.raises(
        ArtifactError, match="has format 'torchscript': only an exported program can be compiled"
    ):
        compile_program(paths["clip", "torchscript"], output)
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", got \'tpu\''):
        compile_program(paths["clip", "exported"], output, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="device cuda is not available: torch sees no GPU"):
            compile_program(paths["clip", "exported"], output, "cuda")
    broken = changed(paths["clip", "exported"], tmp_path / "broken.pt2", lambda metadata: None, b"garbage")
    with pytest.raises(ArtifactError, match=r"torch .* cannot load .*broken.pt2"):
        compile_program(broken, output)

    def no_compiler(*_, **__):
        raise RuntimeError("no g++\nand a long story")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    with pytest.raises(RuntimeError, match=r"was not compiled: no g\+\+; AOTInductor needs a C\+\+ compiler"):
        compile_program(paths["clip", "exported"], output)
    assert not output.exists()


def test_the_command_line(tmp_path, capsys, monkeypatch):
    """Every choice reaches the file; the compiler itself is tested above."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        return exit_.value.code, *capsys.readouterr()

    small = ["export", "sifa_tiny", "--random-weights", "--num-frames", "8", "--num-classes", "3", "-o"]
    path = tmp_path / "m.pt2"
    code, out, _ = run(*small, path, "--streaming", "--format", "exported", "--precision", "bfloat16")
    assert code in (0, None)
    metadata = read_metadata(path)
    assert (metadata["kind"], metadata["format"], metadata["precision"]) == (
        "streaming",
        "exported",
        "bfloat16",
    )
    assert metadata["model"]["config"]["frame_shift"] == -1
    assert load_stream(path).stride == 4
    assert "streaming" in run("info", path)[1]
    code, _, _ = run(*small, tmp_path / "window.pt", "--window")
    assert code in (0, None)
    assert read_metadata(tmp_path / "window.pt")["kind"] == "window"
    code, _, err = run(*small, path, "--window", "--streaming")
    assert code == 2
    assert "give --streaming or --window, not both" in err
    compiled = []

    def compile_(program, output, device="cpu"):
        compiled.append((read_metadata(program)["format"], output, device))
        output.write_bytes(b"x")
        return read_metadata(program)

    monkeypatch.setattr(sifa.artifact, "compile_program", compile_)
    assert run("compile", path, "-o", tmp_path / "a.pt2", "--device", "cuda")[0] in (0, None)
    assert run(*small, tmp_path / "b.pt2", "--format", "aoti")[0] in (0, None)
    assert compiled == [
        ("exported", tmp_path / "a.pt2", "cuda"),
        ("exported", tmp_path / "b.pt2", "cpu"),
    ]
    assert run(*small, path, "--format", "onnx")[0] == 2
    code, _, err = run("export", "sifa_resnet18", "--streaming", "-o", path)
    assert code == 1
    assert "sifa_resnet18 has no bundled weights of its causal variant: give --weights FILE" in err
    monkeypatch.undo()
    code, _, err = run("compile", tmp_path / "none.pt2", "-o", path)
    assert (code, err.count("\n")) == (1, 1)
    assert "there is no file" in err
