"""`tgi doctor`: makes the checks and shows them."""

import json
from collections.abc import Iterable, Iterator

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tgi.config import OptionError, Options
from tgi.planning.setup import count_ranks
from tgi.plugins import DeviceSpec, devices, load_plugins

from .check import Check, fail, warn
from .gaudi import check_gaudi, check_recipes, pci_cards
from .host import check_cpu, check_host
from .machine import Machine
from .nvidia import check_nvidia
from .trial import try_device

CLOSED = ("software", "cards", "access")
"""Where one of these fails, no card can be opened."""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(options: Options, machine: Machine) -> Iterator[Check]:
    """All checks for such a server on this machine, in the order in which they should be read."""
    known = devices(load_plugins())
    spec = known.get(options.device)
    if spec is None:
        names = ", ".join(sorted(known))
        yield fail("device", f"There is no device {options.device!r}.", f"Choose --device from {names}.")
        return
    try:
        options = attrs.evolve(options, num_shard=count_ranks(options, spec, machine.environ))
    except OptionError as error:
        yield fail("ranks", f"{error}.", "Give a --num-shard that there are cards for.")
        return
    yield from check_host(machine, options)
    if spec.name == "cpu":
        yield from check_cpu(machine)
        if cards := pci_cards(machine):
            found = f"There are {len(cards)} Gaudi cards, and --device is cpu."
            yield warn("cards", found, "Start with --device hpu to use and to check them.")
    if spec.name in ("hpu", "cuda"):
        look = check_gaudi if spec.name == "hpu" else check_nvidia
        before = list(look(machine, options))
        yield from before
        if any(check.state == "fail" and check.name in CLOSED for check in before):
            return
    if spec.name in ("hpu", "hpu-sim"):
        yield check_recipes(machine, options)
    yield from _tried(spec, options)


def _tried(spec: DeviceSpec, options: Options) -> list[Check]:
    return try_device(spec.name, options.threads, options.num_shard or 1, spec.environment)


def show_checks(options: Options, *, as_json: bool = False) -> int:
    """Print them. Returns the exit code: 1 where one has failed."""
    checks = list(examine(options, Machine()))
    if as_json:
        print(json.dumps([attrs.asdict(check) for check in checks], indent=2))
    else:
        Console(highlight=False).print(_table(checks))
    return int(any(check.state == "fail" for check in checks))


def _table(checks: Iterable[Check]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(width=4)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        words = Text(check.found)
        if check.advice:
            words.append(f"\n{check.advice}", style="bold")
        table.add_row(Text(check.state, style=_STYLES[check.state]), check.name, words)
    return table
