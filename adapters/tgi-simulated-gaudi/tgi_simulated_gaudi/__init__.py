"""A simulated Intel Gaudi: a torch device named `hpu` on the CPU, with a stand-in for habana_frameworks.

It runs code written for a card, refuses what a card would not do or would do badly (rules S1 to S28), and
estimates the time and memory that the card would take. README.md explains its use.

    card = install("gaudi2-lazy")
    ...                        # warm up
    card.seal()                # from now on nothing may compile
    with card.step():          # at most one copy in, one copy out, one wait
        ...
    print(card.ledger.violations, card.ledger.counters, card.clock.seconds)

The names below import torch when they are first used: the server process of tgi reads `plugin` without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .card import Card, OutOfMemoryError
    from .installation import install, uninstall
    from .kv import KVGuard
    from .profile import GENERATIONS, Generation, Profile
    from .rules import RULES, GaudiRuleError, Ledger, Rule, Violation

__all__ = [
    "GENERATIONS",
    "RULES",
    "Card",
    "GaudiRuleError",
    "Generation",
    "KVGuard",
    "Ledger",
    "OutOfMemoryError",
    "Profile",
    "Rule",
    "Violation",
    "install",
    "uninstall",
]

_MODULES = {
    "card": ("Card", "OutOfMemoryError"),
    "installation": ("install", "uninstall"),
    "kv": ("KVGuard",),
    "profile": ("GENERATIONS", "Generation", "Profile"),
    "rules": ("RULES", "GaudiRuleError", "Ledger", "Rule", "Violation"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
