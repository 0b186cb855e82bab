"""The device `hpu-sim`: the code of `tgi.device.hpu` on a simulated card."""

import os
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from tgi.device.base import Device
from tgi.device.hpu.bridge import settle_mode
from tgi.device.hpu.hpu_device import HpuDevice

from .simulated_gaudi import Card, Profile, install, uninstall

GENERATION = "TGI_SIMULATED_GAUDI"
"""The variable that says which card: "gaudi2", or "gaudi3"."""
COMPILING = ("plain", "gaudi2-lazy", "gaudi2-compile", "gaudi3-lazy", "gaudi3-compile")
"""Every device that steps are programs on: their definition, and the simulated cards."""


class SimulatedHpu(HpuDevice):
    """Which engine, is said by the variable that the bridge itself reads, PT_HPU_LAZY_MODE."""

    card: Card

    def __init__(self, threads: int = 0, environ: MutableMapping[str, str] = os.environ) -> None:
        warnings.filterwarnings("ignore", "index_reduce", UserWarning)  # that it is new, on a CPU
        settle_mode(environ)
        self.card = install(Profile.from_environment(environ, environ.get(GENERATION, "gaudi2")))
        super().__init__(threads, environ)

    def seal(self) -> None:
        """From now on whatever compiles is refused."""
        super().seal()
        self.card.seal()


def card_environment(name: str) -> dict[str, str]:
    """The variables that choose a card of COMPILING for `hpu-sim`."""
    generation, engine = name.split("-")
    return {GENERATION: generation, "PT_HPU_LAZY_MODE": str(int(engine == "lazy"))}


@contextmanager
def open_compiling(name: str) -> Iterator[Device]:
    """One of COMPILING; a simulated card is the process's until the body ends."""
    if name == "plain":
        yield Device(1)
        return
    try:
        yield SimulatedHpu(1, card_environment(name))
    finally:
        uninstall()
