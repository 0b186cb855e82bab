"""What is known of the cards that a plan can be made for, without one of them."""

from collections.abc import Mapping

import attrs
import psutil  # type: ignore[import-untyped]

from tgi.plugins import ConfigError, DeviceSpec

from .costs import CARDS, Card

GIB = 1 << 30


@attrs.frozen(kw_only=True)
class Target:
    """A card, or the CPU of this machine."""

    name: str
    device: DeviceSpec
    memory_bytes: int
    """That a process sees."""
    card: Card | None
    """Its peak rates; None: not known."""
    link: float = 0.0
    """Bytes a second to all other cards of a box together, one way."""


GAUDIS = {"gaudi2": (int(94.62 * GIB), 262.5e9), "gaudi3": (int(126.5 * GIB), 525e9)}
"""Memory that logs show, and rate of the links: 21 of 24 ports, twice as fast in a Gaudi3."""


def installed_card(pci: str, environment: Mapping[str, str]) -> str:
    """Which of them a server runs on: by the PCI ids of this machine, or the variable of simulated ones."""
    simulated = environment.get("TGI_SIMULATED_GAUDI", "")
    if simulated in GAUDIS:
        return simulated
    return "gaudi3" if pci.startswith("106") else "gaudi2"


def target(name: str, known: Mapping[str, DeviceSpec]) -> Target:
    """The card of that name; `known` are the devices that plugins offer. Raises ConfigError."""
    if name in GAUDIS:
        memory, link = GAUDIS[name]
        return Target(name=name, device=known["hpu"], memory_bytes=memory, card=CARDS[name], link=link)
    if name == "cpu":
        memory = psutil.virtual_memory().total
        return Target(name=name, device=known["cpu"], memory_bytes=memory, card=None)
    raise ConfigError(f"a plan needs --device {', '.join(GAUDIS)} or cpu, not {name!r}")
