"""All hooks of the server. They return data; a plugin never gets the application."""

from collections.abc import Sequence

import pluggy

from .architecture import Architecture
from .device import DeviceSpec

hookspec = pluggy.HookspecMarker("tgi")
hookimpl = pluggy.HookimplMarker("tgi")


@hookspec
def tgi_architectures() -> Sequence[Architecture]:  # type: ignore[empty-body]
    """Return the architectures that this package runs. Called once per process; must not import torch."""


@hookspec
def tgi_devices() -> Sequence[DeviceSpec]:  # type: ignore[empty-body]
    """Return the devices that this package drives. Called once per process; must not import torch."""
