"""Activations of MLPs, by their kind (`tgi.plugins.llama_config.ACTIVATIONS`)."""

from typing import Protocol

import torch

SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
"""Steepness and cap of the gate "swiglu" of gpt-oss."""


class Activating(Protocol):
    """The part of a `Device` that activations use."""

    def gelu(self, x: torch.Tensor, tanh: bool = False) -> torch.Tensor:
        """Return the activation of x, or its approximation by tanh."""

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 / (1 + exp(-x))."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu of the first half of the last dimension, multiplied by the second."""


def activate(device: Activating, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Return the activation of x."""
    if kind == "silu":
        return x * device.sigmoid(x)
    return device.gelu(x, tanh=kind == "gelu_tanh")


def gate(device: Activating, kind: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Return the activation of the first half of the last dimension, multiplied by the second."""
    if kind == "silu":
        return device.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, -1)
    if kind == "swiglu":
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return gate * device.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
    return activate(device, kind, gate) * up
