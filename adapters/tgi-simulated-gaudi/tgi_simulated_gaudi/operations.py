"""Facts about each aten operation: its kind, the dtypes that have a kernel, its out variant.

The list is the part of the bridge's table of supported operators (docs/Pytorch_Operators.rst of release 1.19)
that inference needs. Differences: int32 may be multiplied, subtracted and negated, on which inference stacks
rely, and float16 matrix products count as missing. With a card, the host runs an operation that is not listed
("CPU fallback"). `matmul` is one operation in inference, as in the bridge: torch would copy what it
transposes.
"""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch

Op = torch._ops.OpOverload
FLOAT = frozenset({torch.float32, torch.bfloat16})
HALF = frozenset({torch.float16})
INT = frozenset({torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64})
BOOL = frozenset({torch.bool})
FP8 = frozenset({torch.float8_e4m3fn})
ANY = FLOAT | HALF | INT | BOOL | FP8

FORBIDDEN_DTYPES = frozenset(
    {
        torch.float64,
        torch.complex32,
        torch.complex64,
        torch.complex128,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    }
)


def names(words: str) -> frozenset[str]:
    """Split a table of names."""
    return frozenset(words.split())


_KERNELS: dict[frozenset[torch.dtype], str] = {
    ANY: """
        _to_copy copy_ clone cat stack fill_ zero_ zeros ones full empty empty_strided empty_like
        zeros_like ones_like full_like new_empty new_zeros new_ones new_full new_empty_strided arange
        scalar_tensor index_select index index_copy index_copy_ embedding repeat masked_fill
        masked_fill_ constant_pad_nd roll flip eq ne slice_scatter select_scatter isnan
        _local_scalar_dense equal index_fill index_fill_
    """,
    FLOAT | HALF | INT | BOOL: """
        gather scatter scatter_ logical_and any all gt lt ge le add add_ mul mul_ sum eye
    """,
    FLOAT | HALF | INT: """
        where sub sub_ rsub neg neg_ abs abs_ minimum maximum clamp clamp_ clamp_min clamp_min_ clamp_max
        clamp_max_ amax amin max min argmax argmin cumsum cumsum_ remainder remainder_ fmod floor_divide
        floor_divide_ div div_ pow pow_ index_add index_add_ addcmul addcmul_ nan_to_num nan_to_num_ ceil
        floor floor_ trunc searchsorted linspace square
    """,
    FLOAT | INT: "index_put index_put_",
    FLOAT | HALF | BOOL | frozenset({torch.int8}): "logical_or logical_not logical_xor tril triu",
    INT | BOOL: """
        bitwise_and bitwise_or bitwise_not bitwise_xor bitwise_and_ bitwise_or_ bitwise_xor_
        bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ bitwise_left_shift_
        bitwise_right_shift_ __and__ __or__ __xor__
    """,
    FLOAT | HALF: """
        exp exp_ log log_ log2 log1p expm1 sqrt sqrt_ rsqrt rsqrt_ reciprocal reciprocal_ sin cos tan atan2
        tanh tanh_ sigmoid sigmoid_ silu silu_ gelu relu relu_ erf mean softmax _softmax _safe_softmax
        log_softmax _log_softmax logsumexp native_layer_norm native_group_norm linalg_vector_norm norm var
        var_mean std lerp lerp_ softplus leaky_relu leaky_relu_ elu hardtanh hardsigmoid topk sort prod
        sign round round_ frac xlogy isinf isfinite scatter_add scatter_add_ scatter_reduce scatter_reduce_
        index_reduce index_reduce_ log_sigmoid_forward rand randn rand_like randn_like normal_ uniform_
        exponential_ bernoulli bernoulli_ multinomial native_dropout
    """,
    FLOAT: "matmul mm bmm addmm addmm_ baddbmm baddbmm_ addbmm mv dot addmv convolution",
}
ALLOWED = {name: dtypes for dtypes, words in _KERNELS.items() for name in names(words)}
DYNAMIC = names(
    """
    nonzero nonzero_static masked_select unique_dim unique_consecutive _unique _unique2 bincount
    argwhere histc masked_scatter tensor_split unique_dim_consecutive
    """
)
RANDOM = names(
    """
    rand randn rand_like randn_like normal_ uniform_ exponential_ bernoulli_ bernoulli multinomial
    native_dropout randint randint_like randperm normal random_ geometric_ cauchy_ log_normal_
    """
)
INDEXING = {
    "index": 1,
    "index_fill": 2,
    "index_fill_": 2,
    "index_put": 1,
    "index_put_": 1,
    "index_select": 2,
    "index_copy": 2,
    "index_copy_": 2,
    "index_add": 2,
    "index_add_": 2,
    "index_reduce": 2,
    "index_reduce_": 2,
    "gather": 2,
    "scatter": 2,
    "scatter_": 2,
    "scatter_add": 2,
    "scatter_add_": 2,
    "scatter_reduce": 2,
    "scatter_reduce_": 2,
    "embedding": 1,
}
"""Position of the indices in the arguments."""
WRAPPING = names("index index_put index_put_ index_fill index_fill_")
"""Operations that take negative indices on the CPU; the others refuse them."""
WHOLE_UPDATES = names(
    """
    index_copy_ index_put_ scatter_ scatter_add_ scatter_reduce_ index_add_ index_reduce_
    """
)
"""Operations that may change an input of a graph."""
_HIDDEN_VIEWS = frozenset({"_unsafe_view", "_reshape_alias", "lift_fresh", "lift"})


@attrs.frozen(eq=False)
class Operation:
    """One overload of an operation."""

    op: Any
    name: str
    """Name without namespace and overload."""
    label: str
    """Name for messages: "aten.add.Tensor"."""
    call: Callable[..., Any]
    """Function that runs the operation on plain tensors."""
    composite: bool
    """Whether it consists of other operations."""
    view: bool
    """Whether its results are views of its argument."""
    mutates: tuple[tuple[int, str], ...]
    """Positions and names of the arguments that it changes."""
    out: Callable[..., Any] | None
    """Variant that writes into given tensors, if it has one."""
    out_names: tuple[str, ...] = ()
    """Names of these tensors among the variant's arguments."""
    out_keywords: frozenset[str] = frozenset()
    """Names of the variant's other keyword arguments."""


@functools.cache
def operation(op: Op) -> Operation:
    """Return the facts about an overload."""
    schema = op._schema
    name = op._opname
    writes = [
        (i, a) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    ]
    returns_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    full_name = str(schema).partition("(")[0]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "CompositeImplicitAutograd")
    out, out_names, keywords = (None, (), frozenset()) if writes or returns_view else _find_out(op)
    return Operation(
        op=op,
        name=name,
        label=str(op),
        call=_index_copy if name == "index_copy_" else op._op,
        composite=composite and op.namespace == "aten" and name != "matmul",
        view=returns_view or name in _HIDDEN_VIEWS,
        mutates=tuple((i, a.name) for i, a in writes),
        out=out,
        out_names=out_names,
        out_keywords=keywords,
    )


def _index_copy(target: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Run `index_copy_`, which CPUs lack for fp8, on bytes in that case."""
    if target.dtype in FP8:
        target.view(torch.uint8).index_copy_(dim, index, source.view(torch.uint8))
        return target
    return target.index_copy_(dim, index, source)


def _find_out(op: Op) -> tuple[Callable[..., Any] | None, tuple[str, ...], frozenset[str]]:
    """Find the overload with the same positional arguments that writes its results into keyword arguments."""
    nothing: tuple[None, tuple[str, ...], frozenset[str]] = (None, (), frozenset())
    if op.namespace != "aten" or any(str(r.type) != "Tensor" for r in op._schema.returns):
        return nothing
    mine = [(a.name, str(a.type)) for a in op._schema.arguments if not a.kwarg_only]
    packet = getattr(torch.ops.aten, op._opname)
    for overload in packet.overloads():
        other = getattr(packet, overload)
        arguments = other._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        positional = [(a.name, str(a.type)) for a in arguments if not a.kwarg_only]
        if len(outs) == len(op._schema.returns) and positional == mine:
            keywords = frozenset(a.name for a in arguments if a.kwarg_only and not a.is_out)
            return other._op, tuple(outs), keywords
    return nothing
