"""Llama on every simulated Gaudi gives what its definition in plain torch gives, and breaks no rule."""

from pathlib import Path

import pytest
from tgi_simulated_gaudi.rules import Ledger

from tests.compiling import COMPILING, open_compiling
from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.testing.models import make_llama

from .gaudi_workloads import VOCAB, Engine, Trace, random_workload

EACH = 60
"""Number of workloads of each device."""
FIRST = 1000
"""Number of the first workload. Of the first 300 one has a token at the very border of typical_p, where the
order of sums decides."""
NEVER = (
    "graph_compilation",
    "graphs",
    "cpu_fallback",
    "dynamic_shapes",
    "int64_truncations",
    "random",
    "float16",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"), vocab_size=VOCAB)


@pytest.mark.parametrize("name", COMPILING)
def test_random_workloads_are_those_of_plain_torch(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And plain torch, where a step is a program as it is on a card, is compared with the CPU, where not.

    There, the sampler has no window, and no sequence comes back because the window did not decide.
    """
    monkeypatch.setattr("tgi.worker.sampler.WINDOW", 30)
    first = FIRST + COMPILING.index(name) * EACH
    workloads = [random_workload(number) for number in range(first, first + EACH)]
    reference = Engine.open(folder, CpuDevice(1) if name == "plain" else Device(1))
    wanted = [reference.run(workload) for workload in workloads]
    with open_compiling(name) as device:
        engine = Engine.open(folder, device)
        ledger = engine.card.ledger if engine.card else Ledger()
        before = ledger.counters.copy()
        for workload, traces in zip(workloads, wanted, strict=True):
            for request, got, trace in zip(workload.requests, engine.run(workload), traces, strict=True):
                if name != "plain" or request.leaves is None:
                    check(got, trace)
                else:  # what a client has by the turn in which it leaves depends on how often it came back
                    both = list(zip(got.tokens, trace.tokens, strict=False))
                    assert all(mine == wanted for mine, wanted in both)
        done = ledger.counters - before
        assert not ledger.violations
    assert {counter: done[counter] for counter in NEVER} == dict.fromkeys(NEVER, 0)
    if name != "plain":
        assert engine.seen == reference.seen
    for event in ("preemptions", "hits", "aborts", "chunks", "masks", "questions", "undecided"):
        assert engine.seen[event] > 4, "so that there was something to be shown"


def check(got: Trace, wanted: Trace) -> None:
    assert got.tokens == wanted.tokens
    assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert len(got.prompt_logprobs) == len(wanted.prompt_logprobs)
    assert got.prompt_logprobs == pytest.approx(wanted.prompt_logprobs, abs=1e-4)
    for one, other in ((got.tops, wanted.tops), (got.prompt_tops, wanted.prompt_tops)):
        assert [[token for token, _ in top] for top in one] == [[token for token, _ in top] for top in other]
        values = [[value for top in tops for _, value in top] for tops in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
