"""`tgi doctor`: makes the checks and prints them."""

import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tgi.config import OptionError, Options
from tgi.planning.setup import count_shards
from tgi.plugins import devices, load_plugins
from tgi.plugins.check import Check, fail, warn
from tgi.plugins.machine import Machine

from .host import check_host
from .trial import try_device

PRECONDITIONS = ("software", "cards", "access")
"""Names of checks without which a device cannot be opened."""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(options: Options, machine: Machine) -> Iterator[Check]:
    """Yield all checks for a server with these options, in the order in which they should be read."""
    known = devices(load_plugins())
    spec = known.get(options.device)
    if spec is None:
        names = ", ".join(sorted(known))
        yield fail(
            "device", f"The device {options.device!r} does not exist.", f"Choose --device from {names}."
        )
        return
    try:
        options = attrs.evolve(options, num_shard=count_shards(options, spec, machine.environ))
    except OptionError as error:
        yield fail("ranks", f"{error}.", "Choose a --num-shard for which this machine has cards.")
        return
    yield from check_host(machine, options)
    if not spec.card_files:
        for other in known.values():
            if cards := other.installed_cards(machine):
                found = f"{len(cards)} cards for --device {other.name} are here, and --device is {spec.name}."
                yield warn("cards", found, f"Start with --device {other.name} to use and to check them.")
    checks = list(spec.open_doctor().checks(machine, options))
    yield from checks
    if not any(check.state == "fail" and check.name in PRECONDITIONS for check in checks):
        yield from try_device(spec, options.threads, options.ranks)


def show_checks(options: Options, *, as_json: bool = False, report: Path | None = None) -> int:
    """Print the checks, write the report if it has a file, and return the exit code: 1 if one has failed."""
    machine = Machine()
    checks = list(examine(options, machine))
    if report is not None:
        report.write_text(json.dumps(report_of(options.device, checks, machine), indent=2) + "\n", "utf-8")
    if as_json:
        print(json.dumps([attrs.asdict(check) for check in checks], indent=2))
    else:
        Console(highlight=False).print(_table(checks))
    return int(any(check.state == "fail" for check in checks))


def report_of(device: str, checks: Iterable[Check], machine: Machine) -> dict[str, Any]:
    """Return what helps others to understand a machine: the checks, and versions of the software."""
    spec = devices(load_plugins()).get(device)
    packages = ("python", "tgi-server", "torch", "transformers", *(spec.compile_packages if spec else ()))
    return {
        "device": device,
        "cards": list(spec.installed_cards(machine)) if spec else [],
        "kernel": platform.release(),
        "versions": dict(machine.versions(packages)),
        "checks": [attrs.asdict(check) for check in checks],
    }


def _table(checks: Iterable[Check]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(width=4)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        text = Text(check.found)
        if check.advice:
            text.append(f"\n{check.advice}", style="bold")
        table.add_row(Text(check.state, style=_STYLES[check.state]), check.name, text)
    return table
