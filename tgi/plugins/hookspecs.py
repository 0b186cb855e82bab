"""Every hook of the server. Results carry data; a plugin is never handed the application."""

from collections.abc import Sequence

import pluggy

from .architecture import Architecture
from .device import DeviceSpec

hookspec = pluggy.HookspecMarker("tgi")
hookimpl = pluggy.HookimplMarker("tgi")


@hookspec
def tgi_architectures() -> Sequence[Architecture]:  # type: ignore[empty-body]
    """Say which architectures this package can run. Called once per process; must not import torch."""


@hookspec
def tgi_devices() -> Sequence[DeviceSpec]:  # type: ignore[empty-body]
    """Say which devices this package can run models on. Called once per process; must not import torch."""
