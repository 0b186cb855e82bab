"""Phase of the server and progress of its start, read by `/health`, the log and the progress bar."""

import enum
import time

import attrs

MEASURED = 2
"""Completed units from which the remaining time is extrapolated; below, `expected` is better."""


class Phase(enum.Enum):
    """Phases of the server. A server is ready, perhaps recovering, and ready again until it drains."""

    STARTING = "starting"
    """The port is open; every route except `/metrics` and `/health` answers 503."""
    READY = "ready"
    RECOVERING = "recovering"
    """The ranks were lost and are being replaced; sequences wait for them."""
    DRAINING = "draining"
    """Running requests finish; new ones are answered with 503."""


@attrs.define(eq=False)
class Lifecycle:
    """Phase of the server, and progress of the current stage of its start."""

    phase: Phase = Phase.STARTING
    stage: str = "starting"
    """Name of the current stage for people: "loading weights", "warming up"."""
    done: int = 0
    """Units of the stage that are completed."""
    total: int = 0
    """Units that the stage consists of; 0 if unknown."""
    detail: str = ""
    """Current unit of the stage, for people."""
    expected: float | None = None
    """Estimated seconds of the stage, made before it began; None if unknown."""
    stage_started: float = attrs.field(factory=time.monotonic)
    phase_started: float = attrs.field(factory=time.monotonic, init=False)

    def change(self, phase: Phase) -> None:
        """Go to another phase; a server that drains does not leave that phase."""
        if self.phase is not Phase.DRAINING:
            self.phase, self.phase_started = phase, time.monotonic()

    def enter(self, stage: str, total: int = 0, expected: float | None = None) -> None:
        """Begin a stage of the start."""
        self.stage, self.done, self.total, self.detail, self.expected = stage, 0, total, "", expected
        self.stage_started = time.monotonic()

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left in the current stage; None if unknown."""
        if not self.total:
            return None
        if self.expected is not None and self.done < MEASURED:
            return self.expected * (self.total - self.done) / self.total
        if not self.done:
            return None
        return (time.monotonic() - self.stage_started) * (self.total - self.done) / self.done
