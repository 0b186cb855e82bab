"""Activations of MLPs, by their kind (`tgi.plugins.llama_config.ACTIVATIONS`)."""

import torch
import torch.nn.functional as F

from tgi.device.base import Device

SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
"""Steepness and cap of the gate "swiglu" of gpt-oss."""


def activate(device: Device, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Return the activation of x."""
    if kind == "silu":
        return F.silu(x)
    return device.gelu(x, tanh=kind == "gelu_tanh")


def gate(device: Device, kind: str, gate_up: torch.Tensor) -> torch.Tensor:
    """Return the activation of the first half of the last dimension, multiplied by the second."""
    if kind == "silu":
        return device.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, -1)
    if kind == "swiglu":
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
    return activate(device, kind, gate) * up
