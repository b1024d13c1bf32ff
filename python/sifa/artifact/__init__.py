"""The artifact: ONE file with weights, preprocessing, labels and metadata, that Python and C++ run alike.

Its graph takes raw frames, uint8 RGB of any height and width, and returns probabilities. Its metadata, JSON
in the zip entry `extra/sifa.json`, says which frames of a video to feed, what the outputs mean, and what the
graph answers on a reference input; a loader refuses a file that does not fit, and names the field.

A file is of one of three formats (TorchScript; an AOTInductor package; a program of `torch.export`, from
which such a package is compiled on the machine that runs it) and of one of three kinds: a *clip* is
classified whole; a *window* slides over a stream, and what does not depend on it is computed once; a causal
model goes through a *stream* step by step. The last two have their state in and out.
"""

from .loading import Artifact, StreamArtifact, load_artifact, load_stream
from .metadata import SCHEMA_VERSION, ArtifactError, read_metadata
from .networks import FrameClassifier, reference_frames
from .writing import compile_program, export_program, export_torchscript

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "ArtifactError",
    "FrameClassifier",
    "StreamArtifact",
    "compile_program",
    "export_program",
    "export_torchscript",
    "load_artifact",
    "load_stream",
    "read_metadata",
    "reference_frames",
]
