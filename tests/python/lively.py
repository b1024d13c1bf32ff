"""Modules and models for tests of equality: nothing in them is zero, saturated or indifferent to its input.

Offsets start at zero, and a random network's probabilities are 0 and 1: comparing two engines on such a
model proves nothing. Here offsets have a standard deviation of 2 pixels and logits one of 1.5.
"""

import sifa
import torch
from sifa.artifact import FrameClassifier


def moving_blocks(num_frames, count=6, size=112):
    """Clips of sharp, moving blocks, coarse and fine: uint8 `(count, num_frames, size, size, 3)`."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for index in range(count):
        blocks = torch.randint(0, 2, (3, 3 + 2 * index, 3 + 2 * index), generator=generator) * 255.0
        image = torch.nn.functional.interpolate(blocks[None], size=(size, size))[0].permute(1, 2, 0)
        clips.append(torch.stack([image.roll((t * (index - 2), 2 * t), (0, 1)) for t in range(num_frames)]))
    return torch.stack(clips).to(torch.uint8)


def lively_model(name="sifa_tiny", clips=None, opening=1.0, **settings):
    """A model in eval mode: random weights, calibrated batch norms, large offsets, spread probabilities.

    The last norm of a residual branch starts at 0 and is opened. Norms are calibrated to the clips (by
    default moving blocks): in an untrained network the aggregate, cubic in the features, would otherwise
    grow from block to block beyond any number. With an ``opening`` (the weights of these norms; of all norms
    where none starts at 0) below 1, rounding errors grow less.
    """
    torch.manual_seed(0)
    model = sifa.create_model(name, **settings)
    if clips is None:
        clips = FrameClassifier(model).preprocessing(
            moving_blocks(model.num_frames, size=model.input_size[0])
        )
    return enliven(model, clips, opening)


def enliven(model, clips, opening=1.0):
    """What :func:`lively_model` does to a classifier; in place."""
    model.train()
    with torch.no_grad():
        # Transformers and ConvNeXt start with branches of next to nothing.
        for module in model.backbone.modules():
            if (
                isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.bias is not None
            ):  # no norm follows
                torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if getattr(module, "gamma", None) is not None:
                torch.nn.init.ones_(module.gamma)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in [norm for norm in norms if not norm.weight.any()] or norms:
            torch.nn.init.constant_(norm.weight, opening)
        randomize_offsets(model, 2.0, clips)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the statistics become those of all the clips seen since the reset
        model(clips)
        model.eval()
        for index, head in enumerate((model.head, model.head_dual)):
            if head is not None:
                head.weight /= model.forward_heads(clips)[:, index].std() / 1.5
                head.bias -= model.forward_heads(clips)[:, index].mean(0)
    return model


def randomize_offsets(module, sigma, *inputs):
    """Gives every SIFA layer in a module offsets of standard deviation ``sigma`` pixels; returns the module.

    A new layer has none, so a test with it proves nothing about deformation. ``module(*inputs)`` is run once;
    the ``conv_offset`` of each layer is scaled just before the layer runs, when those before it are done.
    """
    layers = [
        layer for layer in module.modules() if isinstance(layer, sifa.SIFA) and layer.conv_offset is not None
    ]
    assert layers, "the module has no SIFA layer with a conv_offset"

    def calibrate(layer, inputs):
        layer.conv_offset.weight *= sigma / layer.offset(inputs[0]).float().std()

    with torch.no_grad():
        for layer in layers:
            torch.nn.init.normal_(layer.conv_offset.weight)
        hooks = [layer.register_forward_pre_hook(calibrate) for layer in layers]
        module(*inputs)
        for hook in hooks:
            hook.remove()
    return module


def offsets(model, clips):
    """The offsets that every SIFA layer of a model uses on clips, by layer."""
    seen = {}

    def record(layer, inputs):
        seen[layer] = layer.offset(inputs[0])

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, sifa.SIFA)]
    with torch.no_grad():
        model(clips)
    for hook in hooks:
        hook.remove()
    return seen
