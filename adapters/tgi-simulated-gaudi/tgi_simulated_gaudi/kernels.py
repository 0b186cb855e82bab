"""The bridge's own kernels as single operations: fused attention, norm and rotary embedding, and fp8.

Signatures are those of habana_frameworks (see README.md); computed with plain torch.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F

from . import dispatch
from .operations import FLOAT, FP8, Operation

Tensor = torch.Tensor


def _fused(name: str, call: Callable[..., Any]) -> Operation:
    made = Operation(
        op=None, name=name, label=f"hpu.{name}", call=call, composite=False, view=False, mutates=(), out=None
    )
    dispatch.FUSED[name] = made
    return made


def _run(info: Operation, *args: Any) -> Any:
    return dispatch.execute(dispatch.active(), info, args, {})


# ---- attention ----------------------------------------------------------------------------------------


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    scale: float | None,
    left: bool,
) -> Tensor:
    """Attention of [b, heads, s, d] over [b, kv_heads, t, d]; tokens beyond `lengths` [b] are padding."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    if lengths is not None:
        size = query.shape[-2]
        place = torch.arange(size)
        short = (size - lengths if left else lengths)[:, None, None, None]
        valid = (place >= short) if left else (place < short)
        mask = (place[:, None] >= place) & valid
        mask = mask | (torch.eye(size, dtype=torch.bool) & ~mask.any(-1, keepdim=True))  # padding sees itself
        causal = False
    return F.scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale=scale)


_SDPA = _fused("sdpa", _sdpa)


class FusedSDPA:
    """`habana_frameworks.torch.hpex.kernels.FusedSDPA`."""

    @staticmethod
    def apply(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute_mode: bool | None = None,
        valid_seq_len: Tensor | None = None,
        seq_padding_type: str = "left",
        return_dropout_mask: bool = False,
        return_attn_probs: bool = False,
    ) -> Tensor:
        """Return the attention of [b, heads, s, d]. Raises ValueError for arguments that do not fit."""
        del recompute_mode
        if softmax_mode not in ("None", "fast", "fp32"):
            raise ValueError(f"FusedSDPA: softmax_mode {softmax_mode!r}")
        if is_causal and attn_mask is not None:
            raise ValueError("FusedSDPA: is_causal and attn_mask together are not supported")
        if valid_seq_len is not None and (not is_causal or attn_mask is not None):
            raise ValueError("FusedSDPA: valid_seq_len needs is_causal and no attn_mask")
        if seq_padding_type not in ("left", "right"):
            raise ValueError(f"FusedSDPA: seq_padding_type {seq_padding_type!r}")
        if dropout_p or return_dropout_mask or return_attn_probs:
            raise ValueError("FusedSDPA: dropout and probabilities are not simulated, which training needs")
        left = seq_padding_type == "left"
        return _run(_SDPA, query, key, value, attn_mask, valid_seq_len, is_causal, scale, left)  # type: ignore[no-any-return]


# ---- norm and rotary embedding ------------------------------------------------------------------------


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * gamma


_RMS_NORM = _fused("rms_norm", _rms_norm)


class FusedRMSNorm:
    """`habana_frameworks.torch.hpex.normalization.FusedRMSNorm`."""

    @staticmethod
    def apply(
        data_in: Tensor,
        gamma: Tensor,
        eps: float,
        use_stages: bool = True,
        bwd_mode: int = 0,
        fast_math: bool = False,
    ) -> Tensor:
        """Normalise the last dimension. Raises ValueError unless input and gamma have the same dtype."""
        del use_stages, bwd_mode, fast_math
        if data_in.dtype != gamma.dtype:
            raise ValueError(f"FusedRMSNorm: input is {data_in.dtype} and gamma {gamma.dtype}")
        return _run(_RMS_NORM, data_in, gamma, eps)  # type: ignore[no-any-return]


class RotaryPosEmbeddingMode(Enum):
    """Pairs of features that are rotated together."""

    BLOCKWISE = 0
    """Features of the first half with those of the second (NeoX)."""
    PAIRWISE = 1
    """Neighbours (GPT-J)."""


def _rotary(
    p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, offset: int, pairwise: bool
) -> Tensor:
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    elif offset:
        cos, sin = (table.narrow(0, offset, p.shape[-2]) for table in (cos, sin))
    if pairwise:
        turned = torch.stack((-p[..., 1::2], p[..., ::2]), -1).flatten(-2)
    else:
        first, second = p.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    return p * cos + turned * sin


_ROTARY = _fused("rotary_pos_embedding", _rotary)


def apply_rotary_pos_emb(
    p: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    offset: int = 0,
    mode: RotaryPosEmbeddingMode = RotaryPosEmbeddingMode.BLOCKWISE,
) -> Tensor:
    """Rotate p. Raises ValueError unless the last dimension of cos and sin is p's."""
    if cos.shape[-1] != p.shape[-1] or sin.shape[-1] != p.shape[-1]:
        raise ValueError(f"apply_rotary_pos_emb: cos has {cos.shape[-1]} dimensions, p has {p.shape[-1]}")
    pairwise = mode is RotaryPosEmbeddingMode.PAIRWISE
    return _run(_ROTARY, p, cos, sin, position_ids, offset, pairwise)  # type: ignore[no-any-return]


class RotaryPosEmbeddingHelperV2:
    """`apply_rotary_pos_emb` with position ids, as an autograd function of the bridge."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
        """See `apply_rotary_pos_emb`."""
        return apply_rotary_pos_emb(p, cos, sin, position_ids)


# ---- fp8 ----------------------------------------------------------------------------------------------


def _limit() -> float:
    return dispatch.active().profile.generation.fp8_limit


def _saturated(x: Tensor, limit: float) -> Tensor:
    return x.float().clamp(-limit, limit).to(torch.float8_e4m3fn)


def _check_fp8(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float8_e4m3fn):
        dispatch.active().ledger.violate("S13", "hpu.cast_to_fp8_v2", f"{dtype} is not supported")


def _cast_to_fp8(
    x: Tensor,
    scale: Any = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
    dtype: torch.dtype | None = None,
    scale_shape: Any = None,
) -> tuple[Tensor, Tensor]:
    del stochastic_rounding, scale_shape
    _check_fp8(dtype)
    scaled = x.float() if scale is None else x.float() * scale
    amax = x.abs().max().float() if is_amax else torch.zeros(())
    return _saturated(scaled, _limit()), amax


def _cast_from_fp8(x: Tensor, scale: Any, out_dtype: torch.dtype, scale_shape: Any = None) -> Tensor:
    del scale_shape
    return (x.float() if scale is None else x.float() * scale).to(out_dtype)


def _fp8_gemm(
    a: Tensor,
    trans_a: bool,
    b: Tensor,
    trans_b: bool,
    d: Tensor | None,
    out_dtype: torch.dtype,
    a_scale_inv: Any = None,
    b_scale_inv: Any = None,
    bias: Tensor | None = None,
    accumulate: bool = False,
    b_scale_shape: Any = None,
) -> Tensor:
    """Return A times B in float32, scaled back; a scale has one value, or one per row of A or column of B."""
    del b_scale_shape
    left = a.float().transpose(-1, -2) if trans_a else a.float()
    right = b.float().transpose(-1, -2) if trans_b else b.float()
    product = left @ right
    for scale in (a_scale_inv, b_scale_inv):
        product = product if scale is None else product * scale
    product = product if bias is None else product + bias
    return (product + d if accumulate and d is not None else product).to(out_dtype)


def _experts(
    x: Tensor,
    table: Tensor,
    weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted: bool,
    activation: str,
    first: int,
    last: int,
) -> Tensor:
    """Return the sum over each row's experts `first` to `last` of w3(silu(a) * b), where a, b = w12(x)."""
    assert (permuted, activation, last - first + 1) == (True, "silu", len(w12))
    out = torch.zeros_like(x)
    for number, (up, down) in enumerate(zip(w12, w3, strict=True), first):
        weight = (weights * (table == number)).sum(-1, keepdim=True)
        a, b = F.linear(x, up).chunk(2, -1)
        out += weight * F.linear(F.silu(a) * b, down)
    return out


def _experts_fp8(
    x: Tensor,
    table: Tensor,
    weights: Tensor,
    w12: Sequence[Tensor],
    w3: Sequence[Tensor],
    x_scale: Tensor,
    w12_scale: Sequence[Tensor],
    w3_scale: Sequence[Tensor],
    permuted: bool,
    activation: str,
    first: int,
    last: int,
) -> Tensor:
    """Do as `_experts` in bfloat16 with inputs and weights in fp8, of which each row has a scale."""
    up, down = (
        [(numbers.float() * scale[:, None]).bfloat16() for numbers, scale in zip(*pair, strict=True)]
        for pair in ((w12, w12_scale), (w3, w3_scale))
    )
    real = (x.float() * x_scale).bfloat16()
    return _experts(real, table, weights.bfloat16(), up, down, permuted, activation, first, last)


def _from_uint4(words: Tensor, scale: Tensor, zero_point: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Return (numbers - zeros) * scales [in, out] of words with eight columns each, and groups of rows."""

    def columns(packed: Tensor) -> Tensor:
        return torch.stack([(packed >> shift) & 15 for shift in range(0, 32, 4)], -1).flatten(-2)

    repeats = words.shape[0] // scale.shape[0]
    zeros, factors = (each.repeat_interleave(repeats, 0) for each in (columns(zero_point), scale))
    return ((columns(words) - zeros) * factors).to(out_dtype)


def _block_adjustment(
    greatest: Tensor, sums: Tensor, groups: Tensor, rows: int, out_shape: Sequence[int]
) -> Tensor:
    """Return exp(greatest - greatest of the group) / (sum of the group, relative to that), by block.

    The group of padding is -1. A group beyond the rows is refused: what the kernel reads then is unknown.
    """
    if bool(((groups < -1) | (groups >= rows)).any()):
        problem = f"a block's row is beyond -1..{rows - 1}"
        dispatch.active().ledger.violate("S16", "hpu.block_softmax_adjustment", problem)
    blocks = greatest.shape[0]
    best, sums = greatest.reshape(blocks, -1).float(), sums.reshape(blocks, -1).float()
    places = torch.where(groups < 0, rows, groups).long()
    table = torch.full((rows + 1, best.shape[1]), -torch.inf).index_reduce(0, places, best, "amax")
    adjustment = (best - table[places]).exp()
    total = torch.zeros(rows + 1, best.shape[1]).index_add(0, places, sums * adjustment)
    return (adjustment / total[places]).view(*out_shape).to(greatest.dtype)


_SCHEMAS = {
    "block_softmax_adjustment": "(Tensor block_max, Tensor block_sum, Tensor block_groups, "
    "SymInt batch_size, SymInt[] out_shape) -> Tensor",
    "convert_from_uint4": "(Tensor input, Tensor scale, Tensor? zero_point, ScalarType out_dtype) -> Tensor",
    "mixture_of_experts": "(Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, "
    "Tensor[] w12, Tensor[] w3, bool permuted_weights, str activation, SymInt experts_min, "
    "SymInt experts_max) -> Tensor",
    "mixture_of_experts.fp8_fused_weights_dynamic": "(Tensor hidden_states, Tensor expert_routing_table, "
    "Tensor router_weights, Tensor[] w12, Tensor[] w3, Tensor d_scale_hidden_states, Tensor[] d_scale_w12, "
    "Tensor[] d_scale_w3, bool permuted_weights, str activation, SymInt experts_min, SymInt experts_max) "
    "-> Tensor",
    "cast_to_fp8_v2": "(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, "
    "bool is_amax=False, ScalarType? dtype=None, SymInt[]? scale_shape=None) -> (Tensor, Tensor)",
    "cast_from_fp8": "(Tensor input, Tensor? scale, ScalarType out_dtype, SymInt[]? scale_shape=None) "
    "-> Tensor",
    "fp8_gemm_v2": "(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, "
    "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, "
    "SymInt[]? B_scale_shape=None) -> Tensor",
}
_fused("block_softmax_adjustment", _block_adjustment)
_fused("mixture_of_experts", _experts)
_fused("mixture_of_experts.fp8_fused_weights_dynamic", _experts_fp8)
_fused("convert_from_uint4", _from_uint4)
_fused("cast_to_fp8_v2", _cast_to_fp8)
_fused("cast_from_fp8", _cast_from_fp8)
_fused("fp8_gemm_v2", _fp8_gemm)
_fused("cast_saturating", _saturated)
DTYPES = {
    "sdpa": FLOAT,
    "block_softmax_adjustment": FLOAT,
    "mixture_of_experts": FLOAT,
    "mixture_of_experts.fp8_fused_weights_dynamic": FLOAT | FP8,
    "rms_norm": FLOAT,
    "rotary_pos_embedding": FLOAT,
    "cast_to_fp8_v2": FLOAT,
    "convert_from_uint4": FLOAT | {torch.int32},
    "cast_saturating": FLOAT | FP8,
    "cast_from_fp8": FP8,
    "fp8_gemm_v2": FP8,
}
"""Dtypes that the kernels take, as `operations.ALLOWED` has them for other operations."""


def define_operators(library: torch.library.Library) -> None:
    """Define `torch.ops.hpu.*`; once per process."""
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)  # type: ignore[no-untyped-call]
