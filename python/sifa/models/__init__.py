"""Video classifiers: image backbones with SIFA inserted, created by name."""

from .classifier import VideoClassifier
from .complexity import Complexity, complexity
from .hub import from_pretrained
from .registry import ModelCard, create_model, list_models, model_card
from .weights import LoadReport, convert_reference_state_dict, load_imagenet

__all__ = [
    "Complexity",
    "LoadReport",
    "ModelCard",
    "VideoClassifier",
    "complexity",
    "convert_reference_state_dict",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_imagenet",
    "model_card",
]
