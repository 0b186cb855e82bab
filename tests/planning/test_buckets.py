"""The buckets that a server chooses, and the folder that what is compiled for them goes to."""

import logging
from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options
from tgi.limits import Limits
from tgi.planning.bucketing import attention_workspace
from tgi.planning.buckets import choose_buckets, fewer_buckets, fit_buckets, known_shapes
from tgi.planning.model import Model, describe_model
from tgi.planning.plan import make_plan
from tgi.planning.recipes import prepare_recipes
from tgi.planning.setup import read_setup
from tgi.planning.workload import ShapeCounts
from tgi.plugins import devices, load_plugins
from tgi.protocol import Bucket, Loaded
from tgi.scheduler import Buckets
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
LIMITS = Limits(max_input_tokens=100, max_total_tokens=129, max_batch_size=4, block_size=16)
BUCKETS = Buckets(LIMITS)
CARD_LIMITS = Limits(max_total_tokens=1024, max_batch_size=8, max_batch_prefill_tokens=1024, block_size=128)


@pytest.fixture
def compiling(tmp_path: Path) -> Model:
    """A model on a card that is not there."""
    model = describe_model(make_llama(tmp_path / "model"), Options())
    return attrs.evolve(model, device=GAUDI)


def test_a_device_that_compiles_has_a_folder_for_what_it_has_compiled(
    compiling: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = Options(model_id="org/m", recipe_cache=tmp_path / "cache")
    buckets = choose_buckets(compiling, CARD_LIMITS, options)
    variables = prepare_recipes(compiling, buckets, options)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("m-auto-1xgaudi2-")
    assert variables == {"PT_HPU_RECIPE_CACHE_CONFIG": f"{folder},false,8192,false"}
    assert prepare_recipes(compiling, buckets, options) == variables
    assert (
        prepare_recipes(compiling, choose_buckets(compiling, CARD_LIMITS, options, 20), options) != variables
    )
    assert prepare_recipes(attrs.evolve(compiling, device=CPU), BUCKETS, options) == {}, "nothing is compiled"
    assert prepare_recipes(compiling, buckets, Options()) == {}
    with monkeypatch.context() as patch:
        patch.setenv("PT_HPU_RECIPE_CACHE_CONFIG", "/cache,false,1024")
        assert prepare_recipes(compiling, buckets, options) == {}
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said == [
        "--recipe-cache has no effect: cpu keeps nothing that it compiles",
        "--recipe-cache has no effect: PT_HPU_RECIPE_CACHE_CONFIG says where recipes are kept",
    ]
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"--recipe-cache: .*file.* cannot be made: Not a directory"):
        prepare_recipes(compiling, buckets, Options(recipe_cache=tmp_path / "file"))


def test_the_same_shapes_lead_to_the_same_folder_for_recipes(compiling: Model, tmp_path: Path) -> None:
    """Also if there are more of each, which were seen in another order."""
    counts = {Bucket(5, 1, 23): 7, Bucket(8, 1, 60): 31, Bucket(1, 200, 3, prefill=True): 9}
    more = {shape: 3 * count for shape, count in reversed(counts.items())}
    folders = []
    for name, some in (("first", counts), ("second", more), ("third", {Bucket(2, 1, 2): 5})):
        ShapeCounts(128, some).write(tmp_path / name)
        options = Options(recipe_cache=tmp_path, bucket_shapes=tmp_path / name, max_graphs=12)
        buckets = choose_buckets(compiling, CARD_LIMITS, options)
        folders.append(prepare_recipes(compiling, buckets, options))
    assert folders[0] == folders[1] != folders[2]


def test_a_server_has_the_buckets_of_its_plan(compiling: Model) -> None:
    options = Options(
        model_id=str(compiling.folder), device="gaudi2", max_total_tokens=1024, max_batch_size=8
    )
    plan = make_plan(read_setup(options))
    assert choose_buckets(compiling, plan.setup.limits, options).to_warm_up() == plan.buckets


def test_buckets_are_chosen_as_the_options_say(compiling: Model, tmp_path: Path) -> None:
    def chosen(**options: Any) -> list[Bucket]:
        return choose_buckets(compiling, CARD_LIMITS, Options(**options)).to_warm_up()

    assert len(chosen(max_graphs=12)) <= 12 < len(chosen())
    with pytest.raises(OptionError, match=r"`max_graphs` must be >= 2 for `max_waste` = 9. Given: 1"):
        chosen(max_graphs=1, max_waste=9)
    counts = ShapeCounts.open(tmp_path / "shapes.json", 128)
    counts.counts[Bucket(5, 1, 23)] = 1000
    counts.save()
    assert Bucket(5, 1, 23) in chosen(bucket_shapes=tmp_path / "shapes.json", max_graphs=8)
    with pytest.raises(OptionError, match="counts blocks of 128 tokens, and this device has 16"):
        ShapeCounts.open(tmp_path / "shapes.json", 16)


def test_graphs_are_as_few_as_there_is_memory_for(compiling: Model) -> None:
    def fitted(fraction: float | None, free: int = 10_000) -> int:
        options = Options(graph_memory_fraction=fraction, memory_fraction=0.8)
        buckets = choose_buckets(compiling, CARD_LIMITS, options)
        ranks = [
            Loaded(free_bytes=size, block_bytes=1, dtype="float32", graph_bytes=100)
            for size in (free, 20_000)
        ]
        attention = attention_workspace(CARD_LIMITS, buckets)
        return len(fit_buckets(compiling, CARD_LIMITS, options, ranks, buckets, attention).to_warm_up())

    every = fitted(None)
    assert every > 20
    assert fitted(0.9) == every
    assert 8 < fitted(0.15) <= 12
    with pytest.raises(OptionError, match=r"0\.01 is enough for 0 graphs, and there must be 2"):
        fitted(0.01)


@pytest.mark.parametrize(("graphs", "level"), [(24, logging.INFO), (1, logging.WARNING)])
def test_a_budget_that_is_not_enough_for_anything_is_told(
    graphs: int, level: int, compiling: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    buckets = fewer_buckets(compiling, CARD_LIMITS, Options(), graphs).to_warm_up()
    assert len(buckets) == max(graphs, 2), "one for prefill and one for decode are the least"
    (record,) = caplog.records
    assert record.levelno == level
    assert (
        record.getMessage() == f"--warmup-budget is enough for {graphs} buckets: there will be {len(buckets)}"
    )


def test_shapes_are_recorded_where_they_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = Options(record_shapes=tmp_path / "shapes.json")
    assert known_shapes(GAUDI, Options()) is None
    assert not caplog.records
    assert known_shapes(CPU, options) is None
    assert "--record-shapes has no effect: shapes do not matter on cpu" in caplog.text
    assert not (tmp_path / "shapes.json").exists()
    assert known_shapes(GAUDI, options) == ShapeCounts(128, {}, tmp_path / "shapes.json")
    assert (tmp_path / "shapes.json").exists()
