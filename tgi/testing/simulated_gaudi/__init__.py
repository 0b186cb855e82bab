"""A simulated Intel Gaudi: a torch device `hpu` on the CPU with a stand-in for habana_frameworks, and
strict.

It runs the code that is meant for a card, refuses what a card would not do or would do badly (rules S1 to
S28), and says what it would cost in time and memory. docs/simulated-gaudi.md explains its use. For tests
and rank processes only: it imports torch.

    card = install("gaudi2-lazy")
    ...                        # warm up
    card.seal()                # from now on nothing may compile
    with card.step():          # at most one copy in, one copy out, one wait
        ...
    print(card.ledger.violations, card.ledger.counters, card.clock.seconds)
"""

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
