"""Folders for recipes: everything that makes a recipe useless elsewhere has its own."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options
from tgi.device.hpu import recipe_variables
from tgi.planning.recipes import prepare_recipes, recipe_folder
from tgi.planning.setup import read_setup
from tgi.plugins import devices, load_plugins
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
ROOT = Path("/cache")
KEY: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "config": {"hidden_size": 4096, "num_hidden_layers": 32},
    "dtype": "bfloat16",
    "ranks": 8,
    "card": "gaudi2",
    "software": {"torch": "2.6.0", "habana-torch-plugin": "1.21.0"},
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
    ],
)
def test_recipes_are_not_shared_where_they_would_be_wrong(what: str, other: Any) -> None:
    assert recipe_folder(ROOT, **{**KEY, what: other}) != recipe_folder(ROOT, **KEY)


def test_order_does_not_matter() -> None:
    config = dict(reversed(KEY["config"].items()))
    assert recipe_folder(ROOT, **{**KEY, "config": config}) == recipe_folder(ROOT, **KEY)


def test_a_name_has_nothing_that_separates_fields_or_folders() -> None:
    """The bridge separates the fields of its variable by commas."""
    folder = recipe_folder(ROOT, **{**KEY, "model": "/models/a,b c"})
    assert folder.parent == ROOT
    assert not {",", " "} & set(folder.name)
    value = recipe_variables(folder)["PT_HPU_RECIPE_CACHE_CONFIG"]
    assert value.split(",") == [str(folder), "false", "8192", "false"]


def test_a_device_that_compiles_has_a_folder_for_what_it_has_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = Options(model_id="org/m", recipe_cache=tmp_path / "cache")
    setup = read_setup(make_llama(tmp_path / "model"), options, GAUDI)
    variables = prepare_recipes(setup)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("m-auto-1xgaudi2-")
    assert variables == {"PT_HPU_RECIPE_CACHE_CONFIG": f"{folder},false,8192,false"}
    assert prepare_recipes(setup) == variables
    assert prepare_recipes(attrs.evolve(setup, shards=2)) != variables
    assert prepare_recipes(attrs.evolve(setup, device=CPU)) == {}, "nothing is compiled"
    assert prepare_recipes(attrs.evolve(setup, options=Options())) == {}
    with monkeypatch.context() as patch:
        patch.setenv("PT_HPU_RECIPE_CACHE_CONFIG", "/cache,false,1024")
        assert prepare_recipes(setup) == {}
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said == [
        "--recipe-cache has no effect: cpu keeps nothing that it compiles",
        "--recipe-cache has no effect: PT_HPU_RECIPE_CACHE_CONFIG says where recipes are kept",
    ]
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"--recipe-cache: .*file.* cannot be made: Not a directory"):
        prepare_recipes(attrs.evolve(setup, options=Options(recipe_cache=tmp_path / "file")))
