"""The description of a model, which a rank process makes without reading weights and without a device."""

import math

import msgspec


class LoraSlots(msgspec.Struct, frozen=True, array_like=True):
    """Room for LoRA adapters on every rank."""

    count: int = 0
    """Number of adapters that are loaded at once; 0: there can be none."""
    rank: int = 0
    """Greatest rank of an adapter."""


NO_LORAS = LoraSlots()


class Describe(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Ask for a `Described` of a model; may come before `Load`, or alone."""

    folder: str
    """A checkpoint folder with config.json."""
    architecture: str
    """A name that a plugin offers, from config.json's "architectures"."""
    ranks: int
    """Number of ranks that each layer is divided over."""
    stages: int = 1
    """Number of stages that the layers are divided into, each on ranks of its own."""
    dtype: str
    """"float32", "bfloat16", or "auto", which counts as bfloat16."""
    kv_cache_dtype: str = ""
    """"fp8_e4m3fn", or "": the model's."""
    dummy: bool = False
    """Whether weights are made up, so that no files are needed."""
    check: bool = True
    """Whether a tensor that the files lack, or that no layer reads, is an error."""
    overrides: dict[str, object] = msgspec.field(default_factory=dict)
    """Keys that replace those of config.json (`--rope-scaling`)."""
    quantize: str = ""
    """Weight format that dense weights are rounded to, or that the checkpoint must have; "": its own."""
    quant_config: str = ""
    """File of `tgi.weights.measurements`; "": none."""
    keeps: list[str] = msgspec.field(default_factory=list)
    """Kinds of weights that the device multiplies as they are stored, as in its `DeviceSpec`."""
    expert_parallel: bool = False
    """Whether a rank has whole experts, instead of a part of every expert."""
    loras: LoraSlots = NO_LORAS


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a checkpoint as a rank keeps it."""

    name: str
    shape: list[int]
    """Shape in the checkpoint."""
    part: list[int]
    """Shape of the first rank's part, with the rows that fill it up, if any."""
    format: str
    """Name of the weight format."""
    bytes: int
    """Bytes of the part in the rank's memory."""
    share: float = 1.0
    """Share of a step's tokens that are multiplied with it: less than 1 for an expert's."""


class CacheGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Attention layers that share block tables, because their keys and values have one shape and window."""

    window: int | None
    """Number of tokens that a token sees, itself included; None: all before it."""
    layers: list[int]
    """Numbers of the layers, ascending."""
    kv_heads: int
    """Key/value heads on one rank."""
    all_kv_heads: int
    """Key/value heads on all ranks together."""
    head_dim: int
    token_bytes: int
    """Bytes of one token's keys and values in all layers of the group, on one rank."""
    latent: bool = False
    """Whether values are kept as a part of the keys."""


class Described(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Answer to `Describe`; of the rank that keeps most where they differ."""

    tensors: list[TensorInfo]
    """Tensors in the order in which the layers read them; one that two layers keep is there twice."""
    groups: list[CacheGroup]
    """Groups of attention layers, by their first layer."""
    possible_ranks: list[int]
    """Numbers of ranks that the model can be divided over."""
    item: int
    """Bytes of a number in the model's dtype."""
    vocab_size: int
    """Number of token ids; 0 of a stage that gives no logits."""
    hidden_size: int
    heads: int
    """Query heads of a rank."""
    widest: int
    """Largest number of output features of a linear layer on a rank, the head aside."""
    changes_scores: bool
    """Whether a layer does more to a score than scale and hide it, which takes memory: slopes, or a cap."""
    lora_bytes: int = 0
    """Bytes of a rank's LoRA adapters if every slot is full."""
    lora_columns: int = 0
    """Largest number of intermediate features that a linear layer's adapters have on a rank."""
    stage_layers: tuple[int, ...] = ()
    """Number of layers of each stage; empty for a single stage."""
    stages: list["Described"] = []
    """Description of each stage; empty for a single stage."""

    @property
    def parts(self) -> list["Described"]:
        """The stages, or the whole if it is the only one."""
        return self.stages or [self]

    @property
    def parameters(self) -> int:
        """Numbers that a rank keeps."""
        return sum(math.prod(tensor.part) for tensor in self.tensors)

    @property
    def active_parameters(self) -> float:
        """Numbers that a rank multiplies a token with, on average over experts."""
        return sum(math.prod(tensor.part) * tensor.share for tensor in self.tensors)

    @property
    def experts(self) -> list[TensorInfo]:
        """Tensors of experts."""
        return [tensor for tensor in self.tensors if tensor.share < 1]

    @property
    def layers(self) -> int:
        """Attention layers."""
        return sum(len(group.layers) for group in self.groups)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a rank keeps."""
        return sum(tensor.bytes for tensor in self.tensors)
