"""Where the server is between its first second and its last: one object, written by whoever makes progress
and read by `/health`, the log and the terminal."""

import enum
import time

import attrs


class Phase(enum.Enum):
    """The states of the server, in order."""

    STARTING = "starting"
    """The port is open; every route but `/metrics` and `/health` answers 503."""
    READY = "ready"
    DRAINING = "draining"
    """Running requests finish; new ones get 503."""


@attrs.define(eq=False)
class Lifecycle:
    """The phase, and while starting the progress of the present stage."""

    phase: Phase = Phase.STARTING
    stage: str = "starting"
    """What is being done, for people: "loading weights", "warming up"."""
    done: int = 0
    total: int = 0
    """Of `done`; 0 where it is not known."""
    detail: str = ""
    """What of the stage comes next, for people."""
    stage_started: float = attrs.field(factory=time.monotonic)

    def enter(self, stage: str, total: int = 0) -> None:
        """Begin a stage of the start."""
        self.stage, self.done, self.total, self.detail = stage, 0, total, ""
        self.stage_started = time.monotonic()

    def seconds_left(self) -> float | None:
        """Estimate for the present stage, in seconds; None where nothing is known yet."""
        if not self.done or not self.total:
            return None
        return (time.monotonic() - self.stage_started) * (self.total - self.done) / self.done
