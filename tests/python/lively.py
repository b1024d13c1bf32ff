"""A model for tests of equality: nothing in it is zero, saturated or indifferent to its input.

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


def lively_model(name="sifa_tiny", seed=0, **settings):
    """A model in eval mode: random weights, calibrated batch norms, large offsets, spread probabilities."""
    torch.manual_seed(seed)
    model = sifa.create_model(name, **settings)
    with torch.no_grad():
        clips = FrameClassifier(model).preprocessing(moving_blocks(model.num_frames))
        for module in model.modules():
            if isinstance(module, sifa.SIFA):
                enlarge_offsets(model, module, clips)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()(clips)
        logits = model.eval()(clips)
        model.head.weight /= logits.std() / 1.5
        model.head.bias -= model(clips).mean(0)
    return model


def enlarge_offsets(model, layer, clips, pixels=2.0):
    """Give one SIFA layer random offsets of the given standard deviation."""
    torch.nn.init.normal_(layer.conv_offset.weight)
    spread = offsets(model.train(), clips)[layer].std()
    layer.conv_offset.weight /= spread / pixels
    model.eval()


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
