"""What a stream has to equal: the clip model on the whole prefix, under the same pooling."""

import torch
from sifa.models.classifier import stack_frames
from sifa.preprocessing import ClipPreprocessing


@torch.no_grad()
def on_prefixes(model, frames):
    """What a causal clip model makes of every prefix: its features, averaged over the last of its steps.

    Frames are uint8 (N, T, H, W, 3); the answer is (steps, N, classes), float32.
    """
    stride, num_frames = model.temporal_stride, model.num_frames
    preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
    answers = []
    for steps in range(1, frames.shape[1] // stride + 1):
        model.set_num_frames(steps * stride)
        clip = preprocessing(frames[:, : steps * stride]).to(model.head.weight.dtype)
        features = model.backbone(stack_frames(clip, stride)).unflatten(0, (-1, steps))
        recent = features[:, -(num_frames // stride) :]
        answers.append(model.head(recent.mean(1)).softmax(1).float())
    model.set_num_frames(num_frames)
    return torch.stack(answers)
