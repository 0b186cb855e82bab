"""64 tokens of every kind of checkpoint of every family on cards and on two ranks, against transformers.

The families' own tests compare them on the CPU.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.test_adapters_page import ADAPTERS, imported
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

CONFIGS = {
    f"{folder.name}, {name}": config
    for folder in sorted(ADAPTERS.glob("tgi-*"))
    for test in folder.glob("tests/test_*.py")
    if test.stem.removeprefix("test_") == folder.name.removeprefix("tgi-").replace("-", "_")
    for name, config in getattr(imported(test), "CONFIGS", {}).items()
}

SHORT = ("tgi-phi, 3.5", "tgi-phi, 4 mini")
"""Checkpoints for which transformers changes the factors of RoPE within a longer text."""


@pytest.mark.slow
@pytest.mark.parametrize("card", [None, "gaudi2-lazy", "gaudi3-compile"])
@pytest.mark.parametrize("name", CONFIGS)
def test_text(tmp_path: Path, name: str, card: str | None) -> None:
    config: Any = CONFIGS[name]
    folder = make_checkpoint(tmp_path, config)
    cards = [] if card is None else [card]
    tokens = 24 if name in SHORT else 64
    check_generation(
        folder, [5, 40], tokens=tokens, cards=cards, ranks=1 if cards else 2, expert_parallel="MoE" in name
    )
