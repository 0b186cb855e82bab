"""What a model takes of a rank's memory beside its weights: the worker measures with it what is left, and
`tgi plan` what will be, so that both say the same."""

from tgi.plugins import ModelConfig

PROMPT_SLICE = 64
"""Positions of a prompt whose logits exist at once."""
SAMPLER_BYTES = 40
"""Of each logit, for the sampler with everything on: float32 scores and their copies, sorted values with
int64 indices, float64 sums."""
TABLE_BYTES = 4 + 4 + 4 + 1
"""What the sampler keeps of each token of the vocabulary for each lane."""


GATHERED = 4096
"""Blocks whose keys and values are copied at once, where a decode step reads more: of some of a Llama with 8
billion parameters, 2.3 GiB."""


def block_bytes(config: ModelConfig, ranks: int, block_size: int, item: int) -> int:
    """Keys and values of a KV block in all layers, of numbers of `item` bytes."""
    return 2 * config.num_layers * block_size * -(-config.num_kv_heads // ranks) * config.head_dim * item


def first_block(position: int, window: int | None, block_size: int) -> int:
    """Number of the first KV block that the token at this position sees; None: it sees all before it."""
    return 0 if window is None else max(position + 1 - window, 0) // block_size


def workspace_bytes(
    config: ModelConfig,
    *,
    ranks: int,
    item: int,
    widest: int,
    lanes: int,
    prefill_tokens: int,
    block_size: int = 0,
    gathered_blocks: int = 0,
    listed_blocks: int = 0,
    prefill_pairs: int = 0,
) -> int:
    """Upper estimate of what the largest step needs, the sampler and its tables included.

    Activations: per query token six vectors of the hidden size and three of `widest`, the widest linear layer
    of a rank, are alive at once. Logits: of each lane's row, or of a slice of a prompt. On a device that
    gathers keys and values: those of one layer, their float32 scores twice, and per block three vectors of
    all heads; of each block in a decode step's list two maps to the rows, and two masks and distances in
    float32; and a mask of a prompt, as distances, as bool, as float32 and in the model's dtype. Where scores
    are changed, those of a prompt: for each head in float32, changed, and in the model's dtype, and the
    distances once more.
    """
    tokens = max(prefill_tokens, lanes)
    activations = tokens * (6 * config.hidden_size + 3 * widest) * item
    logits = max(lanes, PROMPT_SLICE) * config.vocab_size * (item + SAMPLER_BYTES)
    tables = (lanes + 1) * config.vocab_size * TABLE_BYTES
    heads = config.num_heads // ranks
    kept = 2 * -(-config.num_kv_heads // ranks) * config.head_dim * item
    of_block = block_size * (kept + 2 * 4 * heads) + 3 * heads * config.head_dim * item
    of_map = lanes * (4 + item) + 3 * 4 * block_size
    of_pair = 4 + 1 + 4 + item + (4 + heads * (4 + 4 + item) if config.changes_scores else 0)
    return (
        activations
        + logits
        + tables
        + gathered_blocks * of_block
        + listed_blocks * of_map
        + prefill_pairs * of_pair
    )


def graph_bytes(config: ModelConfig) -> int:
    """What a graph keeps where its tensors are not cached, by layers: 10 MiB of a Llama with 32.

    vLLM for Gaudi plans with 10 MB for 8 billion parameters, and with 20 MB for 70 billion in 80 layers.
    """
    return config.num_layers * (10 << 20) // 32
