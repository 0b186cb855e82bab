"""Folders for recipes: one for each thing that makes compiled recipes useless for another."""

from pathlib import Path
from typing import Any

import pytest

from tgi.device.hpu import recipe_variables
from tgi.planning.recipes import recipe_folder

ROOT = Path("/cache")
KEY: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "config": {"hidden_size": 4096, "num_hidden_layers": 32},
    "dtype": "bfloat16",
    "ranks": 8,
    "card": "gaudi2",
    "software": {"torch": "2.6.0", "habana-torch-plugin": "1.21.0"},
    "buckets": [(1, 128, 0), (8, 1, 64)],
}


def test_a_folder_can_be_told_from_others_by_people() -> None:
    folder = recipe_folder(ROOT, **KEY)
    assert folder.parent == ROOT
    assert folder.name.startswith("Llama-3.1-8B-bfloat16-8xgaudi2-")


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("model", "other/Llama-3.1-8B"),
        ("config", {"hidden_size": 4096, "num_hidden_layers": 16}),
        ("dtype", "float32"),
        ("ranks", 4),
        ("card", "gaudi3"),
        ("software", {"torch": "2.6.0", "habana-torch-plugin": "1.22.0"}),
        ("buckets", [(1, 128, 0)]),
    ],
)
def test_recipes_are_not_shared_where_they_would_be_wrong(what: str, other: Any) -> None:
    assert recipe_folder(ROOT, **{**KEY, what: other}) != recipe_folder(ROOT, **KEY)


def test_order_does_not_matter() -> None:
    config = dict(reversed(KEY["config"].items()))
    turned = {**KEY, "buckets": KEY["buckets"][::-1], "config": config}
    assert recipe_folder(ROOT, **turned) == recipe_folder(ROOT, **KEY)


def test_a_name_has_nothing_that_separates_fields_or_folders() -> None:
    """The bridge separates the fields of its variable by commas."""
    folder = recipe_folder(ROOT, **{**KEY, "model": "/models/a,b c"})
    assert folder.parent == ROOT
    assert not {",", " "} & set(folder.name)
    value = recipe_variables(folder)["PT_HPU_RECIPE_CACHE_CONFIG"]
    assert value.split(",") == [str(folder), "false", "8192", "false"]
