"""The bridge between torch and the card: kernels and functions of this release, and None for those it lacks.

No other module imports habana_frameworks. The bridge reads its mode (lazy or not) and that of collectives
from the environment when it is imported, so both are set before. docs/hpu-bridge-calls.md lists every call
with its source and the releases that have it.
"""

import importlib
from collections.abc import Callable, MutableMapping
from typing import Any

import attrs
import torch

from tgi.plugins import ConfigError

GAUDI2_FP8, GAUDI3_FP8 = 240.0, 448.0
"""Greatest magnitude of an e4m3 number on each generation."""


@attrs.frozen(kw_only=True)
class Bridge:
    """Functions of the bridge, made by `open_bridge`. A kernel that the release lacks is None."""

    lazy: bool
    fp8_limit: float
    hpu: Any
    """Module torch.hpu."""
    mark_step: Callable[[], None]
    attention: Callable[..., torch.Tensor] | None
    rms_norm: Callable[..., torch.Tensor] | None
    rotary: Callable[..., torch.Tensor] | None
    halves: Any
    """Mode of `rotary` that pairs the halves of a head."""
    to_fp8: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None
    from_fp8: Callable[..., torch.Tensor] | None
    fp8_gemm: Callable[..., torch.Tensor] | None
    experts: Callable[..., torch.Tensor] | None
    fp8_experts: Callable[..., torch.Tensor] | None
    from_uint4: Callable[..., torch.Tensor] | None
    block_adjustment: Callable[..., torch.Tensor] | None
    """Factors of blocks in decode steps. Used by others on the third generation alone."""
    metric: Callable[[str], Any] | None


def open_bridge(environ: MutableMapping[str, str]) -> Bridge:
    """Import the bridge. Raises ConfigError if none can be used here."""
    lazy = settle_mode(environ)
    settle_card(environ)
    try:
        from habana_frameworks.torch import core  # type: ignore[import-not-found]
        from habana_frameworks.torch.utils.internal import is_lazy  # type: ignore[import-not-found]
    except ImportError as error:
        advice = "it comes with Intel's PyTorch images"
        raise ConfigError(f"the software of Intel Gaudi cannot be used here: {error}; {advice}") from error
    if bool(is_lazy()) != lazy:
        mode = environ["PT_HPU_LAZY_MODE"]
        raise ConfigError(f"habana_frameworks was imported before PT_HPU_LAZY_MODE was set to {mode}")
    for name in ("hpu_inference_set_env", "hpu_set_inference_env", "hpu_set_env"):  # the newest name first
        if hasattr(core, name):
            getattr(core, name)()
            break
    attention = _optional("habana_frameworks.torch.hpex.kernels.FusedSDPA")
    rms_norm = _optional("habana_frameworks.torch.hpex.normalization.FusedRMSNorm")
    modes = _optional("habana_frameworks.torch.hpex.kernels.RotaryPosEmbeddingMode")
    fp8_limit = _fp8_limit()
    return Bridge(
        lazy=lazy,
        fp8_limit=fp8_limit,
        hpu=torch.hpu,  # type: ignore[attr-defined]
        mark_step=core.mark_step if lazy else lambda: None,
        attention=attention and attention.apply,
        rms_norm=rms_norm and rms_norm.apply,
        rotary=_optional("habana_frameworks.torch.hpex.kernels.apply_rotary_pos_emb"),
        halves=modes and modes.BLOCKWISE,
        to_fp8=_operator(lambda: torch.ops.hpu.cast_to_fp8_v2),
        from_fp8=_operator(lambda: torch.ops.hpu.cast_from_fp8),
        fp8_gemm=_operator(lambda: torch.ops.hpu.fp8_gemm_v2),
        experts=_operator(lambda: torch.ops.hpu.mixture_of_experts),
        fp8_experts=_operator(lambda: torch.ops.hpu.mixture_of_experts.fp8_fused_weights_dynamic),
        from_uint4=_operator(lambda: torch.ops.hpu.convert_from_uint4),
        block_adjustment=_operator(lambda: torch.ops.hpu.block_softmax_adjustment)
        if fp8_limit == GAUDI3_FP8
        else None,
        metric=_optional("habana_frameworks.torch.hpu.metrics.metric_global"),
    )


def settle_mode(environ: MutableMapping[str, str]) -> bool:
    """Set the variables of the bridge's mode unless they are set; return whether it will be lazy."""
    lazy = environ.setdefault("PT_HPU_LAZY_MODE", "0") == "1"
    if lazy:
        environ.setdefault("PT_HPU_ENABLE_LAZY_COLLECTIVES", "true")
    else:
        environ.setdefault("FUSER_ENABLE_MULTI_THREADED_INVOCATIONS", "1")
    return lazy


def settle_card(environ: MutableMapping[str, str]) -> None:
    """Set the variable that tells the bridge this rank's card, if there are several ranks."""
    modules = environ.get("HABANA_VISIBLE_MODULES") or "all"
    if int(environ.get("WORLD_SIZE", "1")) > 1:
        rank = environ["LOCAL_RANK"]
        environ["HLS_MODULE_ID"] = rank if modules == "all" else modules.split(",")[int(rank)]
    if modules == "all":
        environ.pop(
            "HABANA_VISIBLE_MODULES", None
        )  # the bridge reads numbers, and takes all cards without it


def join_ranks() -> None:
    """Register the backend "hccl" with torch.distributed."""
    import habana_frameworks.torch.distributed.hccl  # type: ignore[import-not-found]  # noqa: F401


def _fp8_limit() -> float:
    from habana_frameworks.torch.utils.experimental import (  # type: ignore[import-not-found]
        _get_device_type,
        synDeviceType,
    )

    return GAUDI2_FP8 if _get_device_type() == synDeviceType.synDeviceGaudi2 else GAUDI3_FP8


def _optional(path: str) -> Any:
    """Return what the bridge has at "module.name"; None if this release has no such thing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _operator(operator: Callable[[], Callable[..., Any]]) -> Callable[..., Any] | None:
    try:
        return operator()
    except AttributeError:
        return None
