"""The messages between the server process and its ranks, as columns rather than objects per row.

Commands go to every rank as the identical bytes. Results come back from rank 0, what is told else from all.
Columns are packed little-endian arrays in `bytes` (`ints`, `floats`): a decode step of 256 rows costs
some 15 us to encode and decode, a tenth of what one object per row would. The messages are
`msgspec.Struct` and not attrs classes because only those can form a tagged union.

Start-up:  Load -> Progress* -> Loaded -> Allocate -> Allocated -> Step (one per warmed-up bucket) -> Ready
Serving:   Step -> Result, in order; one more Step may be sent before a Result is read.
Of several ranks:  Load -> Arrived -> Joined -> Progress* and so on;
           Step -> Begun -> Result of rank 0, Finished of any other
The end:   the server closes the socket, and the rank exits.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tgi.sampling import SamplingParams

from .description import Describe, Described


class AttentionWorkspace(msgspec.Struct, frozen=True):
    """Upper bounds of what the attention of a step holds in memory, on a device that compiles."""

    gathered_blocks: int = 0
    """KV blocks whose keys and values are copied at once."""
    listed_blocks: int = 0
    """KV blocks that a decode step lists."""
    prefill_pairs: int = 0
    """Pairs of a query token and a token that it might see, in the mask of a prefill step."""

    def within(self, other: "AttentionWorkspace") -> bool:
        """Return whether it exceeds the other in nothing."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return all(mine <= others for mine, others in pairs)


class Load(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """First command: read the model. Answered by `Progress` messages and one `Loaded`."""

    folder: str
    """A checkpoint folder with config.json and *.safetensors."""
    architecture: str
    """A name that a plugin offers, from config.json's "architectures"."""
    device: str
    """Name of a device that a plugin offers."""
    dtype: str
    """"float32", "bfloat16", or "auto": what this device computes fastest in."""
    threads: int
    """CPU threads for one rank; 0 leaves the choice to the device."""
    lanes: int
    """Rows that can be alive at once."""
    block_size: int
    """Tokens in a KV block."""
    prefill_tokens: int = 512
    """Query tokens, padding included, of the largest prefill step; for the estimate of its workspace."""
    attention: AttentionWorkspace = AttentionWorkspace()
    """Extent of the largest steps' attention; likewise."""
    top: int = 0
    """Most of `Step.top` and `Step.prompt_top`: where every shape is compiled, all steps report so many."""
    dummy: bool = False
    """Whether weights are made up rather than read."""
    kv_cache_dtype: str = ""
    """"fp8_e4m3fn", or "": the model's."""
    overrides: dict[str, object] = msgspec.field(default_factory=dict)
    """Keys that replace those of config.json (`--rope-scaling`)."""
    watermark_gamma: float = 0.5
    """Share of the vocabulary that a watermark favours."""
    watermark_delta: float = 2.0
    """What it adds to their logits."""


class Allocate(msgspec.Struct, tag=True, frozen=True):
    """Reserve the KV cache. Block 0 of each group takes the writes of padding rows."""

    blocks: tuple[int, ...]
    """Blocks of each layer group, in the order of `Described.groups`."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The warm-up has ended: no step should compile anything any more. There is no answer."""


class LaneParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """State of a lane from the step that brings a sequence in until the next step that does."""

    lane: int
    sampling: SamplingParams
    history: bytes = b""
    """int32: all tokens of the sequence so far. Sent only if a penalty needs them, otherwise empty."""
    prompt_length: int = 0
    """Tokens of the prompt as the client sent it, which penalties and some kinds of RoPE depend on. 0: the
    tokens of the sequence's first step are the prompt."""


class Bucket(msgspec.Struct, frozen=True, order=True, array_like=True):
    """The shape that a step is padded to. Also the exact shape of a step, before padding."""

    rows: int
    tokens: int
    """Query tokens of each row."""
    blocks: int
    """Entries of block tables, counted as `DeviceSpec.flat` says."""
    prefill: bool = False
    """The kind of bucket. True: rows may have more than one query token."""

    def dominates(self, other: "Bucket") -> bool:
        """Return whether a step of the other shape can be padded to this one."""
        return (
            self.prefill == other.prefill
            and self.rows >= other.rows
            and self.tokens >= other.tokens
            and self.blocks >= other.blocks
        )


class Step(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """One forward pass and the sampling after it, described completely.

    A row is a run of query tokens of one sequence, of which the last `samples` give a token each: a decode
    row has one query token and one sample, the last chunk of a prompt n and one, a chunk before it n and
    none, a row with k guessed tokens k + 1 of both. The last token that was sampled for a lane stays on the
    device, so the server can send step n + 1 before it has read result n.
    """

    number: int
    bucket: Bucket
    lanes: bytes
    """int32 [rows]: the lane of each row, in order. No lane appears twice."""
    starts: bytes
    """int32 [rows]: tokens of the row already in the KV cache, i.e. position of its first query token."""
    lengths: bytes
    """int32 [rows]: query tokens of each row."""
    samples: bytes
    """int32 [rows]: how many of the row's last query tokens give a token."""
    draws: bytes
    """int32 [rows]: index among the generated tokens of the first one that the row gives; the random number
    of a token depends on its index. Without a meaning for a row that gives none."""
    tokens: bytes
    """int32 [sum of lengths]: the query tokens of all rows, one row after another. -1 stands for the token
    that was last sampled for the row's lane."""
    targets: bytes = b""
    """int32 [sum of lengths]: the token after each query token whose log-probability is wanted, else -1.
    Empty if none is wanted."""
    table_lanes: bytes = b""
    """int32 [n]: lanes with a block table that grows in this step."""
    table_groups: bytes = b""
    """int32 [n]: the group of layers whose table that is. Empty stands for zeros."""
    table_starts: bytes = b""
    """int32 [n]: index of the first new entry; 0 for a new table."""
    table_counts: bytes = b""
    """int32 [n]: number of new entries."""
    table_blocks: bytes = b""
    """int32 [sum of table_counts]: block ids of the new entries."""
    params: tuple[LaneParams, ...] = ()
    """Of the lanes that a sequence enters with this step."""
    top: int = 0
    """How many of the most likely tokens to report for each sampled row."""
    prompt_top: int = 0
    """And for each of the targets."""
    masked: bytes = b""
    """int32 [m], ascending: the samples that have a mask, counted over all rows in order."""
    masks: bytes = b""
    """uint32 [m, words]: the tokens that each of them may give, one bit per token of the vocabulary, the
    lowest bit first."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """How far loading is: `done` of `total` bytes of weights."""

    done: int
    total: int


class Loaded(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The model is in memory."""

    free_bytes: int
    """Device memory left for the KV cache after the workspace of the largest step; below 0: what lacks."""
    block_bytes: tuple[int, ...]
    """Bytes of one KV block on this rank in all layers of each layer group."""
    dtype: str
    """The dtype that was chosen."""
    total_bytes: int = 0
    """Memory of the device; 0, here and below: not known."""
    weight_bytes: int = 0
    """What the weights take."""
    workspace_bytes: int = 0
    """What the largest step is expected to need; `free_bytes` is without it."""
    graph_bytes: int = 0
    """What a graph keeps."""


class Arrived(msgspec.Struct, tag=True, frozen=True):
    """A rank, as which it sees itself, is going to look for the others: rank `rank` of `ranks`."""

    rank: int
    ranks: int


class Joined(msgspec.Struct, tag=True, frozen=True):
    """The rank has heard of all others."""


class Begun(msgspec.Struct, tag=True, frozen=True):
    """The rank begins with a step; only then does it wait for others. `digest` is that of the command."""

    digest: bytes


class Finished(msgspec.Struct, tag=True, frozen=True):
    """A rank other than 0 has finished a step. `digest` is that of `Result.tokens`."""

    digest: bytes


class Allocated(msgspec.Struct, tag=True, frozen=True):
    """The KV cache is reserved."""


class Result(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The tokens that a step gave: n is the sum of `Step.samples`, in the order of the rows."""

    number: int
    tokens: bytes
    """int32 [n]"""
    logprobs: bytes
    """float32 [n]: of the chosen token, under the distribution it was drawn from."""
    top_tokens: bytes = b""
    """int32 [n, step.top]: most likely first; -1 where fewer have a probability."""
    top_logprobs: bytes = b""
    """float32 [n, step.top]"""
    prompt_logprobs: bytes = b""
    """float32 [m]: log-probabilities of the step's targets other than -1, in order."""
    prompt_top_tokens: bytes = b""
    """int32 [m, step.prompt_top]: as `top_tokens`, in the places of these targets."""
    prompt_top_logprobs: bytes = b""
    """float32 [m, step.prompt_top]"""
    seconds: float = 0.0
    """Time of the step inside the rank."""
    compilations: int = 0
    """Graphs that were compiled for it,"""
    cpu_fallbacks: int = 0
    """operations that the device left to the CPU,"""
    graph_misses: int = 0
    """and 1 if its bucket had no graph."""
    memory_bytes: int = 0
    """Device memory in use after it; 0: not known."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The command cannot be carried out; the rank ends. `message` is for people, `kind` for code."""

    message: str
    kind: str = "error"
    """"model": the checkpoint or the options are to blame; "memory": it does not fit; "error": a defect."""
    trace: str = ""
    """Of a defect."""
    at: float = 0.0
    """When it failed, by the clock that all processes have: what other ranks suffer from it comes later."""


Command: TypeAlias = Describe | Load | Allocate | Ready | Step
Report: TypeAlias = (
    Described | Arrived | Joined | Progress | Loaded | Allocated | Begun | Result | Finished | Failed
)

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)

encode = _encoder.encode
decode_command = _commands.decode
decode_report = _reports.decode


def digest(data: bytes) -> bytes:
    """Eight bytes that differ, as good as always, where the data do."""
    return blake2b(data, digest_size=8).digest()


def ints(values: Iterable[int]) -> bytes:
    """Pack a column of int32."""
    return np.fromiter(values, np.int32).tobytes()


def floats(values: Iterable[float]) -> bytes:
    """Pack a column of float32."""
    return np.fromiter(values, np.float32).tobytes()


def unpack_ints(column: bytes) -> npt.NDArray[np.int32]:
    """The int32 column, without a copy (read-only)."""
    return np.frombuffer(column, np.int32)


def unpack_floats(column: bytes) -> npt.NDArray[np.float32]:
    """The float32 column, without a copy (read-only)."""
    return np.frombuffer(column, np.float32)
