"""Mistral for tgi: the layers. Imported in rank processes only."""

from tgi.layers import GatedDecoder


class Mistral(GatedDecoder):
    """Its window is `ModelConfig.window`."""
