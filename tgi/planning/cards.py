"""What is known of the cards that a plan can be made for, without one of them."""

from collections.abc import Mapping

import attrs
import psutil  # type: ignore[import-untyped]

from tgi.plugins import Card, ConfigError, DeviceSpec


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


def target(name: str, known: Mapping[str, DeviceSpec]) -> Target:
    """Return the card of that name among those of all devices. Raises ConfigError."""
    cards = {
        name: (device, card)
        for device in reversed(list(known.values()))
        for name, card in device.cards.items()
    }
    if name not in cards:
        raise ConfigError(f"a plan needs --device {', '.join(sorted(cards))}, not {name!r}")
    device, card = cards[name]
    memory = card.memory_bytes or psutil.virtual_memory().total
    rates = card if card.flops else None
    return Target(name=name, device=device, memory_bytes=memory, card=rates, link=card.link)
