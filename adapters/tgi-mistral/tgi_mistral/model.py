"""Mistral for tgi: the layers. Imported in rank processes only."""

from tgi.layers import LlamaDecoder


class Mistral(LlamaDecoder):
    """Its window is `ModelConfig.window`."""
