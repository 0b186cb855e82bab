"""64 tokens of every kind of checkpoint of every family on cards and on two ranks, against transformers.

The families' own tests compare them on the CPU.
"""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest

from tests.test_adapters_page import ADAPTERS, imported
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

from .falcon_models import VARIANTS, make_falcon

CONFIGS: dict[str, Any] = {
    f"{folder.name}, {name}": config
    for folder in sorted(ADAPTERS.glob("tgi-*"))
    for test in folder.glob("tests/test_*.py")
    if test.stem.removeprefix("test_") == folder.name.removeprefix("tgi-").replace("-", "_")
    for name, config in getattr(imported(test), "CONFIGS", {}).items()
}
"""A config of transformers, or a function that writes a checkpoint and returns a model for comparison."""

EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
SHORT = ("tgi-phi, 3.5", "tgi-phi, 4 mini")
"""Checkpoints for which transformers changes the factors of RoPE within a longer text."""
OTHERS = {"tgi-falcon", "tgi-simulated-gaudi", "tgi-transformers"}
"""Falcon's checkpoints are below; the others are no families."""
CARDS = pytest.mark.parametrize("card", [None, "gaudi2-lazy", "gaudi3-compile"])


def test_no_family_is_missing() -> None:
    folders = {folder.name for folder in ADAPTERS.glob("tgi-*")}
    assert {name.partition(",")[0] for name in CONFIGS} == folders - OTHERS


@pytest.mark.slow
@CARDS
@pytest.mark.parametrize("name", CONFIGS)
def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, card: str | None) -> None:
    """On two ranks each has whole experts; families' own tests divide them."""
    config, model = CONFIGS[name], write_checkpoint(name, tmp_path, monkeypatch)
    parallel = not callable(config) and bool(EXPERTS & config.to_dict().keys())
    reference = None if model is None else functools.partial(copy.deepcopy, model)
    _check(tmp_path, card, 24 if name in SHORT else 64, reference=reference, expert_parallel=parallel)


@pytest.mark.slow
@CARDS
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_of_falcon(tmp_path: Path, variant: str, card: str | None) -> None:
    _check(make_falcon(tmp_path, variant), card)


def write_checkpoint(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write one of CONFIGS, and return the model to compare with; None if transformers loads the folder."""
    config = CONFIGS[name]
    if callable(config):
        return config(folder, monkeypatch)
    make_checkpoint(folder, config)
    return None


def _check(folder: Path, card: str | None, tokens: int = 64, **kinds: Any) -> None:
    cards = [] if card is None else [card]
    check_generation(folder, [5, 40], tokens=tokens, cards=cards, ranks=1 if cards else 2, **kinds)
