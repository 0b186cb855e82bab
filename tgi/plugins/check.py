"""Results of the checks of `tgi doctor`, and what a device adds to them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import attrs

from .machine import Machine

if TYPE_CHECKING:
    from tgi.config import Options

State = Literal["ok", "warn", "fail"]


@attrs.frozen
class Check:
    """Result of one check."""

    name: str
    """Subject, in a word or two."""
    state: State
    """ok; warn: a server runs, but slower or with a risk; fail: a server does not run, or runs wrongly."""
    found: str
    """State of the subject, a sentence."""
    advice: str = ""
    """Remedy, a sentence; "" where all is well."""


def ok(name: str, found: str) -> Check:
    """Return the result of a check that found nothing wrong."""
    return Check(name, "ok", found)


def warn(name: str, found: str, advice: str) -> Check:
    """Return the result of a check that found something to improve."""
    return Check(name, "warn", found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Return the result of a check that found what keeps a server from running, or from running correctly."""
    return Check(name, "fail", found, advice)


class Doctor:
    """Checks and advice for one kind of device; a device overrides what it has."""

    advice: Mapping[str, str] = {}
    """Advice by a phrase of an error message, in any case; the first phrase that occurs counts."""
    wrong_result = "Do not serve with it: answers would be wrong. Try another release of its software."
    """Advice where the device computes wrongly."""
    crash = "Look for the reason in the kernel's log (dmesg): no server would run."
    """Advice where a process that uses the device fails, hangs or dies."""
    little_memory = "End the processes that hold the rest: the KV cache gets what is left."
    """Advice where other processes hold memory of the device."""
    links = "Serve with one rank, and check the links between the cards."
    """Advice where ranks compute a wrong sum."""

    def checks(self, machine: Machine, options: "Options") -> Iterable[Check]:
        """Yield checks of a host that open no device.

        If one named "software", "cards" or "access" fails, the device is not opened afterwards.
        """
        del machine, options
        return ()
