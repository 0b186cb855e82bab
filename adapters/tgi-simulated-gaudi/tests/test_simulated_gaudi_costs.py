"""Estimates of time, memory and compilation, and that an uninstalled card leaves no trace."""

import importlib
import importlib.util
import json
import math
import sys

import pytest
import torch
from tgi_simulated_gaudi import GENERATIONS, Profile, install, uninstall

from .simulated import PROFILES, graphed, hpu, simulated


@pytest.fixture(params=PROFILES)
def card(request):
    with simulated(request.param) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [
        ("gaudi2", 6.74e9, 141),
        ("gaudi3", 6.74e9, 174),
        ("gaudi2", 8.03e9, 129),
        ("gaudi3", 8.03e9, 162),
        ("gaudi2", 7.24e9, 135),
        ("gaudi3", 7.24e9, 160),
        ("gaudi2", 41.8e9, 25.2),
        ("gaudi3", 41.8e9, 34.0),
    ],
)
def test_the_clock_agrees_with_published_decode_rates(name, parameters, published):
    """Rows of Intel's page for release 1.18: one row, bfloat16; every weight is read once per token."""
    from tgi_simulated_gaudi import costs
    from tgi_simulated_gaudi.operations import operation

    profile = Profile.of(f"{name}-lazy")
    side = math.isqrt(int(parameters))
    weight = torch.empty(side, side, dtype=torch.bfloat16, device="meta")
    row = torch.empty(1, side, dtype=torch.bfloat16, device="meta")
    info = operation(torch.ops.aten.mm.default)
    took = costs.seconds(profile, info, [row, weight], [row], lambda tensor: tensor is row)
    assert 1 / (took + profile.generation.launch_seconds) == pytest.approx(published, rel=0.09)


def test_the_clock_follows_the_matrix_engine_where_there_is_much_to_compute(card):
    x = torch.zeros(512, 512, device="hpu")
    before = card.clock.causes["compute"]
    x @ x
    flops = 2 * 512**3 / card.profile.generation.bf16_flops
    traffic = 3 * 512 * 512 * 4 / card.profile.generation.hbm_rate
    spent = card.clock.causes["compute"] - before
    assert spent == pytest.approx(max(flops, traffic) / card.profile.efficiency)


def test_a_product_of_transposed_batches_copies_nothing(card):
    """In inference, where the bridge has an operation of its own for it."""
    x, y = (torch.zeros(16, 128, 8, 64, device="hpu").transpose(1, 2) for _ in range(2))
    with torch.inference_mode():
        before = card.clock.causes["compute"]
        product = x @ y.transpose(2, 3)
        spent = card.clock.causes["compute"] - before
    traffic = 4 * (x.numel() + y.numel() + product.numel()) / card.profile.generation.hbm_rate
    assert spent == pytest.approx(traffic / card.profile.efficiency)


def test_a_sort_costs_as_much_as_all_best_values(card):
    """A bitonic network of n = 2^b numbers has b (b + 1) / 2 stages; the best 1,024 of them need 55."""
    x = torch.zeros(4, 1 << 17, device="hpu")
    took = []
    for function in (lambda: x.sort(-1), lambda: x.topk(1 << 17, -1), lambda: x.topk(1024, -1), x.neg):
        before = card.clock.causes["compute"]
        function()
        took.append(card.clock.causes["compute"] - before)
    everything, also, best, once = took
    assert everything == also
    assert everything > 153 * once
    assert 55 / 153 / 4 < best / everything < 55 / 153


def test_a_replay_starts_each_of_its_recipes():
    with simulated("gaudi2-lazy") as card:
        core = importlib.import_module("habana_frameworks.torch.core")
        took = []
        for cuts in (0, 3, 40):

            def run(x, cuts=cuts):
                for _ in range(cuts):
                    x = x + 1
                    core.mark_step()
                return x + 1

            replay = graphed(card, run)
            replay(hpu(1, 2))
            before = card.clock.causes["launch"]
            x = hpu(1, 2)
            before = card.clock.causes["launch"]
            replay(x)
            took.append(card.clock.causes["launch"] - before)
        whole = card.profile.generation.launch_seconds
        assert took == pytest.approx([whole / 32, whole / 8, whole])


def test_recipes_that_were_compiled_before_cost_less(tmp_path):
    took = []
    for _ in range(2):
        with simulated("gaudi2-lazy", recipe_cache=str(tmp_path / "recipes")) as card:
            graphed(card, lambda x: x * 2)(hpu(1, 2))
            took.append(card.clock.causes["compile"])
            hits = card.recipes.cache_hits
    assert took[1] == pytest.approx(0.3 * took[0])
    assert hits == card.recipes.number


def test_metrics_and_memory_are_told_as_by_the_bridge(card):
    from habana_frameworks.torch.hpu import metrics

    before = torch.hpu.memory_allocated()
    with metrics.metric_localcontext("graph_compilation") as local:
        function = graphed(card, lambda x: x * 2)
        function(torch.zeros(256, device="hpu"))
    stats = dict(local.stats())
    assert stats["TotalNumber"] == 2  # and zeros, on its own
    assert stats["AvgTime"] == stats["TotalTime"] / stats["TotalNumber"] > 0
    assert dict(metrics.metric_global("cpu_fallback").stats()) == {"TotalNumber": 0, "FallbackOps": ""}
    stats = torch.hpu.memory_stats()
    assert stats["InUse"] == torch.hpu.memory_allocated() > before
    assert stats["MaxInUse"] == torch.hpu.max_memory_allocated() >= stats["InUse"]
    assert stats["Limit"] == GENERATIONS[card.profile.generation.name].memory_bytes


def test_the_report_is_plain_data(card):
    card.ledger.allow("S6")
    hpu(1, 2).index_select(0, torch.tensor([1]))
    report = json.loads(json.dumps(card.report()))
    assert report["profile"] == card.profile.name
    assert [violation["rule"] for violation in report["violations"]] == ["S6"]
    assert report["counters"]["h2d"] == 1
    assert sum(report["seconds"].values()) == pytest.approx(card.clock.seconds)
    assert report["memory"]["in_use"] == card.memory.in_use


def test_the_profile_follows_the_variables_of_the_bridge():
    environ = {"PT_HPU_LAZY_MODE": "1", "PT_HPU_ENABLE_LAZY_COLLECTIVES": "true"}
    profile = Profile.from_environment(
        environ | {"PT_HPU_RECIPE_CACHE_CONFIG": "/recipes,false,1024"}, "gaudi3"
    )
    assert (profile.name, profile.lazy_collectives, profile.recipe_cache) == ("gaudi3-lazy", True, "/recipes")
    assert Profile.from_environment({}).name == "gaudi2-compile"
    with pytest.raises(ValueError, match="gaudi1-lazy"):
        Profile.of("gaudi1-lazy")


def test_the_stand_in_goes_when_it_is_uninstalled():
    compile_before = torch.compile
    install("gaudi2-lazy")
    assert "habana_frameworks.torch.core" in sys.modules
    uninstall()
    assert torch.compile is compile_before
    assert not [name for name in sys.modules if name.startswith("habana_frameworks")]
    assert importlib.util.find_spec("habana_frameworks") is None
    with pytest.raises(RuntimeError, match="install"):
        torch.zeros(1, device="hpu")
