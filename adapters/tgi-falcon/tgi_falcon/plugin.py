"""Falcon for tgi: what the server must know of it. Imports no torch."""

import attrs

from tgi.plugins import Architecture, ConfigError, JsonReader, ModelConfig, Weight, hookimpl
from tgi.plugins.rope_config import RopeConfig, read_rope
from tgi.plugins.weights import column_weights, grouped_qkv_weights, norm_weights, row_weights


@attrs.frozen(kw_only=True)
class FalconConfig(ModelConfig):
    """config.json of a Falcon."""

    inner_size: int
    epsilon: float
    bias: bool
    rope: RopeConfig | None
    """None: ALiBi."""
    parallel: bool
    """Attention and MLP read the same, and are added to it together."""
    norms: tuple[str, ...]
    """Of each layer: the attention's and the MLP's; or one of both."""
    tie_word_embeddings: bool

    def weights(self) -> list[Weight]:
        """The head is apart from the embedding, even where they are tied."""
        hidden, inner, vocabulary = self.hidden_size, self.inner_size, (self.vocab_size, self.hidden_size)
        weights = [Weight("transformer.word_embeddings.weight", vocabulary, 0)]
        for index in range(self.num_layers):
            at = f"transformer.h.{index}"
            for norm in self.norms:
                weights += norm_weights(f"{at}.{norm}", hidden, bias=True)
            weights += grouped_qkv_weights(f"{at}.self_attention.query_key_value", self, self.bias)
            queries = self.num_heads * self.head_dim
            weights += row_weights(f"{at}.self_attention.dense", queries, hidden, self.bias)
            weights += column_weights(f"{at}.mlp.dense_h_to_4h", hidden, inner, self.bias)
            weights += row_weights(f"{at}.mlp.dense_4h_to_h", inner, hidden, self.bias)
        weights += norm_weights("transformer.ln_f", hidden, bias=True)
        return [*weights, Weight(f"{self.head}.weight", vocabulary, 0)]

    @property
    def head(self) -> str:
        """Name of the tensor that gives logits."""
        return "transformer.word_embeddings" if self.tie_word_embeddings else "lm_head"

    def divides(self, ranks: int) -> bool:
        """By the MLP too."""
        return super().divides(ranks) and self.inner_size % ranks == 0

    @property
    def widest(self) -> int:
        """Of the MLP, or the fused heads."""
        return max(self.inner_size, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim)


def read_config(get: JsonReader) -> FalconConfig:
    """Under the names of transformers, or those of the code in the models' own repositories, whose defaults
    are others. Raises ConfigError where config.json asks for what this model cannot do."""
    activation = get(str, "activation", "gelu")
    if activation != "gelu":
        raise ConfigError(f"config.json: 'activation' is {activation!r}; a Falcon has 'gelu'")
    if get.section("quantization_config"):
        raise ConfigError("config.json: 'quantization_config' is set; quantized Falcons are not supported")
    own_code = get(str, "model_type", "falcon").startswith("RefinedWeb")
    hidden = get.size("n_embed" if "n_embed" in get.data else "hidden_size")
    heads = get.size("n_head" if "n_head" in get.data else "num_attention_heads")
    new = get(bool, "new_decoder_architecture", own_code and "n_head_kv" in get.data)
    parallel = new or get(bool, "parallel_attn", not own_code)
    kv_heads = 1 if get(bool, "multi_query", not own_code) else heads
    if new:
        kv_heads = get.size("n_head_kv" if "n_head_kv" in get.data else "num_kv_heads", heads)
    rope = None if get(bool, "alibi", False) else read_rope(get, hidden // heads)
    return FalconConfig(
        vocab_size=get.size("vocab_size"),
        hidden_size=hidden,
        num_layers=get.size("n_layer" if "n_layer" in get.data else "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_position=get.size("max_position_embeddings", 2048),
        prefix_limit=rope.depends_on_length_beyond if rope else None,
        changes_scores=rope is None,
        inner_size=get.size("ffn_hidden_size", 4 * hidden),
        epsilon=get(float, "layer_norm_epsilon", 1e-5),
        bias=get(bool, "bias", False),
        rope=rope,
        parallel=parallel,
        norms=_norms(parallel, get(int, "num_ln_in_parallel_attn", 2 if new else 1)),
        tie_word_embeddings=get(bool, "tie_word_embeddings", True),
    )


def _norms(parallel: bool, count: int) -> tuple[str, ...]:
    if not parallel:
        return ("input_layernorm", "post_attention_layernorm")
    return ("ln_attn", "ln_mlp") if count == 2 else ("input_layernorm",)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """The decoder with a language-model head, under the name of transformers, and of the models' own code."""
    names = ("FalconForCausalLM", "RWForCausalLM")
    return [Architecture(name, "tgi_falcon.model:Falcon", read_config) for name in names]
