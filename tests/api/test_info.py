"""GET routes and `/tokenize`: tgi-behaviour 1.1, 3.8, 3.9, 7, 8.5, 12.9."""

import re

import pytest
from packaging.version import Version
from prometheus_client.parser import text_string_to_metric_families

from tgi.config import Options
from tgi.lifecycle import Phase

from .serving import BOS, LIMITS, saying, serving

HEALTH = ["/health", "/ping", "/"]


@pytest.mark.contract("R1.10", "R1.11", "R1.39")
@pytest.mark.parametrize("path", HEALTH)
async def test_healthy_is_200_and_nothing_else(path: str) -> None:
    async with serving() as server:
        answer = await server.ask("GET", path)
        assert (answer.status, answer.body) == (200, b"")
        assert "content-type" not in answer.headers


@pytest.mark.parametrize("path", HEALTH)
async def test_until_it_is_ready_health_tells_the_progress(path: str) -> None:
    async with serving(phase=Phase.STARTING) as server:
        lifecycle = server.service.lifecycle
        lifecycle.enter("loading weights", total=200)
        lifecycle.done = 50
        lifecycle.stage_started -= 10
        answer = await server.ask("GET", path)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        body = answer.json
        assert 30 <= body.pop("seconds_left") < 40
        assert 0 <= body.pop("seconds") < 10
        assert body == {
            "error": "The server is starting: loading weights",
            "error_type": "healthcheck",
            "status": "starting",
            "stage": "loading weights",
            "done": 50,
            "total": 200,
        }


async def test_draining_is_not_healthy() -> None:
    async with serving(phase=Phase.DRAINING) as server:
        answer = await server.ask("GET", "/health")
        assert answer.status == 503
        body = answer.json
        assert 0 <= body.pop("seconds") < 10
        assert body == {
            "error": "The server is shutting down",
            "error_type": "healthcheck",
            "status": "draining",
        }
        assert (await server.ask("GET", "/metrics")).status == 200
        assert (await server.ask("GET", "/info")).status == 200


@pytest.mark.parametrize(
    ("phase", "statuses"),
    [(Phase.STARTING, (503, 200, 503)), (Phase.READY, (200, 200, 200)), (Phase.RECOVERING, (503, 200, 200)),
     (Phase.DRAINING, (503, 200, 200))],
)  # fmt: skip
async def test_ready_live_and_started_are_three_questions(phase: Phase, statuses: tuple[int, ...]) -> None:
    async with serving(phase=phase) as server:
        paths = ("/health", "/health/live", "/health/startup")
        answers = [await server.ask("GET", path) for path in paths]
        assert tuple(answer.status for answer in answers) == statuses
        for answer in answers:
            assert answer.status == 200 or answer.json["status"] == phase.value


@pytest.mark.parametrize("refuse", [False, True])
async def test_requests_wait_for_new_ranks_or_are_refused_as_told(refuse: bool) -> None:
    options = Options(while_recovering="refuse" if refuse else "wait")
    async with serving(options=options, phase=Phase.RECOVERING) as server:
        answer = await server.ask("POST", "/generate", {"inputs": "Hello"})
        assert answer.status == (503 if refuse else 200)
        assert ("retry-after" in answer.headers) == refuse
        health = await server.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (503, "recovering")


async def test_a_step_that_hangs_is_not_healthy() -> None:
    async with serving(options=Options(stall_timeout=5)) as server:
        assert server.service.engine is not None
        server.service.engine.scheduler.waited_seconds = lambda: 7.2  # type: ignore[method-assign]
        answer = await server.ask("GET", "/health")
        assert answer.status == 503
        assert answer.json["error"] == "The server is stalled: a step has taken 7 s so far"


@pytest.mark.contract("R1.12", "3.9")
async def test_info_has_tgis_keys_and_more() -> None:
    async with serving() as server:
        info = (await server.ask("GET", "/info")).json
        version = Version(info.pop("version"))
        assert Version("2.1.0") < version
        assert version.local is not None
        assert version.local.startswith("tgi.")
        assert info == {
            "model_id": "some/model",
            "model_sha": "0" * 40,
            "model_pipeline_tag": None,
            "max_concurrent_requests": LIMITS.max_concurrent_requests,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": 63,
            "max_total_tokens": 64,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "sha": None,
            "docker_label": None,
            "max_input_length": 63,
            "model_dtype": "float32",
            "model_device_type": "sim",
        }
    async with serving(phase=Phase.STARTING) as server:
        assert (await server.ask("GET", "/info")).status == 503


@pytest.mark.contract("R1.8", "R2.76", "3.8", "12.9")
async def test_tokenize_counts_bytes_and_shows_special_tokens_without_a_place() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/tokenize", {"inputs": "é Hello", "parameters": {"truncate": 0}})
        tokens = answer.json
        assert tokens[0] == {"id": BOS, "text": "", "start": 0, "stop": 0}
        assert list(tokens[0]) == ["id", "text", "start", "stop"]
        assert [(token["text"], token["start"], token["stop"]) for token in tokens[1:]][-2:] == [
            (" ", 2, 3), ("Hello", 3, 8),
        ]  # fmt: skip
        assert (await server.ask("POST", "/tokenize", {"inputs": ""})).json == tokens[:1]
        long = (await server.ask("POST", "/tokenize", {"inputs": "Hello" * 1000})).json
        assert long[-1]["stop"] == 5000
        assert [name for name in answer.headers if name.startswith("x-")] == ["x-request-id"]


@pytest.mark.contract("R1.14")
async def test_metrics_are_plain_text_and_count_requests_once() -> None:
    async with serving(saying("Hello")) as server:
        await server.generate({})
        await server.generate({}, path="/generate_stream")
        await server.generate({"best_of": 2, "do_sample": True}, path="/")
        await server.generate({"top_k": 0})
        await server.ask("POST", "/generate", b"{}")
        answer = await server.ask("GET", "/metrics")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        text = answer.body.decode()
        for line in (
            "tgi_request_count 4",
            "tgi_request_success 3",
            'tgi_request_failure{err="validation"} 1',
            "tgi_request_duration_count 3",
            "tgi_request_validation_duration_count 3",
            "tgi_request_queue_duration_count 3",
            "tgi_request_inference_duration_count 3",
            "tgi_request_mean_time_per_token_duration_count 3",
            "tgi_request_generated_tokens_sum 6",
            "tgi_request_input_length_count 3",
            "tgi_request_max_new_tokens_sum 186",
            "tgi_request_skipped_tokens_sum 0",
            "tgi_request_time_to_first_token_duration_count 4",
            "tgi_queue_size 0",
            "tgi_batch_max_total_tokens 4096",
            'tgi_kv_blocks{state="used"} 0',
        ):
            assert re.search(f"^{re.escape(line)}$", text, re.MULTILINE), line
        assert "_total{" not in text
        assert len(list(text_string_to_metric_families(text))) > 15


async def test_version_and_load_are_those_of_vllm() -> None:
    async with serving() as server:
        version = (await server.ask("GET", "/info")).json["version"]
        assert (await server.ask("GET", "/version")).json == {"version": version}
        assert (await server.ask("GET", "/load")).json == {"server_load": 0}
        with server.service.permits(3):
            assert (await server.ask("GET", "/load")).json == {"server_load": 3}
