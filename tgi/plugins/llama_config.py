"""Settings of decoders like Llama's, and a reader of their config.json; `tgi.layers.llama` has the layers."""

from collections.abc import Callable
from typing import Any

import attrs

from .architecture import ConfigError, JsonReader, ModelConfig
from .experts_config import ExpertsConfig
from .rope_config import RopeConfig, read_rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Kinds of activation by their names in config.json."""


@attrs.frozen(kw_only=True)
class Names:
    """Names of the modules of a model in its checkpoint."""

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    """Embedding of positions that were learned."""
    embedding_norm: str | None = None
    layer: str = "model.layers.{}"
    """Beginning of the names of a layer's modules, which are those below."""
    norm: str = "model.norm"
    head: str = "lm_head"
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    """Norm of what attention adds."""
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Projections to queries, keys and values; a single one has all, one below the other."""
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    out: str = "o_proj"
    mlp: str = "mlp"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    """First layers of the MLP; a single one has both halves, if the MLP is gated."""
    down: str = "down_proj"

    def moved(self, before: str, now: str, **own: Any) -> "Names":
        """Return the names of a model whose modules below `before` are below `now`; `own` replace others."""
        moved: dict[str, Any] = {
            field.name: now + value.removeprefix(before)
            for field in attrs.fields(Names)
            if isinstance(value := getattr(self, field.name), str) and value.startswith(before)
        }
        return attrs.evolve(self, **moved | own)


GPT2_NAMES = Names(
    embedding="transformer.wte",
    positions="transformer.wpe",
    layer="transformer.h.{}",
    norm="transformer.ln_f",
    before_attention="ln_1",
    before_mlp="ln_2",
    attention="attn",
    qkv=("c_attn",),
    out="c_proj",
    up=("c_fc",),
    down="c_proj",
)


@attrs.frozen(kw_only=True)
class LatentSizes:
    """Sizes of attention whose keys and values are kept compressed (DeepSeek-AI 2024, arXiv 2405.04434)."""

    rank: int
    """Features of the compressed keys and values of a token."""
    query_rank: int | None
    """Features of its compressed queries; None: they are not compressed."""
    plain: int
    """Features of a head's keys that are not rotated."""
    rotated: int
    """Features of keys that are rotated, which all heads share."""
    value: int
    """Features of a head's values."""


@attrs.frozen(kw_only=True)
class Temperature:
    """Factor of queries by which attention stays as sharp over more tokens, in layers that do not rotate.

    It is 1 + scale * log(1 + floor((position + 1) / step)) (Nakanishi 2025, arXiv 2501.19399).
    """

    scale: float
    step: int


@attrs.frozen(kw_only=True)
class LlamaConfig(ModelConfig):
    """The settings of a decoder like Llama's."""

    names: Names = Names()
    other_names: tuple[Names, ...] = ()
    """Names in checkpoints of other versions, which are tried where `names` are missing."""
    intermediate_size: int
    rms_norm_eps: float
    """Epsilon of the norms."""
    ropes: tuple[RopeConfig | None, ...]
    """Rotary positions of each layer; None: the layer does not rotate."""
    interleaved: bool = False
    """Whether neighbouring features are rotated together, instead of those half a head apart."""
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    """Number of tokens that a token sees in each layer, itself included; None: all before it."""
    chunked: bool = False
    """Whether a text is divided into chunks as long as the window, and a token sees its own chunk only."""
    activation: str = "silu"
    """One of the values of `ACTIVATIONS`."""
    gated: bool = True
    """Whether the MLP multiplies the activation by another linear layer."""
    parallel: bool = False
    """Whether attention and MLP have the same input, and are added to it together."""

    qkv_bias: bool = False
    qkv_by_group: bool = False
    """Whether a single projection has queries, keys and values by key/value head."""
    out_bias: bool = False
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = False
    head_bias: bool = False
    transposed: bool = False
    """Whether the checkpoint has the layers' weights as [in, out]."""

    layer_norm: bool = False
    """Whether norms subtract the mean."""
    norm_bias: bool = False
    norm_offset: float = 0.0
    """Number that is added to the weights of norms."""
    head_norm: str | None = None
    """Norm of queries and keys before their rotation: "head" (each by itself, all with one weight), "heads"
    (each by itself, with a weight of its own), "all" (those of all heads together), or "plain" (each by
    itself, without a weight, in layers that rotate). Where the norm's name in `names` has a "{}" for the
    head's number, each weight is a tensor of its own."""

    attention_scale: float | None = None
    """Factor of the scores; None: head_dim ** -0.5."""
    attention_softcap: float | None = None
    temperature: Temperature | None = None
    alibi: bool = False
    sinks: bool = False
    """Whether each head has a score for attending to nothing, named "sinks" below the attention's name."""
    clip_qkv: float | None = None
    """Greatest magnitude of queries, keys and values."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Factor of the outputs of attention and MLP."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    unit_head: bool = False
    """Whether the head's rows are divided by their lengths."""
    experts: ExpertsConfig | None = None
    latent: LatentSizes | None = None
    """Attention that keeps keys and values compressed; None: it keeps them as they are."""


def read_llama_config(
    get: JsonReader,
    window: int | None = None,
    *,
    slides: Callable[[int], bool] = lambda _: True,
    **own: Any,
) -> LlamaConfig:
    """Read config.json with the names and defaults of Llama; `own` fields of a family replace or extend them.

    `window` is that of the layers which "layer_types" calls sliding. Without such a list it is that of the
    layers for whose number `slides` is true.
    Raises ConfigError if config.json asks for something that `LlamaDecoder` cannot do.
    """
    heads, hidden = get.size("num_attention_heads"), get.size("hidden_size")
    head_dim = get.size("head_dim", hidden // heads)
    layers = get.size("num_hidden_layers")
    if "ropes" not in own:
        own["ropes"] = (read_whole_rope(get, head_dim),) * layers
    if "activation" not in own:
        own["activation"] = read_activation(get, "hidden_act", ("silu",))
    if "windows" not in own:
        own["windows"] = read_windows(get, layers, window, slides)
    limits = [rope.depends_on_length_beyond for rope in own["ropes"] if rope is not None]
    common: dict[str, Any] = {
        "vocab_size": get.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": get.size("num_key_value_heads", heads),
        "head_dim": head_dim,
        "max_position": get.size("max_position_embeddings", 2048),
        "prefix_limit": min((limit for limit in limits if limit is not None), default=None),
        "intermediate_size": own.get("intermediate_size") or get.size("intermediate_size"),
        "rms_norm_eps": get(float, "rms_norm_eps", 1e-6),
        "tie_word_embeddings": get(bool, "tie_word_embeddings", False),
    }
    return LlamaConfig(**common | own)


def read_gpt_config(get: JsonReader, *, bias: bool, **own: Any) -> LlamaConfig:
    """Read config.json with the defaults of GPT-2, whose MLP has no gate and whose norms subtract the mean.

    `bias` is whether the linear layers of attention and MLP have biases; the arguments are otherwise those of
    `read_llama_config`. Raises ConfigError.
    """
    get = get.adapted(defaults={"rms_norm_eps": 1e-5})
    common: dict[str, Any] = {
        "gated": False,
        "layer_norm": True,
        "norm_bias": True,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
    }
    if "intermediate_size" not in own:
        common["intermediate_size"] = get(int, "intermediate_size", None) or 4 * get.size("hidden_size")
    return read_llama_config(get, **common | own)


def read_gelu(get: JsonReader, key: str = "hidden_act", default: str = "gelu_new") -> str:
    """Read the name of an activation, which must be a kind of GELU. Raises ConfigError."""
    return read_activation(get, key, ("gelu", "gelu_tanh"), default)


def read_activation(get: JsonReader, key: str, kinds: tuple[str, ...], default: str = "silu") -> str:
    """Read the name of an activation, which must be of one of the `kinds`. Raises ConfigError."""
    name = get(str, key, default)
    kind = ACTIVATIONS.get(name)
    if kind not in kinds:
        known = " or ".join(repr(name) for name, kind in ACTIVATIONS.items() if kind in kinds)
        raise ConfigError(f"config.json: {key!r} is {name!r}; only {known} is supported")
    return kind


def read_whole_rope(get: JsonReader, head_dim: int) -> RopeConfig:
    """Read the RoPE of a family that rotates whole heads. Raises ConfigError if it is set to do otherwise."""
    rope = read_rope(get, head_dim)
    if rope.dim != head_dim:
        raise ConfigError(
            "config.json: 'partial_rotary_factor' is set; this architecture rotates whole heads"
        )
    return rope


def with_local_rope(config: LlamaConfig, get: JsonReader, theta: float) -> LlamaConfig:
    """Return a config whose layers with a window have another RoPE than those that see everything.

    It is that of "sliding_attention", or, without RoPEs by types of layers, one of base `theta` that
    is not scaled. Raises ConfigError.
    """
    size, parameters = config.head_dim, get.section("rope_parameters")
    if parameters is not None and parameters.data:
        if "full_attention" not in parameters:
            raise ConfigError("config.json 'rope_parameters' has no 'full_attention', which this model needs")
        full, local = (read_rope(get, size, kind) for kind in ("full_attention", "sliding_attention"))
        own = parameters.section("sliding_attention")
        if own is None or "rope_theta" not in own:
            local = attrs.evolve(local, theta=theta)
    else:
        full = read_whole_rope(get, size)
        length = full.max_position
        local = RopeConfig(theta=theta, dim=size, max_position=length, original_max_position=length)
    ropes = tuple(full if window is None else local for window in config.windows)
    return attrs.evolve(config, ropes=ropes)


def read_windows(
    get: JsonReader, layers: int, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """Return the window of each layer, with the arguments of `read_llama_config`. Raises ConfigError."""
    types = get(list, "layer_types", None)
    if types is None:
        return tuple(window if slides(layer) else None for layer in range(layers))
    known = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
    other = [kind for kind in types if kind not in known]
    if other or len(types) != layers:
        fault = f"has {other[0]!r}" if other else f"has {len(types)} entries"
        raise ConfigError(f"config.json: 'layer_types' {fault}; expected {layers} of {', '.join(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def read_text_part(
    read: Callable[[JsonReader], LlamaConfig], *kinds: str
) -> Callable[[JsonReader], LlamaConfig]:
    """Return a reader of models of images and text, of which only the decoder runs.

    `read` reads "text_config", whose "model_type" is one of `kinds`. Their checkpoints have other names than
    those of a decoder alone.
    """

    def read_part(get: JsonReader) -> LlamaConfig:
        text = get.section("text_config")
        if text is None:
            raise ConfigError("config.json has no 'text_config', which this architecture needs")
        if (kind := text(str, "model_type", kinds[0])) not in kinds:
            known = ", ".join(kinds)
            raise ConfigError(
                f"config.json 'text_config': 'model_type' is {kind!r}; this architecture runs only {known}"
            )
        get.all()
        config = read(text.adapted(defaults=_shared(get)))
        old = config.names.moved("model.", "language_model.model.", head="language_model.lm_head")
        new = config.names.moved("model.", "model.language_model.")
        return attrs.evolve(config, names=old, other_names=(new,))

    return read_part


def _shared(get: JsonReader) -> dict[str, Any]:
    return {key: get.data[key] for key in ("tie_word_embeddings",) if key in get}
