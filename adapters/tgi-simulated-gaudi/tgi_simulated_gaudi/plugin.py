"""Offers the device `hpu-sim` to the tgi server. Imports no torch."""

from collections.abc import Iterator, Sequence

import attrs

from tgi.config import Options
from tgi.device import hpu
from tgi.device.hpu.gaudi_checks import GaudiDoctor, check_recipes
from tgi.plugins import DeviceSpec, hookimpl
from tgi.plugins.check import Check
from tgi.plugins.machine import Machine

GENERATION = "TGI_SIMULATED_GAUDI"
"""Variable that chooses the card: "gaudi2" (the default) or "gaudi3"."""


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """Return the simulated Gaudi: a Gaudi in all but the class that ranks run, its memory, and its host."""
    return [
        attrs.evolve(
            hpu.SPEC,
            name="hpu-sim",
            fills_memory=False,  # its memory is this machine's
            implementation="tgi_simulated_gaudi.device:SimulatedHpu",
            installed=f"{__name__}:installed_cards",
            doctor=f"{__name__}:SimulatedDoctor",
        )
    ]


def installed_cards(machine: Machine) -> Sequence[str]:
    """Return the card that the variable chooses."""
    chosen = machine.environ.get(GENERATION)
    return [chosen] if chosen else []


class SimulatedDoctor(GaudiDoctor):
    """Checks of what a simulated card shares with a real one."""

    def checks(self, machine: Machine, options: Options) -> Iterator[Check]:
        """Yield the check of the recipe cache."""
        yield check_recipes(machine, options)
