"""Llama for tgi: the layers. Imported in rank processes only."""

from tgi.layers import LlamaDecoder


class Llama(LlamaDecoder):
    """Everything that config.json may switch is `LlamaConfig`'s."""
