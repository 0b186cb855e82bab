"""The start of a server on a simulated Gaudi: its memory, its warm-up, and that nothing is compiled after."""

import re
from typing import Any

CARD = {
    "device": "hpu-sim",
    "max_batch_size": 2,
    "max_total_tokens": 384,
    "max_batch_prefill_tokens": 256,
    "max_graphs": 6,
}


def test_nothing_is_compiled_once_the_server_is_ready(start: Any) -> None:
    server = start("tgi serve", {"PT_HPU_LAZY_MODE": "1"}, **CARD).wait_ready()
    compiled = server.metric('tgi_graph_compilations{phase="warm-up"}')
    assert compiled >= 6
    for length in (1, 100, 200):
        server.generate("violin " * length, max_new_tokens=5, do_sample=True, seed=1)
    assert server.metric('tgi_graph_compilations{phase="warm-up"}') == compiled
    for name in ('tgi_graph_compilations{phase="serving"}', "tgi_graph_misses", "tgi_cpu_fallbacks"):
        assert server.metric(name) == 0, name
    total = server.metric('tgi_device_memory_bytes{state="total"}')
    assert 0 < server.metric('tgi_device_memory_bytes{state="used"}') < total == int(94.62 * 2**30)
    server.end()
    output = server.output()
    for row in ("weights", "workspace of the largest step", "reserve", "graphs, 6", "KV cache", "left over"):
        assert re.search(rf" INFO tgi\.startup: {row}.* MiB$", output, re.MULTILINE), output


def test_a_budget_leaves_buckets_out(start: Any) -> None:
    server = start("tgi serve", **{**CARD, "max_graphs": 60}, warmup_budget=0.01).wait_ready()
    assert "--warmup-budget is enough for " in server.output()
    server.generate("What is a violin?", max_new_tokens=5)
    assert server.metric('tgi_graph_compilations{phase="serving"}') == 0
    server.end()


def test_a_warm_up_that_hangs_ends_the_server_with_the_name_of_the_bucket(start: Any) -> None:
    server = start("tgi serve", **CARD, warmup_timeout=0.001)
    assert server.wait_exit(90) == 1
    last = server.output().splitlines()[-1]
    assert re.match(r"tgi: the warm-up hangs: prefill of \d+ x \d+ tokens, \d+ blocks, bucket 1 of 6, ", last)


def test_too_little_memory_is_told_with_the_plan_before_anything_is_reserved(start: Any) -> None:
    server = start("tgi serve", **CARD, memory_fraction=1e-9)
    assert server.wait_exit(90) == 1
    output = server.output()
    assert "KV cache, 4 blocks of 128 tokens, more than there is room for" in output
    last = output.splitlines()[-1]
    assert last.startswith("tgi: Not enough memory to handle `max_total_tokens=384`: ")
    assert "a larger --memory-fraction than " in last
