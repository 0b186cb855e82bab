"""benchmarks/replicas.py on the simulated clock, small."""

from typing import Any

import pytest

from tests.benchmark_scripts import load


@pytest.fixture(scope="module")
def replicas() -> Any:
    return load("replicas")


def test_prefix_aware_routing_finds_more_than_round_robin_and_balances(replicas: Any) -> None:
    rows = {
        name: replicas.simulate(name, 3, 12.0, 0.5, bursty=False, seed=1)
        for name in ("round robin", "prefix-aware")
    }
    hits = {name: row["hit_rate"] for name, row in rows.items()}

    assert len({row["requests"] for row in rows.values()}) == 1
    assert hits["prefix-aware"] > hits["round robin"] + 0.05
    assert rows["prefix-aware"]["first_token_ms"][0] < rows["round robin"]["first_token_ms"][0]


def test_a_run_can_be_repeated(replicas: Any) -> None:
    one, other = (replicas.simulate("prefix-aware", 2, 12.0, 0.2, bursty=True, seed=2) for _ in range(2))
    assert one == other


def test_bursts_have_the_same_mean_as_steady_traffic(replicas: Any) -> None:
    counts = [len(list(replicas.arrivals(replicas.random.Random(3), 50.0, 100.0, b))) for b in (False, True)]
    assert counts == [pytest.approx(5000, rel=0.05)] * 2
    times = list(replicas.arrivals(replicas.random.Random(3), 50.0, 100.0, bursty=True))
    bursts = sum(time % replicas.BURST_SECONDS < replicas.BURST_SHARE for time in times)
    assert bursts / len(times) == pytest.approx(replicas.BURST * replicas.BURST_SHARE, rel=0.05)
