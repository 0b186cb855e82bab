"""A model in stages gives what it gives in one piece: random workloads with all that requests can ask for."""

from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.layers.loading import describe
from tgi.plugins import ConfigError
from tgi.protocol import Describe
from tgi.scheduler.schedule import TIES, Schedule
from tgi.testing.builders import make_allocator
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.testing.stages import StagedRunner
from tgi.weights import Shard
from tgi.worker.runner import Runner

from . import gaudi_workloads
from .gaudi_workloads import BLOCKS, LIMITS, MOST_TOP, VOCAB, Engine, Trace, random_workload
from .test_gaudi_workloads import check

LAYERS = (1, 2, 1)


def opened(folder: Path, layers: tuple[int, ...] = (), **load: Any) -> Runner:
    """The model in one piece, or in stages with that many layers."""
    command = msgspec.structs.replace(
        load_command(folder, lanes=LIMITS.max_batch_size, top=MOST_TOP + TIES, **load),
        block_size=LIMITS.block_size,
    )
    runner = StagedRunner.open(command, layers) if layers else Runner.load(command, Shard(), CpuDevice(1))
    runner.allocate(BLOCKS + 1)
    return runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return make_llama(folder, vocab_size=VOCAB, num_hidden_layers=sum(LAYERS), tie_word_embeddings=True)


def traces(engine: Engine, runner: Runner) -> list[list[Trace]]:
    engine.runner = runner
    limits = gaudi_workloads.LIMITS
    engine.schedule = Schedule(
        limits, engine.buckets, make_allocator(limits, BLOCKS)
    )  # this one knows no prefix
    engine.seen.clear()
    return [engine.run(random_workload(number)) for number in range(1000, 1004)]


@pytest.mark.parametrize("load", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_stages_give_the_same_bits(
    folder: Path, load: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.open(folder, CpuDevice(1))
    whole = opened(folder, **load)
    one_step_each = traces(engine, whole)
    monkeypatch.setattr(gaudi_workloads, "LIMITS", attrs.evolve(LIMITS, stages=len(LAYERS)))
    wanted, got = traces(engine, whole), traces(engine, opened(folder, LAYERS, **load))
    assert got == wanted
    for event in ("preemptions", "hits", "aborts", "chunks", "masks", "questions"):
        assert engine.seen[event] > 0, "so that there was something to be shown"
    if load:  # a prompt is in other chunks there, which only kernels make nothing of
        return
    for number, (mine, theirs) in enumerate(zip(got, one_step_each, strict=True), 1000):
        for request, trace, other in zip(random_workload(number).requests, mine, theirs, strict=True):
            if request.leaves is None:  # what others get until they leave depends on the order of steps
                check(trace, other)


def describing(folder: Path, **more: Any) -> Describe:
    return Describe(folder=str(folder), architecture="LlamaForCausalLM", ranks=1, dtype="float32", **more)


def test_a_stage_keeps_its_own_tensors_only(folder: Path) -> None:
    whole = describe(describing(folder))
    staged = describe(describing(folder, stages=3))
    assert sum(staged.stage_layers) == sum(LAYERS)
    names = [[tensor.name for tensor in part.tensors] for part in staged.stages]
    embedding = "model.embed_tokens.weight"
    assert [names[0].count(embedding), names[1].count(embedding), names[2].count(embedding)] == [1, 0, 1]
    assert [name for part in names for name in part] == [tensor.name for tensor in whole.tensors]
    kept = sum(part.groups[0].token_bytes for part in staged.stages)
    assert kept == whole.groups[0].token_bytes
    assert [len(part.groups) for part in staged.stages] == [1, 1, 1]


def test_more_stages_than_layers(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"with 4 layers cannot be divided into 5 stages; .* up to 4$"):
        describe(describing(folder, stages=5))
