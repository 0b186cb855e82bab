"""Helpers of the tests of the simulated card."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tgi_simulated_gaudi import RULES, Card, GaudiRuleError, Profile, install, uninstall

PROFILES = ("gaudi2-lazy", "gaudi2-compile", "gaudi3-lazy", "gaudi3-compile")


@contextmanager
def simulated(profile: str = "gaudi2-lazy", **changes: Any) -> Iterator[Card]:
    with torch.inference_mode():
        card = install(Profile.of(profile, **changes))
        try:
            yield card
        finally:
            uninstall()


def graphed(card: Card, function: Callable[..., Any]) -> Callable[..., Any]:
    if card.lazy:
        return torch.hpu.wrap_in_hpu_graph_func(function, disable_tensor_cache=True)  # type: ignore[no-any-return]
    return torch.compile(function, backend="hpu_backend", dynamic=False)  # type: ignore[no-any-return]


@contextmanager
def refused(rule: str, saying: str = "") -> Iterator[GaudiRuleError]:
    """Check that the body breaks the rule, and that the error names its place."""
    caught = GaudiRuleError(RULES[rule], "", "", "")
    with pytest.raises(GaudiRuleError, match=saying or None) as raised:
        yield caught
    vars(caught).update(vars(raised.value))
    assert caught.rule == rule, str(raised.value)
    assert Path(caught.place.rpartition(":")[0]).parent == Path(__file__).parent, caught.place


def hpu(*values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to("hpu")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(got: Any, want: Any, tolerance: float = 0.0) -> None:
    """Check that results on the device equal those on the CPU, in the same containers."""
    if isinstance(want, torch.Tensor):
        assert got.device.type == "hpu"
        torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance)
    elif isinstance(want, dict):
        assert got.keys() == want.keys()
        for name in want:
            same(got[name], want[name], tolerance)
    else:
        assert type(got) is type(want)
        for mine, theirs in zip(got, want, strict=True):
            same(mine, theirs, tolerance)
