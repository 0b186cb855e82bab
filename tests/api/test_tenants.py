"""`--tenants`, `--tenant-header` and `priority`: limits, headers, and what the scheduler is told."""

import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.api.serving import serving
from tgi.api.tenants import Tenants, read_tenants
from tgi.config import OptionError, Options
from tgi.errors import RateLimited
from tgi.scheduler.policy import Schedule
from tgi.server import _Server
from tgi.testing.builders import make_sequence

FILE = """
[default]
tokens_per_minute = 600

[tenants.alice]
weight = 2.5
max_concurrent_requests = 1

[tenants."sk-bob"]
weight = 0.5
"""
BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 4}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(FILE)
    return path


def tenants_of(file: Path, clock: Any = lambda: 0.0) -> Tenants:
    tenants = Tenants(Options(tenants=file), clock)
    tenants.load()
    return tenants


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[tenants.a]\nweight = 0", "weight"),
        ("[tenants.a]\nwieght = 1", "wieght"),
        ("[tenants.a]\nweight = nan", "weight"),
        ("[tenants.a]\nmax_concurrent_requests = 0", "max_concurrent_requests"),
        ("[tenants.a]\ntokens_per_minute = '5'", "tokens_per_minute"),
        ("[tenant.a]", "tenant"),
        ("weight = x", "line 1"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_place(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=f"tenants.toml.*{what}"):
        read_tenants(path)


def test_requests_at_once_are_limited(file: Path) -> None:
    alice = tenants_of(file).named("alice")
    with alice.permits(1):
        assert alice.headers()["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(RateLimited, match="more than 1 concurrent") as caught, alice.permits(1):
            pass
        assert caught.value.headers["Retry-After"] == "1"
    with alice.permits(1):
        pass


def test_tokens_per_minute_are_limited(file: Path) -> None:
    """600 a minute are 10 a second; who has used 700 waits until less than 600 are owed."""
    now = 100.0
    other = tenants_of(file, lambda: now).named("carol")
    with other.permits(1), other.spending([make_sequence([5] * 700, 1)]):
        pass
    with pytest.raises(RateLimited, match="600 tokens per minute") as caught, other.permits(1):
        pass
    assert caught.value.headers == {
        "Retry-After": "11",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "70s",
    }
    now += 11
    with other.permits(1):
        assert other.headers()["x-ratelimit-remaining-tokens"] == "10"


def test_tenants_that_owe_nothing_are_forgotten(file: Path) -> None:
    """A client that makes up names must not fill the memory."""
    tenants = tenants_of(file)
    for number in range(1000):
        tenants.named(str(number))
    assert len(tenants._tenants) == 1


async def test_a_request_of_a_tenant_at_its_limit_gets_429(file: Path) -> None:
    async with serving(options=Options(tenants=file, tenant_header="x-team")) as server:
        server.service.tenants.load()
        tenant = server.service.tenants.named("alice")
        answer = await server.ask("POST", "/generate", BODY, {"x-team": "alice"})
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "1"
        with tenant.permits(1):
            for path, body in (("/generate", BODY), ("/v1/completions", {"prompt": "a"})):
                answer = await server.ask("POST", path, body, {"x-team": "alice"})
                assert (answer.status, answer.headers["retry-after"]) == (429, "1")
                assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert answer.json["error"]["code"] == "rate_limit_exceeded"
            answer = await server.ask("POST", "/generate", BODY, {"x-team": "carol"})
            assert answer.status == 200
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) <= 600
        assert (tenant.requests, server.service.in_flight) == (0, 0)


async def test_the_scheduler_is_told_of_tenant_and_priority(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(options=Options(tenants=file, api_key=("sk-bob", "sk-eve"))) as server:
        server.service.tenants.load()
        assert server.service.engine is not None
        added: list[tuple[str, float, int]] = []
        schedule = server.service.engine.scheduler.replicas[0].scheduler._schedule
        add = type(schedule).add

        def note(self: Any, one: Any) -> None:
            added.append((one.tenant, one.weight, one.priority))
            add(self, one)

        monkeypatch.setattr(type(schedule), "add", note)
        keys = {"authorization": "Bearer sk-bob"}, {"x-api-key": "sk-eve"}
        body = {**BODY, "parameters": {**BODY["parameters"], "priority": -3}}  # type: ignore[dict-item]
        assert (await server.ask("POST", "/generate", body, keys[0])).status == 200
        body = {"prompt": "a", "max_tokens": 2, "priority": 7}
        assert (await server.ask("POST", "/v1/completions", body, keys[1])).status == 200
        assert added == [("sk-bob", 0.5, -3), ("sk-eve", 1.0, 7)]


async def test_an_objective_of_the_gateway_has_a_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of InferenceObjectives a higher priority comes first, of `priority` in a body a lower one."""
    options = Options(objectives=("interactive=10,batch=-10", "other = 0"))
    async with serving(options=options) as server:
        assert server.service.engine is not None
        added: list[int] = []
        add = Schedule.add

        def note(self: Any, one: Any) -> None:
            added.append(one.priority)
            add(self, one)

        monkeypatch.setattr(Schedule, "add", note)
        name = "x-gateway-inference-objective"
        for headers in (
            {name: "interactive"},
            {name: "batch"},
            {"X-LLM-D-Inference-Objective": "batch"},
            {name: "other"},
            {name: "unknown"},
            {name: "10"},
            {},
        ):
            assert (await server.ask("POST", "/generate", BODY, headers)).status == 200
        completion = {"prompt": "a", "max_tokens": 2}
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        for path, body in {
            "/v1/completions": completion,
            "/v1/chat/completions": chat,
            "/v1/messages": {**chat, "model": "m"},
        }.items():
            assert (await server.ask("POST", path, body, {name: "batch"})).status == 200
        for priority in (0, 7):
            body = {**completion, "priority": priority}
            assert (await server.ask("POST", "/v1/completions", body, {name: "interactive"})).status == 200
        assert added == [-10, 10, 10, 0, 0, 0, 0, 10, 10, 10, 0, 7]


async def test_a_fairness_id_of_the_gateway_can_name_the_tenant(file: Path) -> None:
    async with serving(
        options=Options(tenants=file, tenant_header="x-gateway-inference-fairness-id")
    ) as server:
        assert server.service.tenants is not None
        server.service.tenants.load()
        with server.service.tenants.named("alice").permits(1):
            headers = {"X-Gateway-Inference-Fairness-Id": "alice"}
            assert (await server.ask("POST", "/generate", BODY, headers)).status == 429
        assert (await server.ask("POST", "/generate", BODY, headers)).status == 200


async def test_sighup_reads_the_file_again_and_keeps_the_old_terms_if_it_is_wrong(file: Path) -> None:
    server = _Server(Options(tenants=file))
    server.service.tenants.load()
    alice = server.service.tenants.named("alice")
    with alice.permits(1):
        file.write_text(FILE.replace("2.5", "4"))
        server.take_signal(signal.SIGHUP)
        assert alice.terms.weight == 4
        file.write_text("[")
        server.take_signal(signal.SIGHUP)
        assert alice.terms.weight == 4
    assert not server.stopping.is_set()


async def test_sighup_ends_a_server_without_tenants() -> None:
    server = _Server(Options())
    server.take_signal(signal.SIGHUP)
    assert server.stopping.is_set()
    await trio.lowlevel.checkpoint()
