"""Code that breaks each rule that is not of graphs alone; README.md names these tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tgi_simulated_gaudi import KVGuard

from .simulated import PROFILES, graphed, hpu, refused, simulated


@pytest.fixture(params=["gaudi2-lazy", "gaudi3-compile"])
def card(request):
    with simulated(request.param) as made:
        yield made


def double(x):
    return x * 2


@pytest.mark.rule("S11")
def test_integers_beyond_32_bits_are_refused(card):
    with refused("S11", "4294967296"):
        torch.tensor([2**32]).to("hpu")
    x = hpu(2**30, 5, dtype=torch.int64)
    with refused("S11", "do not fit"):
        x * 4
    function = graphed(card, lambda x: x * 4)
    function(hpu(1, 5, dtype=torch.int64))
    with refused("S11", "do not fit"):
        function(x)


@pytest.mark.rule("S11")
def test_where_it_is_only_counted_integers_wrap(card):
    card.ledger.allow("S11")
    assert (hpu(2**30, 5, dtype=torch.int64) * 5).tolist() == [2**30, 25]
    assert card.ledger.counters["int64_truncations"] == 1
    with simulated(strict_int64=True), refused("S11", "is sent"):
        hpu(1, dtype=torch.int64)


@pytest.mark.rule("S12")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.uint16, torch.uint32, torch.uint64])
def test_a_dtype_that_the_card_does_not_have_is_refused(card, dtype):
    with refused("S12"):
        torch.zeros(2, dtype=dtype, device="hpu")
    if dtype == torch.float64:
        with refused("S12"):
            torch.ones(2, dtype=dtype).to("hpu")
        with refused("S12"):
            hpu(1, 2).double()
        with refused("S12"):
            graphed(card, lambda x: x.cumsum(0, dtype=torch.float64).float())(hpu(1, 2))


@pytest.mark.rule("S12")
def test_float16_is_counted(card):
    hpu(1, 2, dtype=torch.float16)
    assert card.ledger.counters["float16"] == 1


@pytest.mark.rule("S13")
@pytest.mark.parametrize(("profile", "limit"), [("gaudi2-lazy", 240), ("gaudi3-compile", 448)])
def test_fp8_saturates_at_the_limit_of_the_generation(profile, limit):
    with simulated(profile) as made:
        x = hpu(1000, -1000, 100)
        for cast in (
            lambda x: x.to(torch.float8_e4m3fn).float(),
            lambda x: torch.ops.hpu.cast_to_fp8_v2(x, None, False, False, torch.float8_e4m3fn)[0].float(),
        ):
            assert cast(x).tolist() == graphed(made, cast)(x).tolist() == [limit, -limit, 96]
        cache = torch.zeros(3, dtype=torch.float8_e4m3fn, device="hpu")
        assert cache.copy_(x).float().tolist() == [limit, -limit, 96]


@pytest.mark.rule("S13")
def test_a_checkpoint_for_the_wider_range_and_e5m2_are_refused():
    with simulated("gaudi2-lazy"), refused("S13", "448.0, and at most 240.0"):
        torch.tensor([448.0]).to(torch.float8_e4m3fn).to("hpu")
    with simulated("gaudi3-lazy"):
        torch.tensor([448.0]).to(torch.float8_e4m3fn).to("hpu")
        with refused("S13", "e5m2"):
            hpu(1).to(torch.float8_e5m2)


@pytest.mark.rule("S14")
@pytest.mark.parametrize(
    ("dtype", "function"),
    [
        (torch.int32, lambda x: x.view(1, 2) @ x.view(2, 1)),
        (torch.float16, lambda x: x.view(1, 2) @ x.view(2, 1)),
        (torch.int32, lambda x: x.sort().values),
        (torch.int32, lambda x: x.topk(1).values),
        (torch.int32, lambda x: torch.where(x > 0, x > 1, x < 1)),
        (torch.int32, lambda x: x.clone().scatter_add_(0, x.long(), x)),
    ],
)
def test_a_dtype_without_a_kernel_falls_back_and_is_refused_in_a_graph(card, dtype, function):
    x = hpu(1, 0, dtype=dtype)
    function(x)
    assert card.ledger.counters["cpu_fallback"] == 1
    with refused("S14", "has no kernel for"):
        graphed(card, function)(x)


@pytest.mark.rule("S15")
def test_an_operation_that_the_card_does_not_have_falls_back_and_is_refused_in_a_graph(card):
    from habana_frameworks.torch.hpu.metrics import metric_global

    x = hpu(1, 2)
    assert x.lgamma().tolist() == [0, 0]
    assert dict(metric_global("cpu_fallback").stats()) == {
        "TotalNumber": 1,
        "FallbackOps": "aten.lgamma.default",
    }
    with refused("S15", "lgamma"):
        graphed(card, torch.lgamma)(x)


@pytest.mark.rule("S16")
@pytest.mark.parametrize("wrong", [-1, 4])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[i],
        lambda x, i: x.index_put_((i,), torch.zeros_like(x[:1])),
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.index_copy_(0, i, torch.zeros_like(x[:1])),
        lambda x, i: x.index_add_(0, i, torch.zeros_like(x[:1])),
        lambda x, i: x.index_fill_(0, i, 1.0),
        lambda x, i: x.gather(0, i[:, None]),
        lambda x, i: x.scatter_(0, i[:, None], 1.0),
        lambda x, i: x.scatter_add_(0, i[:, None], torch.zeros_like(x[:1])),
        lambda x, i: F.embedding(i, x),
    ],
)
def test_a_wrong_index_is_refused_at_once_and_at_a_replay(card, wrong, function):
    x = torch.zeros(4, 2, device="hpu")
    good, bad = hpu(1, dtype=torch.int64), hpu(wrong, dtype=torch.int64)
    with refused("S16"):
        function(x.clone(), bad)
    replay = graphed(card, lambda x, i: function(x.clone(), i))
    replay(x, good)
    with refused("S16") as caught:
        replay(x, bad)
    assert caught.op.startswith("aten.")


@pytest.mark.rule("S17")
def test_native_one_hot_is_refused(card):
    with refused("S17"):
        F.one_hot(hpu(0, 1, dtype=torch.int64), 2)
    with torch.inference_mode(False), torch.no_grad(), refused("S17"):
        F.one_hot(hpu(0, 1, dtype=torch.int64), 2)
    groups = hpu(0, 1, 2, dtype=torch.int32)
    ours = graphed(card, lambda g: (g[:, None] == torch.arange(2, device=g.device, dtype=g.dtype)).float())
    assert ours(groups).tolist() == [[1, 0], [0, 1], [0, 0]]


def cached(card):
    """A cache of four blocks of two slots, the last one for padding; writes and reads in a graph."""
    cache = torch.zeros(8, 1, device="hpu")
    guard = KVGuard.watch(card, [cache], block_size=2, pad_block=3)

    def function(slots, blocks, x):
        cache.index_copy_(0, slots.long(), x)
        return cache.view(4, 2, 1).index_select(0, blocks)

    replay = graphed(card, function)

    def step(slots, blocks, values):
        ints = (hpu(*slots, dtype=torch.int32), hpu(*blocks, dtype=torch.int32))
        return replay(*ints, hpu(*([value] for value in values)))

    step([6, 7], [3], [0, 0])
    return guard, step, cache


@pytest.mark.rule("S22")
def test_a_foreign_block_is_neither_written_nor_read(card):
    guard, step, _ = cached(card)
    guard.own({"a": [0], "b": [1]}, shared=[2])
    assert step([1, 2], [2], [5, 6]).tolist() == [[[0], [0]]]
    with refused("S22", r"writes the blocks \[2\]"):
        step([1, 4], [3], [5, 6])
    guard.own({"a": [0]})
    with refused("S22", r"reads the blocks \[1\]"):
        step([1, 7], [1], [5, 6])
    with refused("S22", "belongs to"):
        guard.own({"a": [0], "b": [0]})


@pytest.mark.rule("S22")
def test_no_nan_comes_into_the_cache_and_padding_is_scrambled(card):
    guard, step, cache = cached(card)
    guard.own({"a": [0]})
    with refused("S22", "NaN"):
        step([0, 1], [0], [1, float("nan")])
    step([0, 1], [0], [1, 2])
    guard.scramble()
    assert cache.flatten().tolist() == [1, 2, 77, 77, 77, 77, 77, 77]


@pytest.mark.rule("S23")
def test_the_contiguous_layout_has_no_shared_block(card):
    guard, _, _ = cached(card)
    guard.check_layout([0, 1, 3, 3], [0, 1, 2, 2], rows=2, contiguous=True)
    guard.check_layout([0, 1, 0, 3], [0, 1, 1, 2], rows=2, contiguous=False)
    with refused("S23"):
        guard.check_layout([0, 1, 0, 3], [0, 1, 1, 2], rows=2, contiguous=True)
    with refused("S16"):
        guard.check_layout([0], [-1], rows=2, contiguous=False)


@pytest.mark.rule("S25")
def test_compilation_costs_time_and_memory_and_has_a_budget(card):
    function = graphed(card, double)
    x = hpu(1, 2)
    before, free = card.clock.seconds, torch.hpu.mem_get_info()[0]
    function(x)
    took = card.profile.segment_seconds + card.profile.op_seconds
    assert card.clock.seconds - before == pytest.approx(took, rel=0.01)
    assert free - torch.hpu.mem_get_info()[0] >= card.profile.graph_bytes // 32
    card.compile_budget = 0.3
    with refused("S25", "0.3 allowed"):
        function(hpu(1, 2, 3))


@pytest.mark.rule("S26")
def test_a_child_after_a_fork_cannot_use_the_device():
    program = f"""
import os, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tgi_simulated_gaudi import GaudiRuleError, install
install("gaudi2-lazy")
x = torch.zeros(2, device="hpu")
if os.fork() == 0:
    try:
        x + 1
    except GaudiRuleError as error:
        os._exit(26 if error.rule == "S26" else 1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 26


@pytest.mark.rule("S27")
@pytest.mark.usefixtures("card")
def test_a_copy_to_the_host_shows_rubbish_until_its_event_was_waited_for():
    x, side = hpu(1, 2), torch.hpu.Stream()
    ints = hpu(1, 2, dtype=torch.int32)
    done = torch.hpu.Event()
    host = torch.empty(2).pin_memory(device="hpu")
    host_ints = torch.empty(2, dtype=torch.int32).pin_memory()
    side.wait_stream(torch.hpu.current_stream())
    with torch.hpu.stream(side):
        host.copy_(x, non_blocking=True)
        host_ints.copy_(ints, non_blocking=True)
        done.record(side)
    assert host.isnan().all()
    assert host_ints.tolist() == [2**31 - 2] * 2
    assert not done.query()
    done.synchronize()
    assert (host.tolist(), host_ints.tolist()) == ([1, 2], [1, 2])


@pytest.mark.rule("S27")
@pytest.mark.usefixtures("card")
def test_an_event_does_not_cover_a_copy_into_memory_that_is_not_pinned():
    x = hpu(1, 2)
    pinned = torch.empty(4).pin_memory(device="hpu")
    host = x.to("cpu", non_blocking=True)
    pinned[2:].copy_(x, non_blocking=True)
    stream = torch.hpu.current_stream()
    stream.record_event().synchronize()
    stream.synchronize()
    assert (pinned.is_pinned(), pinned[2:].is_pinned(), host.is_pinned()) == (True, True, False)
    assert pinned[2:].tolist() == [1, 2]
    assert host.isnan().all()
    with refused("S27", "used again"):
        host.copy_(x, non_blocking=True)
    torch.hpu.synchronize()
    assert host.tolist() == [1, 2]


@pytest.mark.rule("S27")
@pytest.mark.usefixtures("card")
def test_streams_wait_for_each_other():
    side = torch.hpu.Stream()
    x = hpu(1, 2)
    with refused("S27", "reads memory that another stream writes"), torch.hpu.stream(side):
        x.to("cpu", non_blocking=True)
    side.wait_stream(torch.hpu.default_stream())
    with torch.hpu.stream(side):
        x.to("cpu", non_blocking=True)
        copied = torch.hpu.current_stream().record_event()
    with refused("S27", "overwrites memory that another stream copies"):
        x.add_(1)
    torch.hpu.current_stream().wait_event(copied)
    assert x.add_(1).tolist() == [2, 3]


@pytest.mark.rule("S27")
def test_a_replay_waits_for_the_copy_of_its_output():
    with simulated("gaudi2-lazy") as lazy:
        side, function = torch.hpu.Stream(), graphed(lazy, double)
        out = function(hpu(1, 2))
        side.wait_stream(torch.hpu.current_stream())
        with torch.hpu.stream(side):
            out.to("cpu", non_blocking=True)
        with refused("S27", "overwrites"):
            function(hpu(3, 4))
        torch.hpu.synchronize()
        function(hpu(3, 4))


@pytest.mark.rule("S27")
@pytest.mark.usefixtures("card")
def test_a_buffer_that_is_copied_from_is_not_changed_before_that():
    host = torch.tensor([1.0, 2.0])
    x = host.to("hpu", non_blocking=True)
    host.zero_()
    with refused("S27", "changed while its copy was unfinished"):
        x.cpu()


@pytest.mark.rule("S27")
@pytest.mark.usefixtures("card")
def test_a_buffer_is_not_used_again_before_its_first_copy_was_waited_for():
    x, host = hpu(1, 2), torch.zeros(4).pin_memory(device="hpu")
    host[:2].copy_(x, non_blocking=True)
    first = torch.hpu.current_stream().record_event()
    for again in (lambda: host[1:3].copy_(x), lambda: x.copy_(host[:2]), lambda: host[:2].copy_(x + 1)):
        with refused("S27", "used again"):
            again()
    host[2:].copy_(x + 2, non_blocking=True)  # another part of it
    first.synchronize()
    assert host[:2].tolist() == [1, 2]
    host[:2].copy_(x + 1, non_blocking=True)

    source = torch.tensor([1.0, 2.0]).pin_memory(device="hpu")
    x.copy_(source, non_blocking=True)
    (x + 0).copy_(source, non_blocking=True)  # to read it twice is allowed
    with refused("S27", "used again"):
        source.copy_(x, non_blocking=True)
    source.fill_(5)
    with refused("S27", "changed while its copy was unfinished"):
        x.copy_(source, non_blocking=True)
    source.copy_(torch.tensor([1.0, 2.0]))
    torch.hpu.synchronize()


@pytest.mark.rule("S28")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_release_has_what_it_has(profile):
    with simulated(profile) as made:
        from habana_frameworks.torch.utils.experimental import _get_device_type, synDeviceType
        from habana_frameworks.torch.utils.internal import is_lazy

        lazy = profile.endswith("lazy")
        assert is_lazy() is lazy
        assert hasattr(torch.hpu, "HPUGraph") is hasattr(torch.hpu, "wrap_in_hpu_graph") is lazy
        number = profile[5]
        assert _get_device_type() is synDeviceType[f"synDeviceGaudi{number}"]
        assert torch.hpu.get_device_name() == f"GAUDI{number}"
        assert torch.hpu.mem_get_info()[1] == made.profile.memory_bytes
