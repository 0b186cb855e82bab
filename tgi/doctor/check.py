"""What a check comes to."""

from typing import Literal

import attrs

State = Literal["ok", "warn", "fail"]


@attrs.frozen
class Check:
    """One line of the page."""

    name: str
    state: State
    """warn: a server runs, but slower, or with a risk. fail: it does not."""
    found: str
    """What there is: a sentence."""
    advice: str = ""
    """What to do about it, a sentence; nothing where all is well."""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", found)


def warn(name: str, found: str, advice: str) -> Check:
    """A server runs, but not as it could."""
    return Check(name, "warn", found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """No server runs, or it runs wrongly."""
    return Check(name, "fail", found, advice)
