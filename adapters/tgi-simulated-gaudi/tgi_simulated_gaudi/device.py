"""The device `hpu-sim` of the tgi server: the code of `tgi.device.hpu` on a simulated card."""

import os
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from torch import nn

from tgi.device.hpu.bridge import settle_mode
from tgi.device.hpu.hpu_device import HpuDevice

from .card import Card
from .installation import install, uninstall
from .plugin import GENERATION
from .profile import Profile

CARDS = ("gaudi2-lazy", "gaudi2-compile", "gaudi3-lazy", "gaudi3-compile")
"""Names of all simulated cards: a generation and an engine of the bridge."""


class SimulatedHpu(HpuDevice):
    """A Gaudi whose card is simulated; PT_HPU_LAZY_MODE chooses the engine, as it does for the bridge."""

    card: Card

    def __init__(self, threads: int = 0, environ: MutableMapping[str, str] = os.environ) -> None:
        warnings.filterwarnings("ignore", "index_reduce", UserWarning)  # torch calls it new, on a CPU
        settle_mode(environ)
        self.card = install(Profile.from_environment(environ, environ.get(GENERATION, "gaudi2")))
        super().__init__(threads, environ)

    def prepare(self, model: nn.Module) -> None:
        """Make the model ready, and count its traces alone."""
        self.card.begin_model()
        super().prepare(model)

    def seal(self) -> None:
        """Refuse to compile anything from now on."""
        super().seal()
        self.card.seal()


def card_environment(name: str) -> dict[str, str]:
    """Return the variables with which `hpu-sim` opens a card of CARDS."""
    generation, engine = name.split("-")
    return {GENERATION: generation, "PT_HPU_LAZY_MODE": str(int(engine == "lazy"))}


@contextmanager
def open_card(name: str) -> Iterator[SimulatedHpu]:
    """Open a card of CARDS in this process; it is taken away when the body ends."""
    try:
        yield SimulatedHpu(1, card_environment(name))
    finally:
        uninstall()
