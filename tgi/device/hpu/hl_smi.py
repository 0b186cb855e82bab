"""Reader of the output of hl-smi, which lists the cards of a host."""

import csv
import re
from collections.abc import Sequence

import attrs

from tgi.plugins.machine import Machine

QUERY = ("index", "name", "bus_id", "driver_version", "module_id", "memory.total", "memory.used")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s+(\w+)\s+(.*?)\s{2,}(\S+)\s*\|$")
"""Line of the table of processes: card, pid, type, name, memory."""


@attrs.frozen
class SmiCard:
    """A card as hl-smi reports it."""

    index: int
    name: str
    bus: str
    driver: str
    module: int | None
    """Place in the box, which HABANA_VISIBLE_MODULES lists."""
    total: int | None
    """Memory, in MiB."""
    used: int | None
    """Memory in use, in MiB."""


@attrs.frozen
class HlSmi:
    """Everything that hl-smi reports; empty if it is not installed, or sees no card."""

    cards: Sequence[SmiCard] = ()
    firmware: Sequence[str] = ()
    holders: Sequence[tuple[int, int, str]] = ()
    """Card, pid and name of each process that has a card open."""

    @property
    def driver(self) -> str:
        """Version of the driver; "" if unknown."""
        return next((card.driver for card in self.cards if card.driver), "")


def read_hl_smi(machine: Machine) -> HlSmi:
    """Run hl-smi for its table of values, for the firmware and for the processes."""
    table = machine.run(("hl-smi", "-Q", ",".join(QUERY), "-f", "csv,noheader")) or ""
    listing, page = machine.run(("hl-smi", "-L")) or "", machine.run(("hl-smi",)) or ""
    return HlSmi(parse_cards(table), parse_firmware(listing), parse_holders(page))


def parse_cards(table: str) -> list[SmiCard]:
    """Return the cards in the output of `-Q`; lines of another form are ignored."""
    cards = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY) or not row[0].strip().isdigit():
            continue
        index, name, bus, driver, module, total, used = (value.strip() for value in row)
        cards.append(SmiCard(int(index), name, bus, driver, _number(module), _number(total), _number(used)))
    return cards


def parse_firmware(listing: str) -> list[str]:
    """Return the version of each card's firmware in the output of `-L`.

    Its lines have the form "Firmware [SPI] Version : Preboot version hl-gaudi2-1.20.0-fw-58.0.0-sec-9".
    """
    lines = [line for line in listing.splitlines() if "[SPI]" in line]
    matches = (re.search(r"hl-gaudi\d-(\d[\d.]*-fw-\d[\d.]*)", line) for line in lines)
    return [match.group(1) for match in matches if match]


def parse_holders(page: str) -> list[tuple[int, int, str]]:
    """Return the processes in the output without options, whose last table lists them."""
    table = page.partition("Compute Processes")[2]
    matches = (_PROCESS.match(line.strip()) for line in table.splitlines())
    return [(int(match[1]), int(match[2]), match[4]) for match in matches if match]


def _number(text: str) -> int | None:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else None
