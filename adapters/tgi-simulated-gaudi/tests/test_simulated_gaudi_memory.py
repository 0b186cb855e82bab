"""Code that breaks the rule of memory; README.md names these tests."""

from contextlib import nullcontext

import pytest
import torch
from tgi_simulated_gaudi import OutOfMemoryError

from .simulated import graphed, refused, simulated


@pytest.fixture(params=["gaudi2-lazy", "gaudi3-compile"])
def card(request):
    with simulated(request.param) as made:
        yield made


def refused_memory():
    return pytest.raises(OutOfMemoryError, match="Allocation failed")


@pytest.mark.rule("S7")
def test_more_memory_than_the_card_has_is_refused():
    with simulated(memory_bytes=1 << 20):
        kept = torch.zeros(1 << 17, device="hpu")
        assert torch.hpu.mem_get_info() == (1 << 19, 1 << 20)
        with refused_memory():
            torch.zeros(1 << 18, device="hpu")
        del kept
        assert torch.hpu.mem_get_info() == (1 << 20, 1 << 20)


@pytest.mark.rule("S7")
def test_memory_beyond_the_budget_of_a_step_is_refused(card):
    kept = torch.zeros(1000, device="hpu")
    kept.clone()
    card.seal(step_bytes=4000)
    card.ledger.allow("S1")
    for _ in range(3):
        kept.clone()
    with refused("S7", "8000 bytes more than"):
        _ = kept.clone(), kept.clone()


@pytest.mark.rule("S7")
def test_pending_copies_into_parts_of_a_tensor_take_memory_in_lazy_mode():
    mib = 1 << 18  # float32 numbers
    parts = torch.zeros(6, mib)
    for profile, marks in (("gaudi2-lazy", False), ("gaudi2-lazy", True), ("gaudi2-compile", False)):
        with simulated(profile, memory_bytes=10 << 20) as card:
            import habana_frameworks.torch.core as core

            whole = torch.empty(6, mib, device="hpu")
            with refused_memory() if (profile, marks) == ("gaudi2-lazy", False) else nullcontext():
                for part, source in zip(whole, parts, strict=True):
                    part.copy_(source)
                    if marks:
                        core.mark_step()
                assert card.memory.peak <= 7 << 20
                assert not whole.any().cpu()


@pytest.mark.rule("S7")
def test_a_lazy_graph_keeps_what_it_makes_without_a_value_and_writes(card):
    """The bridge allocates it at once, and makes it an input of the graph."""
    x, places = torch.ones(1 << 18, device="hpu"), torch.zeros(1, dtype=torch.int64, device="hpu")

    def kept(function):
        before = card.memory.in_use - card.memory.workspace
        graph = graphed(card, lambda x: (x + function(x))[:2].clone())
        graph(x)
        return (card.memory.in_use - card.memory.workspace - before) >> 20

    for fills in (
        torch.zeros_like,
        lambda x: torch.full(x.shape, 3.0, device="hpu"),
        lambda x: x.new_full(x.shape, 3.0),
        lambda x: torch.empty_like(x).copy_(x),
        lambda x: torch.empty_like(x).index_copy_(0, places, x[:1]),
    ):
        assert kept(fills) == int(card.lazy)
    for computes in (lambda x: x.new_zeros(x.shape), lambda x: x.clone().add_(1), lambda x: x.repeat(1)):
        assert kept(computes) == 0
