"""The public plugin interface: two hooks that return descriptions. Imports no torch.

A package that offers a model or a device has an entry point in the group `tgi` that names a module with
functions marked `hookimpl`. `tgi.plugins.hookspecs` is the whole list of hooks.
"""

from .architecture import Architecture, ConfigError, JsonReader, ModelConfig, Weight
from .device import DeviceSpec
from .hookspecs import hookimpl
from .manager import architectures, devices, load_plugins

__all__ = [
    "Architecture",
    "ConfigError",
    "DeviceSpec",
    "JsonReader",
    "ModelConfig",
    "Weight",
    "architectures",
    "devices",
    "hookimpl",
    "load_plugins",
]
