"""Models that say how red, green and blue their frames are, so that no source can mix up colours.

Imported by the Python tests, and run before those of a camera: `python colours.py FOLDER`.
"""

import sys
from pathlib import Path

import torch
from make_runtime_data import SmallModel
from sifa.artifact import export_torchscript


class ColourModel(SmallModel):
    """Its probabilities are those of red, green and blue."""

    num_frames = 4
    frame_stride = 1

    def __init__(self):
        super().__init__()
        self.labels = ["red", "green", "blue"]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.mean((2, 3, 4)) + 0.0 * self.stem.weight.sum()


class SlowModel(ColourModel):
    """It takes longer than a frame of a live source lasts."""

    input_size = (256, 256)

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 256, 9, padding=4)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.mean((2, 3, 4)) + 0.0 * self.wide(clip[0].transpose(0, 1)).sum()


def make_colour_models(folder: Path) -> None:
    """Writes `colour.pt` and `slow.pt`."""
    export_torchscript(ColourModel().eval(), folder / "colour.pt")
    export_torchscript(SlowModel().eval(), folder / "slow.pt")


if __name__ == "__main__":
    make_colour_models(Path(sys.argv[1]))
