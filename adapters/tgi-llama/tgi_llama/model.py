"""Llama for tgi: the layers. Imported in rank processes only."""

from tgi.layers import GatedDecoder


class Llama(GatedDecoder):
    """Everything that config.json may switch is `GatedConfig`'s."""
