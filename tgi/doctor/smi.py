"""What hl-smi tells of the cards."""

import csv
import re
from collections.abc import Callable, Sequence

import attrs

from .machine import Machine

QUERY = ("index", "name", "bus_id", "driver_version", "module_id", "memory.total", "memory.used")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s+(\w+)\s+(.*?)\s{2,}(\S+)\s*\|$")
"""A line of the table of processes: card, pid, type, name, memory."""


@attrs.frozen
class Card:
    """One line of the answer."""

    index: int
    name: str
    bus: str
    driver: str
    module: int | None
    """Its place in the box, which HABANA_VISIBLE_MODULES lists."""
    total: int | None
    used: int | None
    """MiB of memory."""


@attrs.frozen
class Smi:
    """All of it; empty where there is no hl-smi, or no card."""

    cards: Sequence[Card] = ()
    firmware: Sequence[str] = ()
    holders: Sequence[tuple[int, int, str]] = ()
    """Card, pid and name of each process that hl-smi sees at a card."""

    @property
    def driver(self) -> str:
        """Its version; "" where it is not known."""
        return next((card.driver for card in self.cards if card.driver), "")


def read_smi(machine: Machine) -> Smi:
    """Ask it three times: for a table of values, for firmware, and for processes."""
    run: Callable[[Sequence[str]], str | None] = machine.run
    table = run(("hl-smi", "-Q", ",".join(QUERY), "-f", "csv,noheader")) or ""
    listed, page = run(("hl-smi", "-L")) or "", run(("hl-smi",)) or ""
    return Smi(parse_cards(table), parse_firmware(listed), parse_holders(page))


def parse_cards(table: str) -> list[Card]:
    """Of `-Q`; lines of another form are passed over."""
    cards = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY) or not row[0].strip().isdigit():
            continue
        index, name, bus, driver, module, total, used = (value.strip() for value in row)
        cards.append(Card(int(index), name, bus, driver, _number(module), _number(total), _number(used)))
    return cards


def parse_firmware(listed: str) -> list[str]:
    """Of `-L`: "Firmware [SPI] Version : Preboot version hl-gaudi2-1.20.0-fw-58.0.0-sec-9", of each card."""
    lines = [line for line in listed.splitlines() if "[SPI]" in line]
    found = (re.search(r"hl-gaudi\d-(\d[\d.]*-fw-\d[\d.]*)", line) for line in lines)
    return [match.group(1) for match in found if match]


def parse_holders(page: str) -> list[tuple[int, int, str]]:
    """Of the page without options, whose last table has the processes."""
    table = page.partition("Compute Processes")[2]
    found = (_PROCESS.match(line.strip()) for line in table.splitlines())
    return [(int(match[1]), int(match[2]), match[4]) for match in found if match]


def _number(text: str) -> int | None:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else None
