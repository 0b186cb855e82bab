"""What the tests of the simulated card share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tgi.testing.simulated_gaudi import Card, GaudiRuleError, Profile, install, uninstall

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
def refused(rule: str, saying: str = "") -> Iterator[None]:
    """The rule is broken within, and the error names the place here."""
    with pytest.raises(GaudiRuleError, match=saying or None) as caught:
        yield
    assert caught.value.rule == rule, str(caught.value)
    assert Path(caught.value.place.rpartition(":")[0]).parent == Path(__file__).parent, caught.value.place


def hpu(*values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to("hpu")
