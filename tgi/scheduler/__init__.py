"""All state of sequences, and all decisions about steps.

`plan` and `commit` are synchronous functions of plain data; `loop`, `matching` and `warming` are async.
"""

from .buckets import Buckets
from .loop import Scheduler, SchedulerStatistics
from .router import Replica, Router
from .sequence import Sequence, State, Token

__all__ = ["Buckets", "Replica", "Router", "Scheduler", "SchedulerStatistics", "Sequence", "State", "Token"]
