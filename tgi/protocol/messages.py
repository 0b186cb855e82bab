"""The messages between the server process and its ranks, as columns rather than objects per row.

Commands go to every rank as the identical bytes. Results come from one rank alone, the first of the last
stage, other reports from every rank. Columns are packed little-endian arrays in `bytes` (`ints`, `floats`):
encoding and decoding a decode step of 256 rows takes about 15 us, a tenth of the time with one object per
row. The messages are `msgspec.Struct`s and not attrs classes, because only those can form a tagged union.

Start-up:  Load -> Progress* -> Loaded -> Allocate -> Allocated -> Step (one per warmed-up bucket) -> Ready
Serving:   Step -> Result, in order; one more Step than there are stages may be sent before a Result is read.
           LoadLora -> LoraLoaded, at any time after Allocated
Of several ranks:  Load -> Arrived -> Joined -> Progress* and so on;
           Step -> Begun -> Result of one rank, Finished of any other
The end:   the server closes the socket, and the rank exits.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tgi.sampling import SamplingParams

from .description import NO_LORAS, Describe, Described, LoraSlots


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
    """"float32", "bfloat16", or "auto" for the dtype in which the device is fastest."""
    threads: int
    """CPU threads for one rank; 0 leaves the choice to the device."""
    lanes: int
    """Maximum number of sequences that run at once."""
    block_size: int
    contiguous: bool = False
    """Whether decode steps read the KV cache in one piece; see `tgi.limits.Limits.contiguous`."""
    """Tokens in a KV block."""
    max_tokens: int
    """Maximum tokens of a sequence, which the lanes' block tables have room for."""
    prefill_tokens: int = 512
    """Query tokens of the largest prefill step, padding included; its workspace is estimated from it."""
    attention: AttentionWorkspace = AttentionWorkspace()
    """Extent of the attention of the largest steps; their workspace is estimated from it."""
    top: int = 0
    """Maximum of `Step.top` and `Step.prompt_top`. On a device that compiles, every step reports as many."""
    dummy: bool = False
    """Whether weights are made up instead of read."""
    kv_cache_dtype: str = ""
    """"fp8_e4m3fn", or "" for the model's dtype."""
    overrides: dict[str, object] = msgspec.field(default_factory=dict)
    """Keys that replace those of config.json (`--rope-scaling`)."""
    quantize: str = ""
    """Weight format that dense weights are rounded to, or that the checkpoint must have; "": its own."""
    quant_config: str = ""
    """File of `tgi.weights.measurements`; "": none."""
    expert_parallel: bool = False
    """Whether a rank has whole experts, instead of a part of every expert."""
    stages: tuple[int, ...] = ()
    """Number of layers of each stage of a pipeline, the first stage on the first ranks; empty: one stage."""
    watermark_gamma: float = 0.5
    """Share of the vocabulary that a watermark favours."""
    watermark_delta: float = 2.0
    """Number that a watermark adds to the logits of the tokens it favours."""
    loras: LoraSlots = NO_LORAS


class Allocate(msgspec.Struct, tag=True, frozen=True):
    """Reserve the KV cache. Block 0 of each group takes the writes of padding rows."""

    blocks: tuple[int, ...]
    """Blocks of each layer group, in the order of `Described.groups`."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The warm-up has ended: no step should compile anything any more. It is not answered."""


class LoadLora(msgspec.Struct, tag=True, frozen=True):
    """Put a LoRA adapter into a slot that no row uses, between any two steps. Answered by `LoraLoaded`."""

    number: int
    slot: int
    folder: str
    """Folder with adapter_config.json."""


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


SAMPLERS = ("greedy", "plain draw", "everything")
"""Programs of the sampler on a device that compiles, each of which does more than the one before it."""


class Step(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """One forward pass and the sampling after it, described completely.

    A row is a run of query tokens of one sequence, of which the last `samples` give a token each. A decode
    row has one query token and one sample; a row with k guessed tokens has k + 1 of both. The last chunk of a
    prompt has n and one, a chunk before it n and none. The last token that was sampled for a lane stays on
    the device, so the server can send step n + 1 before it has read result n.
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
    """int32 [rows]: index of the row's first sample among the generated tokens of its sequence. The random
    number of a token depends on it. Ignored for a row without samples."""
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
    """Parameters of the lanes that a sequence enters with this step."""
    top: int = 0
    """Number of most likely tokens to report with each sample."""
    prompt_top: int = 0
    """Number of most likely tokens to report with each target."""
    masked: bytes = b""
    """int32 [m], ascending: the samples that have a mask, counted over all rows in order."""
    masks: bytes = b""
    """uint32 [m, words]: the tokens that each of them may give, one bit per token of the vocabulary, the
    lowest bit first."""
    loras: bytes = b""
    """int32 [rows]: the slot of each row's LoRA adapter, -1 for none. Empty if no row has one."""
    least_sampler: int = 0
    """Index of the least of the SAMPLERS that may choose the tokens, on a device that compiles: a lesser one
    did not decide, or this one is to be warmed up. Rows that need a greater one get it."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """Progress of loading: `done` of `total` bytes of weights."""

    done: int
    total: int


class Loaded(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The model is in memory. Sizes are in bytes."""

    free_bytes: int
    """Device memory left for the KV cache after the workspace of the largest step; negative if it lacks."""
    block_bytes: tuple[int, ...]
    """Bytes of one KV block on this rank in all layers of each layer group."""
    dtype: str
    """The dtype that was chosen."""
    total_bytes: int = 0
    """Memory of the device; 0: unknown."""
    weight_bytes: int = 0
    """Memory that the weights take; 0: unknown."""
    workspace_bytes: int = 0
    """Estimated memory of the largest step; not part of `free_bytes`."""
    graph_bytes: int = 0
    """Memory that each graph keeps; 0 if graphs keep none."""
    lora_bytes: int = 0
    """Memory of full slots of LoRA adapters; part of neither `free_bytes` nor `weight_bytes`."""
    remarks: tuple[str, ...] = ()
    """Warnings about the device, for the log."""


class Arrived(msgspec.Struct, tag=True, frozen=True):
    """A rank is about to look for the others, and believes to be rank `rank` of `ranks`."""

    rank: int
    ranks: int


class Joined(msgspec.Struct, tag=True, frozen=True):
    """The rank has heard of all others."""


class Begun(msgspec.Struct, tag=True, frozen=True):
    """The rank begins with a step, and may wait for other ranks. `digest` is that of the command."""

    digest: bytes


class Finished(msgspec.Struct, tag=True, frozen=True):
    """A rank other than the one with the result has finished a step. `digest` is that of `Result.tokens`,
    which are empty in a stage that does not choose any."""

    digest: bytes


class Allocated(msgspec.Struct, tag=True, frozen=True):
    """The KV cache is reserved."""


class LoraLoaded(msgspec.Struct, tag=True, frozen=True):
    """The adapter of the command `number` is in its slot; with a `fault`, the slot is as it was."""

    number: int
    fault: str = ""
    """Reason why it cannot be used: one line for people."""


class Result(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The tokens that a step gave: n is the sum of `Step.samples`, in the order of the rows."""

    number: int
    tokens: bytes
    """int32 [n]: the tokens; -1 where only the last of the SAMPLERS can choose one. Then a row that
    follows in the next step is void."""
    logprobs: bytes
    """float32 [n]: log-probability of each token in the distribution that it was drawn from."""
    top_tokens: bytes = b""
    """int32 [n, step.top]: most likely tokens, the best first; -1 where fewer have a probability."""
    top_logprobs: bytes = b""
    """float32 [n, step.top]: log-probabilities of `top_tokens`."""
    prompt_logprobs: bytes = b""
    """float32 [m]: log-probabilities of the step's targets other than -1, in order."""
    prompt_top_tokens: bytes = b""
    """int32 [m, step.prompt_top]: most likely tokens in the place of each target."""
    prompt_top_logprobs: bytes = b""
    """float32 [m, step.prompt_top]: log-probabilities of `prompt_top_tokens`."""
    seconds: float = 0.0
    """Time of the step inside the rank."""
    statistics: dict[str, float] = {}
    """Values for the server's metrics, by their names in `tgi.metrics.Metrics`: amounts to add to counters,
    values of gauges, observations."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """A command failed, and the rank ends. `message` is for people, `kind` for code."""

    message: str
    kind: str = "error"
    """"model" for a fault of the checkpoint or the options, "memory" for lack of memory, "error" for a defect
    of the program."""
    trace: str = ""
    """Traceback of a defect."""
    at: float = 0.0
    """Time of the failure by the monotonic clock that all processes share. Failures of other ranks that
    follow from it are later."""


Command: TypeAlias = Describe | Load | Allocate | Ready | LoadLora | Step
Report: TypeAlias = (
    Described
    | Arrived
    | Joined
    | Progress
    | Loaded
    | Allocated
    | LoraLoaded
    | Begun
    | Result
    | Finished
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)

encode = _encoder.encode
decode_command = _commands.decode
decode_report = _reports.decode


def digest(data: bytes) -> bytes:
    """Return eight bytes that differ, almost certainly, if the data do."""
    return blake2b(data, digest_size=8).digest()


def ints(values: Iterable[int]) -> bytes:
    """Pack a column of int32."""
    return array("i", values).tobytes()


def floats(values: Iterable[float]) -> bytes:
    """Pack a column of float32."""
    return array("f", values).tobytes()


def unpack_ints(column: bytes) -> npt.NDArray[np.int32]:
    """Return a read-only view of an int32 column."""
    return np.frombuffer(column, np.int32)


def unpack_floats(column: bytes) -> npt.NDArray[np.float32]:
    """Return a read-only view of a float32 column."""
    return np.frombuffer(column, np.float32)


_LENGTH = struct.Struct("<I")


def frame(payload: bytes) -> bytes:
    """Return the payload, less than 4 GiB, with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payloads, and holds an incomplete one until the rest arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[bytes]:
        """Take received bytes, and yield every payload that is complete now, in order."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload
