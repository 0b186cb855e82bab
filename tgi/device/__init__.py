"""Devices that models run on.

`base` defines every operation in plain torch; a folder per device has what that device does faster, and all
that the server must know of it. Importing this package or a device's `__init__` does not import torch.
"""

import importlib
import pkgutil

from tgi.plugins import DeviceSpec, hookimpl


@hookimpl
def tgi_devices() -> list[DeviceSpec]:
    """Return the `SPEC` of every folder here."""
    folders = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return [importlib.import_module(f"{__name__}.{name}").SPEC for name in sorted(folders)]
