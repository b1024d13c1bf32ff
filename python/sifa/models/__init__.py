"""Video classifiers: image backbones with SIFA inserted, created by name."""

from .classifier import VideoClassifier
from .registry import ModelCard, create_model, list_models, model_card

__all__ = ["ModelCard", "VideoClassifier", "create_model", "list_models", "model_card"]
