"""The public plugin interface: two hooks that return descriptions. Imports no torch.

A package that offers a model or a device has an entry point in the group `tgi`, which names a module with
functions marked `hookimpl`. `tgi.plugins.hookspecs` has all hooks.
"""

from .architecture import ANY, Architecture, ConfigError, JsonReader, ModelConfig
from .device import Card, DeviceSpec
from .hookspecs import hookimpl
from .manager import PLUGIN_TRACE, Plugins, architectures, devices, load_plugins

__all__ = [
    "ANY",
    "PLUGIN_TRACE",
    "Architecture",
    "Card",
    "ConfigError",
    "DeviceSpec",
    "JsonReader",
    "ModelConfig",
    "Plugins",
    "architectures",
    "devices",
    "hookimpl",
    "load_plugins",
]
