"""Devices on which a step is a program."""

from collections.abc import Iterator
from contextlib import contextmanager

from tgi_simulated_gaudi.device import CARDS, open_card

from tgi.device.base import Device

COMPILING = ("plain", *CARDS)
"""Names of the devices: their definition in plain torch, and every simulated card."""


@contextmanager
def open_compiling(name: str) -> Iterator[Device]:
    """Open a device of COMPILING in this process until the body ends."""
    if name == "plain":
        yield Device(1)
        return
    with open_card(name) as device:
        yield device
