"""Settings of a mixture of experts; `tgi.layers.moe` has the layer."""

import attrs


@attrs.frozen(kw_only=True)
class ExpertsConfig:
    """The MLPs of a layer, of which a router chooses some for each token."""

    layers: tuple[bool, ...]
    """Whether each layer of the model has experts; the others have one MLP."""
    count: int
    """Number of experts among which the router chooses."""
    top: int
    """Number of experts of a token."""
    inner: int
    """Inner size of an expert."""
    scores: str = "softmax"
    """"softmax" or "sigmoid" of the router's results, or "sparsemixer" (Phi-MoE)."""
    jitter: float = 0.0
    """Nearness of scores that "sparsemixer" weighs against each other."""
    normalise: bool = True
    """Whether the weights of a token's experts add up to 1."""
    scale: float = 1.0
    """Factor of the weights."""
    before: bool = False
    """Whether weights are factors of what goes into experts, instead of what comes out."""
    groups: int = 1
    """Number of groups of experts, of which the best are chosen first."""
    top_groups: int = 1
    group_top: int = 1
    """Number of best experts whose scores, added up, are the score of a group."""

    name: str = "mlp"
    """Name of the module below the layer's."""
    router: str = "gate"
    router_bias: bool = False
    wide: bool = False
    """Whether the router computes in float32 also in a model of 16 bits."""
    correction: str | None = None
    """Name of the tensor that is added to the scores for the choice alone."""
    up: tuple[str, ...] = ("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight")
    """Names of tensors whose rows are those of the gate and of the layer beside it, one after another."""
    down: str = "experts.{}.down_proj.weight"
    """Name of the last layer's tensor. Names without a number are of tensors of all experts, one after
    another in the first dimension."""
    bias: bool = False
    """Whether the experts' layers have biases, whose names end in "_bias"."""
    transposed: bool = False
    """Whether the checkpoint has the experts' tensors as [in, out]."""
    alternating: bool = False
    """Whether the rows of the gate and of the layer beside it alternate in a single tensor."""
    shared: int = 0
    """Inner size of an MLP that every token goes through, too; 0 for none."""
    shared_name: str = "mlp.shared_expert"
    shared_up: tuple[str, ...] = ("gate_proj", "up_proj")
    shared_down: str = "down_proj"
    shared_gate: str | None = None
    """Name below the module's of a linear layer whose sigmoid is the weight of the shared MLP."""
