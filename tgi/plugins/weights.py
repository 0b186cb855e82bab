"""The tensors of the building blocks in `tgi.layers`, for `ModelConfig.weights`. No torch."""

from .architecture import ModelConfig, Weight


def column_weights(
    name: str, in_features: int, out_features: int, bias: bool = False, pieces: int | None = None
) -> list[Weight]:
    """Of one tensor of a `ColumnLinear`, whose output is divided over the ranks in so many pieces at most."""
    weights = [Weight(f"{name}.weight", (out_features, in_features), 0, pieces)]
    return [*weights, Weight(f"{name}.bias", (out_features,), 0, pieces)] if bias else weights


def row_weights(name: str, in_features: int, out_features: int, bias: bool = False) -> list[Weight]:
    """Of a `RowLinear`, whose input is divided over the ranks."""
    weights = [Weight(f"{name}.weight", (out_features, in_features), 1)]
    return [*weights, Weight(f"{name}.bias", (out_features,))] if bias else weights


def attention_weights(name: str, config: ModelConfig, bias: bool = False) -> list[Weight]:
    """Of a `SelfAttention`."""
    hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
    queries, keys = heads * config.head_dim, kv_heads * config.head_dim
    return [
        *column_weights(f"{name}.q_proj", hidden, queries, bias),
        *column_weights(f"{name}.k_proj", hidden, keys, bias, kv_heads),
        *column_weights(f"{name}.v_proj", hidden, keys, bias, kv_heads),
        *row_weights(f"{name}.o_proj", queries, hidden, bias),
    ]


def grouped_qkv_weights(name: str, config: ModelConfig, bias: bool = False) -> list[Weight]:
    """Of a `GroupedQKV`."""
    shared = 2 * config.num_kv_heads * config.head_dim
    rows = config.num_heads * config.head_dim + shared
    weights = [Weight(f"{name}.weight", (rows, config.hidden_size), 0, config.num_kv_heads, shared)]
    return [*weights, Weight(f"{name}.bias", (rows,), 0, config.num_kv_heads, shared)] if bias else weights


def gated_mlp_weights(name: str, hidden: int, inner: int, bias: bool = False) -> list[Weight]:
    """Of a `GatedMLP`."""
    return [
        *column_weights(f"{name}.gate_proj", hidden, inner, bias),
        *column_weights(f"{name}.up_proj", hidden, inner, bias),
        *row_weights(f"{name}.down_proj", inner, hidden, bias),
    ]


def norm_weights(name: str, size: int, bias: bool = False) -> list[Weight]:
    """Of an `RMSNorm`, or with a bias of a `LayerNorm`."""
    return [Weight(f"{name}.{kind}", (size,)) for kind in (("weight", "bias") if bias else ("weight",))]
