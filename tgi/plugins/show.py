"""`tgi plugins`: the list of installed plugins with their offers and problems."""

import json
from typing import Any

from .architecture import ANY
from .manager import Plugin, load_plugins


def show_plugins(*, as_json: bool = False) -> int:
    """Print the list. Returns the exit code: 1 if something is wrong."""
    plugins = load_plugins()
    if as_json:
        print(
            json.dumps(
                {"plugins": [_row(plugin) for plugin in plugins.installed], "problems": plugins.problems},
                indent=2,
            )
        )
    else:
        for plugin in plugins.installed:
            print(_text(plugin))
        for problem in plugins.problems:
            print(f"\n! {problem}")
    return 1 if plugins.problems else 0


def _row(plugin: Plugin) -> dict[str, Any]:
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "entry_point": plugin.entry,
        "module": plugin.module,
        "architectures": {item.name: item.model for item in plugin.architectures},
        "devices": {item.name: item.implementation for item in plugin.devices},
        "problem": plugin.problem,
    }


def _text(plugin: Plugin) -> str:
    lines = [str(plugin)]
    for kind, offered in (("architectures", plugin.architectures), ("devices", plugin.devices)):
        if offered:
            names = ("any that nobody else offers" if item.name == ANY else item.name for item in offered)
            lines.append(f"  {kind}: {', '.join(names)}")
    if plugin.problem is not None:
        lines.append("  left out")
    return "\n".join(lines)
