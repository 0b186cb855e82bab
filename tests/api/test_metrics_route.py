"""tgi-behaviour section 7 on the page itself, of a server that has answered requests of every kind."""

import re
from typing import Any

import pytest
import trio

from tgi.config import Options
from tgi.errors import GenerationFailed
from tgi.protocol import LaneParams

from .serving import LIMITS, Server, saying, serving

USER = {"role": "user", "content": "Hello"}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("/", {"inputs": "x", "parameters": {"max_new_tokens": 2, "best_of": 2, "do_sample": True}}),
    ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("/v1/chat/completions", {"messages": [USER], "max_tokens": 2, "stream": True}),
    ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 2}),
    ("/vertex", {"instances": [{"inputs": "x", "parameters": {"max_new_tokens": 2}}]}),
]
DURATIONS = """
0.00015000000000000001 0.00022500000000000002 0.0003375 0.00050625 0.000759375 0.0011390624999999999
0.0017085937499999998 0.0025628906249999996 0.0038443359374999994 0.00576650390625 0.008649755859375
0.0129746337890625 0.01946195068359375 0.029192926025390625 0.043789389038085935 0.0656840835571289
0.09852612533569335 0.14778918800354002 0.22168378200531003 0.33252567300796504 0.49878850951194753
0.7481827642679213 1.122274146401882 1.683411219602823 2.5251168294042348 3.787675244106352 5.681512866159528
8.52226929923929 12.783403948858936 19.175105923288406 28.76265888493261 43.143988327398915
64.71598249109837 97.07397373664756 145.61096060497135 +Inf
""".split()
"""12.10."""
TABLE: dict[str, tuple[str, str]] = {
    "tgi_request_count": ("counter", ""),
    "tgi_request_success": ("counter", ""),
    "tgi_request_failure": ("counter", "err"),
    "tgi_request_duration": ("histogram", ""),
    "tgi_request_validation_duration": ("histogram", ""),
    "tgi_request_queue_duration": ("histogram", ""),
    "tgi_request_inference_duration": ("histogram", ""),
    "tgi_request_mean_time_per_token_duration": ("histogram", ""),
    "tgi_request_generated_tokens": ("histogram", ""),
    "tgi_request_input_length": ("histogram", ""),
    "tgi_request_max_new_tokens": ("histogram", ""),
    "tgi_request_skipped_tokens": ("summary", ""),
    "tgi_queue_size": ("gauge", ""),
    "tgi_batch_next_size": ("histogram", ""),
    "tgi_batch_current_size": ("gauge", ""),
    "tgi_batch_current_max_tokens": ("gauge", ""),
    "tgi_batch_max_total_tokens": ("gauge", ""),
    "tgi_batch_inference_count": ("counter", "method"),
    "tgi_batch_inference_success": ("counter", "method"),
    "tgi_batch_inference_duration": ("histogram", "method"),
    "tgi_batch_forward_duration": ("histogram", "method"),
    "tgi_batch_decode_duration": ("histogram", "method"),
    "tgi_batch_filter_duration": ("histogram", "method"),
    "tgi_batch_concat_duration": ("histogram", "method"),
    "tgi_batch_concat": ("counter", "reason"),
}
"""7.2, but for tgi_batch_inference_failure, with which the server ends, and tgi_batch_total_tokens, which TGI
never sets."""
QUANTILES = ["0", "0.5", "0.9", "0.95", "0.99", "0.999", "1"]


def endless(_params: LaneParams, _draw: int) -> int:
    return 70


@pytest.fixture(scope="module")
def page() -> str:
    """The page after `REQUESTS`, one that is refused, and two that run together."""
    pages = []

    async def main() -> None:
        async with serving(endless, step_seconds=0.01) as server:
            for path, body in REQUESTS:
                assert (await server.ask("POST", path, body)).status == 200
            assert (await server.generate({"top_k": 0})).status == 422
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.generate, {"max_new_tokens": 50})
                await until_running(server)
                nursery.start_soon(server.generate, {"max_new_tokens": 2})
            pages.append(await server.metrics())

    trio.run(main)
    return pages[0]


async def until_running(server: Server) -> None:
    assert server.service.engine is not None
    while not server.service.engine.scheduler.statistics().running:
        await trio.sleep(0.001)


def samples(page: str, name: str) -> dict[str, float]:
    """The values of a name by the text of their labels."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def value(page: str, name: str, labels: str = "") -> float:
    return samples(page, name).get(labels, 0)


@pytest.mark.contract(
    "M4",
    "7.2",
    "tgi_request_count",
    "tgi_request_success",
    "tgi_request_failure",
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
    "tgi_request_generated_tokens",
    "tgi_request_input_length",
    "tgi_request_max_new_tokens",
    "tgi_request_skipped_tokens",
    "tgi_queue_size",
    "tgi_batch_next_size",
    "tgi_batch_current_size",
    "tgi_batch_current_max_tokens",
    "tgi_batch_max_total_tokens",
    "tgi_batch_inference_count",
    "tgi_batch_inference_success",
    "tgi_batch_inference_duration",
    "tgi_batch_forward_duration",
    "tgi_batch_decode_duration",
    "tgi_batch_filter_duration",
    "tgi_batch_concat_duration",
    "tgi_batch_concat",
    "12.10",
)
@pytest.mark.parametrize("name", TABLE)
def test_every_family_with_its_type_label_and_buckets(name: str, page: str) -> None:
    kind, label = TABLE[name]
    assert f"\n# TYPE {name} {kind}\n" in "\n" + page
    suffix = {"histogram": "_bucket", "summary": ""}.get(kind, "")
    labels = [
        re.sub(r'(le|quantile)="([^"]*)"', "", text).rstrip(",") for text in samples(page, name + suffix)
    ]
    assert labels
    for text in labels:
        assert re.fullmatch(f'{label}="[a-z_]+"' if label else "", text)
    if kind == "histogram":
        for text in set(labels):
            bounds = re.findall(
                rf'^{name}_bucket{{{text}{"," if text else ""}le="(.*)"}} ', page, re.MULTILINE
            )
            assert bounds == expected_bounds(name)
            in_braces = f"{{{text}}}" if text else ""
            for end in ("sum", "count"):
                assert re.search(rf"^{name}_{end}{re.escape(in_braces)} \S+$", page, re.MULTILINE)


def expected_bounds(name: str) -> list[str]:
    """Rust and Python print floats alike, except whole numbers."""
    if name.endswith("duration"):
        return DURATIONS
    if name == "tgi_batch_next_size":
        return [*map(str, range(1, 1025)), "+Inf"]
    limit = LIMITS.max_input_tokens if name == "tgi_request_input_length" else LIMITS.max_total_tokens
    bounds = [limit / 100.0 * step for step in range(1, 101)]
    return [*(repr(bound).removesuffix(".0") for bound in bounds), "+Inf"]


@pytest.mark.contract(
    "7.2",
    "tgi_request_count",
    "tgi_request_success",
    "tgi_request_generated_tokens",
    "tgi_request_max_new_tokens",
    "tgi_batch_inference_count",
    "tgi_batch_inference_success",
)
def test_what_is_counted(page: str) -> None:
    assert value(page, "tgi_request_count") == len(REQUESTS) + 3
    assert value(page, "tgi_request_success") == len(REQUESTS) + 2
    assert samples(page, "tgi_request_failure") == {'err="validation"': 1}
    assert value(page, "tgi_request_duration_count") == value(page, "tgi_request_generated_tokens_count")
    assert value(page, "tgi_request_generated_tokens_sum") == 2 * 8 + 50
    assert value(page, "tgi_request_max_new_tokens_sum") == 2 * 8 + 50
    assert value(page, "tgi_request_skipped_tokens_sum") == 0
    for method in ("prefill", "decode"):
        steps = value(page, "tgi_batch_inference_count", f'method="{method}"')
        assert steps > 5
        assert value(page, "tgi_batch_inference_success", f'method="{method}"') == steps
        assert value(page, "tgi_batch_inference_duration_count", f'method="{method}"') == steps
    assert sum(samples(page, "tgi_batch_concat").values()) == 1
    assert set(samples(page, "tgi_batch_concat")) <= {
        f'reason="{reason}"' for reason in ("backpressure", "wait_exceeded", "chunking")
    }
    for name in ("tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"):
        assert value(page, name) == 0  # nobody is there any more


def test_a_gauge_that_tgi_never_sets_is_not_there_and_one_that_it_loses_is(page: str) -> None:
    assert "tgi_batch_total_tokens" not in page
    assert value(page, "tgi_batch_max_total_tokens") == 4096


@pytest.mark.contract("tgi_batch_current_size", "tgi_batch_current_max_tokens")
async def test_the_gauges_of_a_running_batch() -> None:
    async with serving(endless, step_seconds=0.05) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.generate, {"max_new_tokens": 60})
        await until_running(server)
        page = await server.metrics()
        assert value(page, "tgi_batch_current_size") == 1
        held = value(page, "tgi_batch_current_max_tokens")
        assert held > 0
        assert held % 16 == 0
        nursery.cancel_scope.cancel()


@pytest.mark.contract("M5", "tgi_request_skipped_tokens")
def test_a_summary_has_these_quantiles(page: str) -> None:
    assert list(samples(page, "tgi_request_skipped_tokens")) == [f'quantile="{q}"' for q in QUANTILES]


@pytest.mark.contract("M3")
async def test_families_come_in_order_each_described_and_with_a_blank_line_behind(page: str) -> None:
    blocks = page.split("\n\n")
    assert blocks.pop() == ""
    for block in blocks:
        first, second, *rest = block.split("\n")
        name = first.split()[2]
        assert first.startswith(f"# HELP {name} ")
        assert second.startswith(f"# TYPE {name} ")
        assert rest
        assert all(line.startswith(name) for line in rest)
    assert "_total " not in page
    async with serving() as server:
        again = re.findall("^# TYPE (.*)$", await server.metrics(), re.MULTILINE)
        order = re.findall("^# TYPE (.*)$", page, re.MULTILINE)
        assert again == [line for line in order if line in again]


async def test_before_the_first_request_tgis_gauges_of_the_engine_are_there() -> None:
    async with serving() as server:
        names = re.findall(r"^# TYPE (\S+)", await server.metrics(), re.MULTILINE)
        assert [name for name in names if name in TABLE] == [
            "tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens",
            "tgi_batch_max_total_tokens",
        ]  # fmt: skip


@pytest.mark.contract("M1")
async def test_the_page_needs_no_key() -> None:
    async with serving(options=Options(api_key=("secret",))) as server:
        answer = await server.ask("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.contract("tgi_request_failure")
@pytest.mark.parametrize(
    ("path", "body", "label"),
    [
        ("/generate", {"inputs": ""}, "validation"),
        ("/generate", {"inputs": "x", "parameters": {"best_of": 3}}, "validation"),  # V04: not in TGI
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "validation"),
        ("/v1/completions", {"prompt": ["x"] * 5}, "validation"),
        ("/v1/chat/completions", {"messages": [USER], "tools": [], "tool_choice": "f"}, "validation"),  # V33
        ("/vertex", {"instances": []}, "validation"),  # V37
        ("/v1/chat/completions", {"messages": [USER]}, "template"),
        ("/generate", {"inputs": "x"}, "generation"),
        ("/vertex", {"instances": [{"inputs": "x"}] * 9}, "overloaded"),
        ("/generate", {}, None),  # what cannot be read
    ],
)
async def test_failures_by_their_label(path: str, body: dict[str, Any], label: str | None) -> None:
    async with serving(saying("Hello"), template="{{ raise_exception('no') }}") as server:
        if label == "generation":
            assert server.service.engine is not None
            scheduler = server.service.engine.scheduler

            def fail(*_: Any) -> int:
                scheduler.fail_all(GenerationFailed("boom"))
                return 5

            server.executor.script = fail
        assert (await server.ask("POST", path, body)).status != 200
        expected = {} if label is None else {f'err="{label}"': 1}
        assert samples(await server.metrics(), "tgi_request_failure") == expected


async def test_a_request_without_the_key_does_not_count() -> None:
    async with serving(options=Options(api_key=("secret",))) as server:
        assert (await server.generate({})).status == 401
        assert not samples(await server.metrics(), "tgi_request_failure")
        assert not samples(await server.metrics(), "tgi_request_count")
