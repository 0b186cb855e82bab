"""Llama for tgi: the layers. Imported in rank processes only."""

from tgi.layers import LlamaDecoder


class Llama(LlamaDecoder):
    """The decoder that other families share."""
