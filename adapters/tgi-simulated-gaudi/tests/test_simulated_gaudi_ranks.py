"""Collectives between simulated cards, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, {root!r})
from tgi_simulated_gaudi import GaudiRuleError, Profile, install

card = install(Profile.of({profile!r}, lazy_collectives={lazy_collectives}))
from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu

size, rank, _ = initialize_distributed_hpu()
dist.init_process_group("hccl", init_method="file://{store}", world_size=size, rank=rank)


def on_hpu(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).to("hpu")


def graphed(function):
    if card.lazy:
        return torch.hpu.wrap_in_hpu_graph_func(function, disable_tensor_cache=True)
    return torch.compile(function, backend="hpu_backend", dynamic=False)


def gathered(x):
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def reduced(x, **options):
    x = x * 2
    dist.all_reduce(x, **options)
    return x + 1


def raised(function, *args):
    try:
        function(*args)
    except GaudiRuleError as error:
        return str(error).split(" [")[0]
    return "nothing"

{body}
sys.stdout.flush()
# Not by the interpreter's own way out: a thread of gloo's that lets go of a tensor meanwhile waits for the
# interpreter's lock, is ended instead, and takes the process with it (SIGABRT).
os._exit(0)
"""


def ranks(tmp_path, body, profile="gaudi2-compile", size=2, lazy_collectives=True):
    """Return the lines that each rank prints."""
    program = PROGRAM.format(
        root=str(Path(__file__).parents[2]),
        profile=profile,
        store=tmp_path / "store",
        body=body,
        lazy_collectives=lazy_collectives,
    )
    environment = {**os.environ, "WORLD_SIZE": str(size), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    results = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, results, strict=True):
        assert process.returncode == 0, errors
    return [output.splitlines() for output, _ in results]


@pytest.mark.parametrize("profile", ["gaudi2-lazy", "gaudi3-compile"])
def test_collectives_outside_and_within_graphs_give_every_rank_the_result(tmp_path, profile):
    body = """
for function in (reduced, gathered):
    replay = graphed(function)
    for step in range(3):
        x = on_hpu(rank + step, 10.0)
        assert function(x).tolist() == replay(x).tolist()
    print(replay(x).tolist())
x = on_hpu(float(rank))
dist.all_reduce(x, op=dist.ReduceOp.MAX)
together = torch.empty(size, device="hpu")
dist.all_gather_into_tensor(together, on_hpu(rank + 5.0))
dist.broadcast(x, 0)
print(x.tolist(), together.tolist(), card.clock.causes["collective"] > 0, len(card.ledger.violations))
"""
    first, second = ranks(tmp_path, body, profile)
    assert (
        first
        == second
        == [
            "[11.0, 41.0]",
            "[2.0, 10.0, 3.0, 10.0]",
            "[1.0] [5.0, 6.0] True 0",
        ]
    )


@pytest.mark.rule("S19")
def test_ranks_that_issue_different_collectives_are_told_instead_of_hanging(tmp_path):
    body = """
print(raised(dist.all_reduce, torch.zeros(2 + rank, device="hpu")))
one, two = graphed(reduced), graphed(lambda x: gathered(x) * 2)
one(on_hpu(1.0)), two(on_hpu(1.0))
print(raised(one if rank else two, on_hpu(2.0)))
"""
    for lines in ranks(tmp_path, body):
        assert len(lines) == 2
        for line in lines:
            assert line.startswith("S19 ")
            assert "ranks issue different collectives" in line


@pytest.mark.rule("S19")
def test_a_collective_in_a_lazy_graph_needs_lazy_collectives(tmp_path):
    body = "print(raised(graphed(reduced), on_hpu(1.0)))"
    ((line,),) = ranks(tmp_path, body, "gaudi2-lazy", size=1, lazy_collectives=False)
    assert line.startswith("S19 ")
    assert "PT_HPU_ENABLE_LAZY_COLLECTIVES" in line


@pytest.mark.rule("S20")
def test_integers_and_products_are_not_reduced(tmp_path):
    body = """
print(raised(dist.all_reduce, on_hpu(1, dtype=torch.int32)))
print(raised(lambda: dist.all_reduce(on_hpu(1.0), op=dist.ReduceOp.PRODUCT)))
print(raised(lambda: dist.all_reduce(on_hpu(1.0), op=dist.ReduceOp.AVG)))
print(raised(lambda: dist.all_reduce(on_hpu(1.0, dtype=torch.bfloat16), op=dist.ReduceOp.MIN)))
"""
    ((integers, product, average, fine),) = ranks(tmp_path, body, size=1)
    assert integers.startswith("S20 ")
    assert product.startswith("S20 ")
    assert average.startswith("S20 ")
    assert fine == "nothing"


@pytest.mark.rule("S21")
def test_what_a_lazy_graph_uses_is_not_received_by_a_view_of_it(tmp_path):
    body = """
kept = torch.zeros(4, device="hpu")
replay = graphed(lambda x: kept[:2] + x)
replay(on_hpu(1.0, 2.0))
for target in (torch.zeros(2, device="hpu"), kept[:2]):
    if rank:
        dist.send(on_hpu(3.0, 4.0), 0)
        print("nothing")
    else:
        print(raised(dist.recv, target, 1))
"""
    (whole, view), others = ranks(tmp_path, body, "gaudi2-lazy")
    assert whole == "nothing"
    assert view.startswith("S21 ")
    assert others == ["nothing", "nothing"]


@pytest.mark.rule("S7")
@pytest.mark.parametrize("profile", ["gaudi2-lazy", "gaudi2-compile"])
def test_a_lazy_graph_keeps_what_it_gathers_into_unless_it_computes_that(tmp_path, profile):
    body = """
x, size_of_x = torch.ones(1 << 10, 1 << 8, device="hpu"), 1 << 20


def listed(x):
    return gathered(x)[:1].clone()


def into(make):
    def gather(x):
        together = make(x)
        dist.all_gather_into_tensor(together, x)
        return together[:1].clone()

    return gather


def kept(function):
    before = card.memory.in_use - card.memory.workspace
    replay = graphed(function)
    assert replay(x).tolist() == replay(x).tolist()
    return (card.memory.in_use - card.memory.workspace - before) // size_of_x


empty = into(lambda x: x.new_empty(size * len(x), x.shape[1]))
print(kept(listed), kept(empty), kept(into(lambda x: x.repeat(size, 1))))
"""
    for lines in ranks(tmp_path, body, profile):
        assert lines == ["4 2 0" if "lazy" in profile else "0 0 0"]
