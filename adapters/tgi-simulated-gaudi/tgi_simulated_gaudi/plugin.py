"""Offers the device `hpu-sim` to the tgi server. Imports no torch."""

import attrs

from tgi.plugins import DeviceSpec, hookimpl
from tgi.plugins.builtin import GAUDI


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """Return the simulated Gaudi: a Gaudi in everything but the class that ranks run."""
    return [attrs.evolve(GAUDI, name="hpu-sim", implementation="tgi_simulated_gaudi.device:SimulatedHpu")]
