"""What crosses the socket between the server process and its ranks: plain data, standard types only.

Both sides import this package; it knows nothing of either.
"""

from .framing import FrameReader, frame
from .messages import (
    Allocate,
    Allocated,
    Command,
    Failed,
    LaneParams,
    Load,
    Loaded,
    Progress,
    Ready,
    Report,
    Result,
    Step,
    decode_command,
    decode_report,
    encode,
    floats,
    ints,
    unpack_floats,
    unpack_ints,
)

__all__ = [
    "Allocate",
    "Allocated",
    "Command",
    "Failed",
    "FrameReader",
    "LaneParams",
    "Load",
    "Loaded",
    "Progress",
    "Ready",
    "Report",
    "Result",
    "Step",
    "decode_command",
    "decode_report",
    "encode",
    "floats",
    "frame",
    "ints",
    "unpack_floats",
    "unpack_ints",
]
