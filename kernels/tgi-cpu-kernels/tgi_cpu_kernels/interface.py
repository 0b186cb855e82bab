"""The C interface of the library, as in `src/kernels.h`."""

import ctypes

import torch

BLOCK = 16
"""Tokens in a block of the KV cache."""
MAX_HEAD_SIZE = 256
MAX_QUANTIZED_FEATURES = 1 << 16
"""Input features of a quantized layer: sums of 8-bit products are counted in 32 bits."""
UNIT = 32
"""Output columns that are computed together."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
SHARE_KINDS = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.uint8: 2}
GATES = {"silu": 0, "swiglu": 1}
_Pointer, _Long, _Float = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class Linear(ctypes.Structure):
    """Arguments of a function."""

    _fields_ = (
        *((name, _Pointer) for name in ("x", "w", "bias", "residual", "y")),
        *((name, _Long) for name in ("m", "n", "k", "x_stride", "residual_stride", "y_stride")),
    )


class Quantized(ctypes.Structure):
    """Arguments of a function."""

    _fields_ = (
        ("linear", Linear),
        *((name, _Pointer) for name in ("scales", "zeros", "shares", "minima", "table")),
        *((name, _Long) for name in ("bits", "group", "span", "share_kind")),
    )


class Attention(ctypes.Structure):
    """Arguments of a function."""

    _fields_ = (
        *((name, _Pointer) for name in ("query", "keys", "values", "out", "tables", "offsets", "lengths")),
        *((name, _Pointer) for name in ("starts", "bases", "slopes")),
        *((name, _Long) for name in ("rows", "width", "heads", "kv_heads", "size", "query_stride", "window")),
        *((name, _Float) for name in ("scale", "softcap")),
        ("sinks", _Pointer),
    )


TYPES = {"i": ctypes.c_int, "l": _Long, "f": _Float, "p": _Pointer, "s": ctypes.c_char_p, "v": None}
SIGNATURES = {
    "tgi_check": ("s", ""),
    "tgi_use_threads": ("v", "l"),
    "tgi_packed_size": ("l", "ill"),
    "tgi_pack": ("v", "iplllp"),
    "tgi_packed_rows": ("v", "ipllplp"),
    "tgi_linear": ("v", "ip"),
    "tgi_lora": ("v", "ip"),
    "tgi_packed_ints_size": ("l", "llll"),
    "tgi_pack_ints": ("v", "pllllp"),
    "tgi_round_and_pack": ("v", "iplllllppp"),
    "tgi_quantized_linear": ("v", "ip"),
    "tgi_store_kv": ("v", "ipplllllppp"),
    "tgi_attention": ("v", "ip"),
    "tgi_rms_norm": ("v", "ippflllp"),
    "tgi_gate": ("v", "ilpllp"),
    "tgi_head_norm": ("v", "ippfllll"),
    "tgi_rotary": ("v", "ipllllppl"),
    "tgi_greedy": ("v", "iplllpp"),
    "tgi_log_softmax": ("v", "plllp"),
    "tgi_draw": ("v", "plllpp"),
    "tgi_top_cut": ("v", "plllppp"),
    "tgi_experts": ("v", "ip"),
    "tgi_decode": ("v", "iplp"),
}
"""Types of the result and the arguments of each function of kernels.h."""
