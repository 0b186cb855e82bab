"""Finds plugins by their entry points and collects what they offer.

Entry points are loaded here and not by pluggy, which silently drops the second of two packages that
choose the same entry-point name, and lets one plugin that fails to import stop the server.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pluggy

from . import hookspecs
from .architecture import Architecture
from .device import DeviceSpec

log = logging.getLogger(__name__)
GROUP = "tgi"
T = TypeVar("T", Architecture, DeviceSpec)


def load_plugins() -> pluggy.PluginManager:
    """All installed plugins. One that cannot be imported is logged and left out.

    Raises pluggy.PluginValidationError for a hook that does not exist (a misspelt name).
    """
    manager = pluggy.PluginManager("tgi")
    manager.add_hookspecs(hookspecs)
    for entry in importlib.metadata.entry_points(group=GROUP):
        name = f"{entry.dist.name if entry.dist else '?'}:{entry.name}"
        if manager.has_plugin(name):  # one distribution, found twice on sys.path
            continue
        try:
            plugin = entry.load()
        except Exception as error:
            log.warning("plugin %s cannot be imported and is left out: %r", name, error)
            continue
        manager.register(plugin, name=name)
    manager.check_pending()
    return manager


def architectures(manager: pluggy.PluginManager) -> Mapping[str, Architecture]:
    """By name. Raises ValueError when two plugins offer the same one."""
    return _by_name(manager.hook.tgi_architectures(), lambda found: found.model)


def devices(manager: pluggy.PluginManager) -> Mapping[str, DeviceSpec]:
    """By name. Raises ValueError when two plugins offer the same one."""
    return _by_name(manager.hook.tgi_devices(), lambda found: found.implementation)


def _by_name(results: Iterable[Iterable[T]], source: Callable[[T], str]) -> Mapping[str, T]:
    found: dict[str, T] = {}
    for offered in results:
        for item in offered:
            if item.name in found:
                both = f"{source(found[item.name])} and {source(item)}"
                raise ValueError(f"two plugins offer {item.name}: {both}")
            found[item.name] = item
    return found
