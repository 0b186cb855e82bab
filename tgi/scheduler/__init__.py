"""All state and all decisions. `plan` and `commit` are synchronous and pure; only `loop` is async."""

from .buckets import Bucket, Buckets
from .loop import Scheduler
from .sequence import SamplingParams, Sequence, State, Token

__all__ = ["Bucket", "Buckets", "SamplingParams", "Scheduler", "Sequence", "State", "Token"]
