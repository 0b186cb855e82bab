"""Mistral for tgi: the layers. Imported in rank processes only."""

from tgi.layers import LlamaDecoder


class Mistral(LlamaDecoder):
    """A Llama with the window of its config."""
