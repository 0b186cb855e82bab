"""Memory that a model takes on a rank beside its weights.

Ranks measure with it how much they have left for the KV cache, and `tgi plan` how much they will have.
"""

from tgi.protocol import Described, Load

PROMPT_SLICE = 64
"""Positions of a prompt whose logits exist at once."""
SAMPLER_BYTES = 40
"""Bytes per logit that the sampler needs with everything on: float32 scores and their copies, sorted values
with int64 indices, float64 sums."""
TABLE_BYTES = 4 + 4 + 4 + 1
"""Bytes that the sampler keeps for each lane and token of the vocabulary."""
GATHERED = 4096
"""Maximum KV blocks gathered at once in a decode step; larger steps loop. 2.3 GiB for a Llama of 8 billion
parameters."""


def first_block(position: int, window: int | None, block_size: int) -> int:
    """Return the number of the first KV block that the token at this position sees; window None: all."""
    return 0 if window is None else max(position + 1 - window, 0) // block_size


def workspace_bytes(model: Described, load: Load) -> int:
    """Estimate from above the bytes that the largest step needs, the sampler and its tables included.

    Alive at once are: per query token six vectors of the hidden size and three
    of the widest linear layer; the logits of each lane's row, or of a slice of a prompt; on a device that
    gathers keys and values those of one layer, with two float32 scores per head, and per block three vectors
    of all heads; per listed block of each layer group two maps to the rows, and two
    masks and distances in float32; per pair of a
    prompt's mask a distance, a bool, a float32, and a number of the model's dtype. Where scores are changed,
    a prompt also has each head's scores twice in float32 and once in the model's dtype, and the distances
    once more.
    """
    item, heads, lanes, block_size = model.item, model.heads, load.lanes, load.block_size
    tokens = max(load.prefill_tokens, lanes)
    activations = tokens * (6 * model.hidden_size + 3 * model.widest) * item
    logits = max(lanes, PROMPT_SLICE) * model.vocab_size * (item + SAMPLER_BYTES)
    tables = (lanes + 1) * model.vocab_size * TABLE_BYTES
    head_dim = max(group.head_dim for group in model.groups)
    kept = max(2 * group.kv_heads * group.head_dim for group in model.groups) * item
    of_block = block_size * (kept + 2 * 4 * heads) + 3 * heads * head_dim * item
    of_map = len(model.groups) * (lanes * (4 + item) + 3 * 4 * block_size)
    of_pair = 4 + 1 + 4 + item + (4 + heads * (4 + 4 + item) if model.changes_scores else 0)
    return (
        activations
        + logits
        + tables
        + load.attention.gathered_blocks * of_block
        + load.attention.listed_blocks * of_map
        + load.attention.prefill_pairs * of_pair
    )


def graph_bytes(layers: int) -> int:
    """Return the bytes that a graph keeps if its tensors are not cached: 10 MiB for a Llama of 32 layers.

    vLLM, too, plans with 10 MB for 8 billion parameters, and with 20 MB for 70 billion in 80 layers.
    """
    return layers * (10 << 20) // 32
