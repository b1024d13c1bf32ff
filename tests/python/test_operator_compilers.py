"""The operator and the block through TorchScript, torch.compile, torch.export and AOTInductor."""

import io
import logging
import warnings

import pytest
import sifa
import torch
from torch.testing import assert_close

# TorchScript is deprecated upstream and still what C++ loads.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


@pytest.fixture
def block(randomize_offsets):
    clip = torch.randn(2, 8, 4, 6, 7)
    return randomize_offsets(sifa.SIFA(8, groups=2, softmax=True), 1.5, clip)


def gradients_of(function, *inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


def saved_and_loaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


# --- TorchScript ------------------------------------------------------------------------------------------


def test_script_of_the_function(make_inputs, device):
    inputs = make_inputs(device=device)
    scripted = torch.jit.script(sifa.inter_frame_attention)
    for _ in range(3):  # the profiling executor changes its mind in the first calls
        assert_close(
            gradients_of(scripted, *inputs), gradients_of(sifa.inter_frame_attention, *inputs), rtol=0, atol=0
        )


def motion(query: torch.Tensor, memory: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """What a user writes."""
    half = offset / 2
    ahead = sifa.inter_frame_attention(query, memory, half, kernel_size=3, edge="skip", residual=False)
    behind = sifa.inter_frame_attention(
        query, memory, half, groups=2, scale=0.5, frame_shift=-1, softmax=True
    )
    return ahead - behind


def test_script_of_a_users_function(make_inputs, device):
    inputs = make_inputs(device=device)
    scripted = saved_and_loaded(torch.jit.script(motion))
    assert_close(gradients_of(scripted, *inputs), gradients_of(motion, *inputs))


@pytest.mark.parametrize("offset_from", ["saliency", "memory", "difference", "clip", "none"])
def test_script_of_the_block(randomize_offsets, offset_from):
    clip = torch.randn(2, 8, 4, 6, 7)
    block = sifa.SIFA(8, offset_from=offset_from, residual_saliency=offset_from == "saliency")
    if offset_from != "none":
        randomize_offsets(block, 1.5, clip)
    scripted = saved_and_loaded(torch.jit.script(block))
    assert_close(gradients_of(scripted, clip), gradients_of(block, clip))
    # Another T, H and W, and another number of clips.
    other = torch.randn(3, 8, 5, 4, 9)
    assert_close(scripted(other), block(other))


def test_frozen_block(block):
    frozen = torch.jit.freeze(torch.jit.script(block.eval()))
    clip = torch.randn(2, 8, 4, 6, 7)
    with torch.no_grad():
        assert_close(frozen(clip), block(clip))


def test_scripted_errors_name_the_argument(make_inputs):
    query, memory, offset = make_inputs()
    with pytest.raises(RuntimeError, match="inter_frame_attention: offset must have 2.kernel_size.2 = 50"):
        torch.jit.script(sifa.inter_frame_attention)(query, memory, offset, 5)


# --- torch.compile ----------------------------------------------------------------------------------------

SIZES = [(2, 3, 5, 7), (2, 4, 5, 7), (2, 4, 9, 7), (2, 4, 9, 12), (3, 6, 8, 10), (5, 2, 2, 3)]


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _fresh_counters():
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compiled_operator_does_not_recompile(make_inputs, device, requires_grad):
    def call(query, memory, offset):
        return sifa.inter_frame_attention(query, memory, offset, softmax=True)

    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    for batch, frames, height, width in SIZES:
        inputs = make_inputs(batch, 8, frames, height, width, frames + 1, device=device)
        if requires_grad:
            assert_close(gradients_of(compiled, *inputs), gradients_of(call, *inputs))
        else:
            assert_close(compiled(*inputs), call(*inputs))
    assert graphs() == 1


@pytest.fixture
def recompile_reasons():
    """Collect why torch compiled again."""
    reasons = []

    class Collector(logging.Handler):
        def emit(self, record):
            reasons.append(record.getMessage())

    logger = logging.getLogger("torch._dynamo.guards.__recompiles")
    handler = Collector()
    torch._logging.set_logs(recompiles=True)
    logger.addHandler(handler)
    yield reasons
    logger.removeHandler(handler)
    torch._logging.set_logs()


def test_compiled_block_does_not_recompile(block, recompile_reasons):
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, frames, height, width in SIZES:
            clip = torch.randn(batch, 8, frames, height, width)
            assert_close(compiled(clip), block(clip))
    assert graphs() == 1, recompile_reasons


def test_compiled_block_trains(block):
    """The gradients of the clip and of the weights, with every size dynamic."""
    clip = torch.randn(2, 8, 4, 6, 7)
    weight = block.conv_offset.weight
    results = []
    for function in (torch.compile(block, fullgraph=True, dynamic=True), block):
        leaf = clip.clone().requires_grad_()
        output = function(leaf)
        results.append([output, *torch.autograd.grad(output.square().sum(), (leaf, weight))])
    for compiled, eager in zip(*results, strict=True):
        assert_close(compiled, eager, rtol=1e-4, atol=1e-5 * eager.abs().max().item())


@pytest.mark.parametrize("offset_from", ["memory", "difference", "clip", "none"])
def test_compiled_block_with_other_offsets_trains(randomize_offsets, offset_from):
    clip = torch.randn(2, 8, 4, 6, 7)
    block = sifa.SIFA(8, offset_from=offset_from, frame_shift=-1)
    if offset_from != "none":
        randomize_offsets(block, 1.5, clip)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_close(gradients_of(compiled, clip), gradients_of(block, clip), rtol=1e-4, atol=1e-4)


def test_compiled_under_autocast(make_inputs):
    inputs = make_inputs()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(query, memory, offset):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sifa.inter_frame_attention(query, memory, offset)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients_of(sifa.inter_frame_attention, *inputs)
    assert_close(gradients_of(compiled, *inputs), expected, rtol=0, atol=0)


def test_compiled_errors_name_the_argument(make_inputs):
    query, memory, offset = make_inputs()
    compiled = torch.compile(sifa.inter_frame_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    with pytest.raises(
        RuntimeError, match="inter_frame_attention: kernel_size must be odd and between 1 and 9"
    ):
        compiled(query, memory, offset, 4)


# --- torch.export and AOTInductor -------------------------------------------------------------------------


@pytest.fixture
def exported(block):
    clip = torch.randn(2, 8, 4, 6, 7).contiguous(memory_format=torch.channels_last_3d)
    dimensions = {
        axis: torch.export.Dim(name, min=2, max=64) for axis, name in {2: "t", 3: "h", 4: "w"}.items()
    }
    return torch.export.export(block.eval(), (clip,), dynamic_shapes={"clip": dimensions})


def test_export(block, exported):
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.sifa.inter_frame_attention.default) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.export.save(exported, file)
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    for size in ((2, 8, 4, 6, 7), (2, 8, 3, 9, 5)):
        clip = torch.randn(size).contiguous(memory_format=torch.channels_last_3d)
        assert_close(loaded(clip), block(clip))


def test_aot_inductor(block, exported, tmp_path):
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "block.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for size in ((2, 8, 4, 6, 7), (2, 8, 3, 9, 5)):
        clip = torch.randn(size).contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            assert_close(loaded(clip), block(clip))
