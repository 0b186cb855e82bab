"""Finds plugins by their entry points, and collects their offers.

Entry points are loaded here and not by pluggy. Of two packages with the same entry-point name, pluggy
silently drops the second; it ignores hooks whose names are misspelt, and lets a plugin that fails to import
stop the server. Here a broken plugin is left out, with the reason. Two plugins that offer the same thing are
an error only for the user who asks for that thing.
"""

import difflib
import functools
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
import pluggy

from . import hookspecs
from .architecture import Architecture, ConfigError
from .device import DeviceSpec

log = logging.getLogger(__name__)
PLUGIN_TRACE = f"{__name__}.trace"
"""Name of the logger that `--trace-plugins` turns on: every hook that is called, and its result."""
GROUP = "tgi"
HOOKS = {"tgi_architectures": Architecture, "tgi_devices": DeviceSpec}
T = TypeVar("T", Architecture, DeviceSpec)


@attrs.frozen
class Plugin:
    """One entry point of an installed distribution, and its offers."""

    distribution: str
    version: str
    entry: str
    module: str
    architectures: tuple[Architecture, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    problem: str | None = None
    """Reason why the plugin is left out, and the remedy; None: it works."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry} = {self.module})"


class Offers(Mapping[str, T], Generic[T]):
    """Offers of one kind by name. Looking up a name that several plugins offer raises ConfigError."""

    def __init__(self, kind: str, offered: Sequence[tuple[Plugin, T]]) -> None:
        self._kind = kind
        self._offered: dict[str, list[tuple[Plugin, T]]] = {}
        for plugin, item in offered:
            self._offered.setdefault(item.name, []).append((plugin, item))

    def __getitem__(self, name: str) -> T:
        first, *others = self._offered[name]
        if others:
            raise ConfigError(self.conflicts[name])
        return first[1]

    def __contains__(self, name: object) -> bool:
        return name in self._offered

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    @property
    def conflicts(self) -> dict[str, str]:
        """Messages about the names that several plugins offer, with the remedy."""
        return {
            name: self._conflict(name, [plugin for plugin, _ in offered])
            for name, offered in self._offered.items()
            if len(offered) > 1
        }

    def _conflict(self, name: str, plugins: Sequence[Plugin]) -> str:
        who = " and ".join(map(str, plugins))
        names = dict.fromkeys(plugin.distribution for plugin in plugins)
        removals = " or ".join(f"`pip uninstall {distribution}`" for distribution in names)
        return f"the {self._kind} {name} is offered by {who}: keep one of them, {removals}"


@attrs.frozen
class Plugins:
    """All installed plugins, ordered by name."""

    installed: tuple[Plugin, ...]

    @property
    def left_out(self) -> list[str]:
        """One line about each broken plugin."""
        broken = [plugin for plugin in self.installed if plugin.problem is not None]
        return [f"plugin {plugin} is left out: {plugin.problem}" for plugin in broken]

    @property
    def problems(self) -> list[str]:
        """One line about each broken plugin, and each name that several plugins offer."""
        conflicts = [*architectures(self).conflicts.values(), *devices(self).conflicts.values()]
        return [*self.left_out, *conflicts]


@functools.cache
def load_plugins() -> Plugins:
    """Load the plugins that are installed in this process's environment, once."""
    plugins: dict[tuple[str, str], Plugin] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
        if (name, entry.name) not in plugins:  # one distribution may be on sys.path twice
            plugins[name, entry.name] = _load(Plugin(name, version, entry.name, entry.value), entry)
    return Plugins(tuple(plugins[key] for key in sorted(plugins)))


def architectures(plugins: Plugins) -> Offers[Architecture]:
    """Return the offered architectures by name."""
    offered = [(plugin, item) for plugin in plugins.installed for item in plugin.architectures]
    return Offers("architecture", offered)


def devices(plugins: Plugins) -> Offers[DeviceSpec]:
    """Return the offered devices by name."""
    return Offers("device", [(plugin, item) for plugin in plugins.installed for item in plugin.devices])


def _load(plugin: Plugin, entry: importlib.metadata.EntryPoint) -> Plugin:
    """Import a plugin and call its hooks."""
    try:
        module = entry.load()
    except (Exception, SystemExit) as error:
        problem = (
            f"it cannot be imported: {_line(error)}; reinstall it, or `pip uninstall {plugin.distribution}`"
        )
        return attrs.evolve(plugin, problem=problem)
    try:
        hooks = _hooks(plugin, module)
        return attrs.evolve(
            plugin, architectures=_call(hooks, "tgi_architectures"), devices=_call(hooks, "tgi_devices")
        )
    except _BrokenPluginError as error:
        return attrs.evolve(plugin, problem=str(error))


class _BrokenPluginError(Exception):
    """A module can be imported but is no working plugin; the message tells its author the remedy."""


def _hooks(plugin: Plugin, module: object) -> pluggy.PluginManager:
    """Return the hooks of one plugin, apart from all others'. Raises _BrokenPluginError."""
    manager = pluggy.PluginManager("tgi")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name=str(plugin))
    except pluggy.PluginValidationError as error:
        raise _BrokenPluginError(_line(error).removeprefix("PluginValidationError: ")) from error
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec():
            meant = difflib.get_close_matches(caller.name, HOOKS, 1, 0.0)[0]
            raise _BrokenPluginError(f"no hook is named {caller.name!r}; rename it, perhaps to {meant!r}")
    marked = {caller.name for caller in callers}
    for name in HOOKS:
        if name not in marked and hasattr(module, name):
            raise _BrokenPluginError(f"{name} has no @hookimpl above it, so that it is never called")
    if not marked:
        raise _BrokenPluginError(f"it has no hook: a function {' or '.join(HOOKS)} below @hookimpl")
    manager.add_hookcall_monitoring(lambda *_: None, functools.partial(_trace, plugin))
    return manager


def _call(hooks: pluggy.PluginManager, name: str) -> tuple[Any, ...]:
    """Return the offers of a plugin through one hook. Raises _BrokenPluginError."""
    kind = HOOKS[name]
    try:
        offered = [item for result in getattr(hooks.hook, name)() for item in result]
    except Exception as error:
        raise _BrokenPluginError(f"{name}() fails: {_line(error)}") from error
    for item in offered:
        if not isinstance(item, kind):
            raise _BrokenPluginError(
                f"{name}() must return a list of {kind.__name__}, and has {item!r} in it"
            )
    return tuple(offered)


def _trace(plugin: Plugin, outcome: "pluggy.Result[Any]", name: str, *_: object) -> None:
    result = outcome.exception or outcome.get_result()
    logging.getLogger(PLUGIN_TRACE).debug("%s: %s() gave %r", plugin, name, result)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
