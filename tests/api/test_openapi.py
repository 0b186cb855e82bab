"""The document is a superset of TGI's, and true: of routes, bodies, ranges, answers and errors."""

import functools
import json
import re
from typing import Any

import attrs
import pytest
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from tgi.api.app import create_app
from tgi.api.call import Route
from tgi.api.openapi import ROUTES, document
from tgi.api.service import Service
from tgi.config import Options
from tgi.errors import ValidationError
from tgi.lifecycle import Lifecycle, Phase
from tgi.metrics import Metrics
from tgi.protocol.pooling import Pooling

from . import openapi_rows
from .json_rows import ACCEPTED_HERE, PATHS, REFUSED_HERE, ROWS
from .serving import INFO, LIMITS, Answer, Server, saying, serving

DOCUMENTED = [route for route in ROUTES if route.documented]
POSTS = [route for route in DOCUMENTED if route.body]
GETS = [route for route in DOCUMENTED if not route.body]
INSIDE = {"name": "m", "version": "1", "model": "some/model"}


@functools.cache
def ours() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(document(LIMITS, INFO.vocab_size)))
    return made


def name_of(operation: Route) -> str:
    return operation.name


def test_it_is_valid() -> None:
    validate(ours())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = ours()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return resolved(found)
    return schema


def properties(schema: dict[str, Any]) -> set[str]:
    """Return the properties of a schema and of its parts."""
    schema = resolved(schema)
    found = set(schema.get("properties", {}))
    for keyword in ("allOf", "anyOf", "oneOf"):
        for one in schema.get(keyword, []):
            found |= properties(one)
    if schema.get("type") == "array":
        found |= properties(schema["items"])
    return found


def required(schema: dict[str, Any]) -> set[str]:
    """Return the properties that every value of a schema has."""
    schema = resolved(schema)
    found = set(schema.get("required", []))
    for one in schema.get("allOf", []):
        found |= required(one)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            found |= set.intersection(*map(required, schema[keyword]))
    return found


@pytest.mark.contract("R1.16")
@pytest.mark.parametrize("path", openapi_rows.OPERATIONS, ids=str)
def test_every_operation_of_tgi_is_there_with_its_statuses(path: tuple[str, str]) -> None:
    operation = ours()["paths"][path[0]][path[1]]
    name, statuses = openapi_rows.OPERATIONS[path]
    assert operation["operationId"] == name
    assert set(statuses.split()) <= set(operation["responses"])


@pytest.mark.contract("R1.16", "2.2")
@pytest.mark.parametrize("name", openapi_rows.SCHEMAS)
def test_every_schema_of_tgi_is_there_with_its_properties(name: str) -> None:
    schema = ours()["components"]["schemas"][name]
    words = openapi_rows.SCHEMAS[name].split()
    assert {word.rstrip("*") for word in words} <= properties(schema)
    if name in openapi_rows.REQUESTS:
        assert required(schema) <= {word.rstrip("*") for word in words if word.endswith("*")}


def test_it_has_every_route_and_no_other() -> None:
    rules = create_app(
        Service(limits=LIMITS, lifecycle=Lifecycle(), metrics=Metrics(1, 2))
    ).url_map.iter_rules()
    routes = {
        (re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        for method in rule.methods or ()
        if method in ("GET", "POST")
    }
    documented = {(path, method) for path, methods in ours()["paths"].items() for method in methods}
    others = ("/docs", "/page", "/api/", "/v1/responses/")
    assert {(path.replace("{name}", "{model}", 1) if path.startswith("/v1") else path, method)
            for path, method in routes if not path.startswith(others)} == documented  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "GenerateParameters",
        "CompatGenerateRequest",
        "ChatRequest",
        "CompletionRequest",
        "InferenceRequest",
        "VertexRequest",
    ],
)
def test_every_field_is_described(name: str) -> None:
    fields = ours()["components"]["schemas"][name]["properties"]
    plain = [field for field, schema in fields.items() if not schema.get("description")]
    assert plain in ([], ["stream_options"], ["id"])


def test_descriptions_name_no_ids_of_the_contract() -> None:
    text = json.dumps(ours())
    assert "A text in a message." in text
    assert "tgi-behaviour" not in text
    assert not re.search(r"\([A-Z]+\d", text)


REFUSED_LATER = {
    '{"inputs":"a","parameters":{"top_k":-1}}',
    '{"inputs":"a","parameters":{"grammar":{"type":"json","value":[1]}}}',
    '{"instances":[]}',
    '{"messages":[]}',
}
"""Bodies that are decoded but refused by a rule of 2.6, and by the document."""


def fits(kind: str, body: str) -> bool:
    """Whether the schema of the request accepts this."""
    content = ours()["paths"][PATHS[kind]]["post"]["requestBody"]["content"]["application/json"]
    whole = {"components": ours()["components"], "allOf": [content["schema"]]}
    return bool(OAS30Validator(whole).is_valid(json.loads(body)))


@pytest.mark.parametrize(("kind", "body", "status", "detail"), [*ROWS, *REFUSED_HERE])
def test_requests_that_are_read_fit_and_others_do_not(kind: str, body: str, status: int, detail: str) -> None:
    if status == 400 or "more than once" in detail or "trailing" in body or "differ" in detail:
        return  # nothing that a schema could tell of
    assert fits(kind, body) == (status == 0 and body not in REFUSED_LATER)


@pytest.mark.parametrize(("kind", "body"), ACCEPTED_HERE)
def test_what_openai_allows_fits(kind: str, body: str) -> None:
    assert fits(kind, body)


def check(answer: Answer, operation: Route) -> None:
    """The answer is one of those that are documented for its status."""
    responses = ours()["paths"][operation.template][operation.method.lower()]["responses"]
    content = responses[str(answer.status)].get("content", {})
    media = answer.headers.get("content-type", "").partition(";")[0]
    if not answer.body:
        assert media == "".join(content)  # a documented type, for a text that may be empty, or none
        return
    schema = content[media]["schema"]
    validator = OAS30Validator({"components": ours()["components"], "allOf": [schema]})
    if media == "text/event-stream":
        for event in answer.body.decode().removesuffix("data: [DONE]\n\n").strip().split("\n\n"):
            validator.validate(json.loads(event.rpartition("\n")[2].removeprefix("data: ")))
    elif media == "application/json":
        validator.validate(answer.json)
    else:
        assert media == "text/plain"


def refused_by(operation: Route) -> int:
    return ValidationError().status_for(operation.path)


def pooling_of(operation: Route) -> Pooling | None:
    """A model that the route is for: one that gives vectors, or none of these."""
    return Pooling(folder="") if operation.pools else None


async def ask(server: Server, operation: Route, **more: Any) -> Answer:
    body = more.pop("body", operation.example)
    return await server.ask(operation.method, operation.template.format(**INSIDE), body, **more)


@pytest.mark.parametrize("operation", POSTS, ids=name_of)
async def test_each_example_is_answered_as_documented(operation: Route) -> None:
    async with serving(saying("Hi there"), pooling=pooling_of(operation)) as server:
        for stream in (False, True):
            body = {**operation.example, "stream": stream}
            answer = await ask(server, operation, body=body)
            assert answer.status == (403 if "lora" in operation.name else 200), answer.body
            check(answer, operation)


DETAILS = {"details": True, "top_n_tokens": 2, "max_new_tokens": 3}
PROMPT_DETAILS = {**DETAILS, "decoder_input_details": True, "best_of": 2, "do_sample": True}
MORE = {"max_tokens": 3, "return_token_ids": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
PROMPT_LOGPROBS = {"stream": False, "prompt_logprobs": 2}
FULL: dict[str, dict[str, Any]] = {
    "/": {"inputs": "a", "parameters": PROMPT_DETAILS},
    "/generate": {"inputs": "a", "parameters": PROMPT_DETAILS},
    "/generate_stream": {"inputs": "a", "parameters": DETAILS},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "a"}],
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "return_prompt_text": True,
        **MORE,
    },
    "/v1/completions": {"prompt": ["a", "b"], "logprobs": 2, "echo": True, **MORE},
}


@pytest.mark.parametrize("path", FULL)
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_with_all_that_can_be_asked_for_are_as_documented(path: str, stream: bool) -> None:
    (operation,) = [one for one in POSTS if one.path == path]
    async with serving(saying("Hi there")) as server:
        body = {**FULL[path], "stream": stream and path != "/"}
        if path.startswith("/v1/"):
            body |= USAGE if stream else PROMPT_LOGPROBS
        answer = await ask(server, operation, body=body)
        assert answer.status == 200, answer.body
        check(answer, operation)


@pytest.mark.parametrize("operation", GETS, ids=name_of)
@pytest.mark.parametrize("phase", [Phase.READY, Phase.STARTING])
async def test_each_get_is_answered_as_documented(operation: Route, phase: Phase) -> None:
    async with serving(phase=phase) as server:
        answer = await ask(server, operation)
        check(answer, operation)
        assert answer.status == (503 if phase is Phase.STARTING and 503 in operation.errors else 200)


async def test_an_unknown_model_is_a_documented_404() -> None:
    (operation,) = [one for one in GETS if one.name == "openai_get_model"]
    async with serving() as server:
        answer = await server.ask("GET", "/v1/models/other")
        assert answer.status == 404
        check(answer, operation)


@pytest.mark.contract("R1.34", "R1.35")
@pytest.mark.parametrize("operation", POSTS, ids=name_of)
async def test_errors_of_bodies_and_of_the_key_are_as_documented(operation: Route) -> None:
    options = Options(api_key=("key",), payload_limit=10_000)
    async with serving(options=options, pooling=pooling_of(operation)) as server:
        key = {"authorization": "Bearer key"}
        plain = {**key, "Content-Type": "text/plain"}
        for status, body, headers in [
            (400, b"{", key),
            (401, operation.example, {}),
            (413, b"[" * 10_001, key),
            (415, b"{}", plain),
            (refused_by(operation), {}, key),
        ]:
            answer = await ask(server, operation, body=body, headers=headers)
            assert answer.status == status
            check(answer, operation)
    async with serving(phase=Phase.STARTING) as server:
        answer = await ask(server, operation)
        assert answer.status == 503
        check(answer, operation)


@pytest.mark.parametrize("operation", [one for one in POSTS if one.generates], ids=name_of)
async def test_overload_and_deadlines_are_as_documented(operation: Route) -> None:
    async with serving(limits=attrs.evolve(LIMITS, max_concurrent_requests=0)) as server:
        answer = await ask(server, operation)
        assert answer.status in (refused_by(operation), 429)
        check(answer, operation)
    async with serving() as server:
        answer = await ask(server, operation, headers={"x-request-timeout": "0"})
        assert answer.status == refused_by(operation)
        check(answer, operation)
        answer = await ask(server, operation, headers={"x-request-timeout": "1e-9"})
        assert answer.status == 408
        check(answer, operation)


def outside(schema: dict[str, Any]) -> list[Any]:
    """Values just beyond the ends of a range."""
    step = 1 if schema.get("type") == "integer" else 0.01
    low, high = schema.get("minimum"), schema.get("maximum")
    found = []
    if low is not None:
        found.append(low if schema.get("exclusiveMinimum") else low - step)
    if high is not None:
        found.append(high if schema.get("exclusiveMaximum") else high + step)
    if "items" in schema and "anyOf" not in schema:
        found += [[value] for value in outside(schema["items"])]
    return found


RANGES = {
    "/generate": ("GenerateParameters", lambda name, value: {"inputs": "a", "parameters": {name: value}}),
    "/v1/chat/completions": (
        "ChatRequest",
        lambda name, value: {"messages": [{"role": "user", "content": "a"}], name: value},
    ),
    "/v1/completions": ("CompletionRequest", lambda name, value: {"prompt": "a", "echo": True, name: value}),
}


@pytest.mark.contract("2.2")
@pytest.mark.parametrize("path", RANGES)
async def test_ranges_are_those_of_validation(path: str) -> None:
    kind, request = RANGES[path]
    schemas = ours()["components"]["schemas"][kind]["properties"]
    tried, refusal = 0, ValidationError().status_for(path)
    async with serving(saying("Hi")) as server:
        for name, schema in schemas.items():
            for value in outside(schema):
                answer = await server.ask("POST", path, request(name, value))
                assert answer.status == refusal, (name, value)
                tried += 1
            inside = schema.get("minimum")
            if inside is not None and not schema.get("exclusiveMinimum"):
                answer = await server.ask("POST", path, request(name, inside))
                assert answer.status == 200, (name, inside, answer.body)
    assert tried > 15


@pytest.mark.contract("R1.15", "R1.16")
async def test_docs_are_served_whole_from_here() -> None:
    async with serving() as server:
        answer = await server.ask("GET", "/docs")
        assert (answer.status, answer.headers["location"], answer.body) == (303, "/docs/", b"")
        page = await server.ask("GET", "/docs/")
        assert page.headers["content-type"].startswith("text/html")
        assert b"//" not in page.body.replace(b"../", b"")
        for name in re.findall(rb'(?:href|src)="([^"]+)"', page.body):
            asset = await server.ask("GET", f"/docs/{name.decode()}")
            assert asset.status == 200
            assert len(asset.body) > 500
        assert (await server.ask("GET", "/docs/swagger-initializer.js")).status == 404
        served = await server.ask("GET", "/api-doc/openapi.json")
        assert served.json == ours()


async def names_of_assets(server: Server, page: Answer) -> set[str]:
    """Return the names of the files that a page loads, which are there."""
    names = {name.decode() for name in re.findall(rb'(?:href|src)="(/[^"]+)"', page.body)}
    for name in names:
        assert (await server.ask("GET", name)).status == 200
    return names


async def test_a_page_behind_a_prefix_needs_no_slash_at_the_end() -> None:
    async with serving(options=Options(root_path="/llm/")) as server:
        for path in ("/llm", "/llm/", "/"):  # a proxy may cut the prefix off
            page = await server.ask("GET", path, headers={"accept": "text/html"})
            assert "/llm/page/page.js" in await names_of_assets(server, page)
            answer = await server.ask("GET", f"{path.rstrip('/')}/docs")
            assert answer.headers["location"] == "/llm/docs/"


async def test_browsers_get_a_page_whole_from_here_and_nobody_else_does() -> None:
    async with serving() as server:
        page = await server.ask("GET", "/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert await names_of_assets(server, page) >= {"/page/page.js", "/page/page.css"}
        for accept in ("*/*", "application/json", "text/plain"):
            answer = await server.ask("GET", "/", headers={"accept": accept})
            assert (answer.status, answer.body) == (200, b"")
        assert (await server.ask("GET", "/page/page.py")).status == 404
