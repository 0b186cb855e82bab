"""What a device package says of itself."""

from collections.abc import Mapping, Sequence

import attrs


@attrs.frozen(kw_only=True)
class DeviceSpec:
    """A kind of device that ranks can run on, with the sizes that suit it."""

    name: str
    implementation: str
    """"module:Class", a `tgi.device.base.Device`; imported in rank processes only."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """Variables that the rank process is started with, unless they are set already."""
    block_size: int
    """Tokens in a KV block."""
    batch_size: int
    """Default of --max-batch-size: rows of the largest decode step."""
    prefill_tokens: int
    """Default of --max-batch-prefill-tokens: padded query tokens of the largest prefill step."""
    compiles: bool
    """True: every shape costs a compilation, so there are few buckets, padded in all dimensions, and all are
    warmed up. False: shapes are cheap, blocks are not padded, and only the largest buckets are warmed up."""
    flat: bool = False
    """How a device that compiles takes block tables. True: in decode as one list of the blocks of all rows,
    in prefill as a table per row of what was computed before the step; a bucket's blocks count these. False:
    as a table per row, with the blocks of the step itself."""
    cards: Sequence[str] = ()
    """Variables that list the cards that a server may use; the first that is set counts."""
    card_files: str = ""
    """Pattern of the files of all cards, for "all" in such a variable, and for none that is set."""
    cache_dtypes: frozenset[str] = frozenset()
    """Of --kv-cache-dtype, besides the model's own."""
    memory_fraction: float = 1.0
    """Default of --memory-fraction: the share of the memory beside weights and workspace that is used. What a
    device says of its free memory may be without a reserve already."""
