"""Weights on disk: found, checked from their headers, loaded, converted and fetched."""

from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint, fingerprint
from wan_s2v.weights.convert import convert
from wan_s2v.weights.download import download
from wan_s2v.weights.load import load_components, load_model

__all__ = ["Checkpoint", "convert", "download", "find_checkpoint", "fingerprint", "load_components", "load_model"]
