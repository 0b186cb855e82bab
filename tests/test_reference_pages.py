"""docs/errors.md, docs/routes.md and docs/devices.md say what the code says, and a server does.

`python -m tests.test_reference_pages` writes them.
"""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPMethod
from typing import Any

import pytest

from tgi import errors
from tgi.api import openapi
from tgi.api.call import Route
from tgi.errors import OPENAI, ApiError, BodyError
from tgi.plugins import Card, DeviceSpec
from tgi.plugins.manager import devices as offered_devices
from tgi.plugins.manager import load_plugins
from tgi.protocol.pooling import Pooling

from .api.serving import serving
from .documented import ROOT

DOCS = ROOT / "docs"
MARK = "<!-- from the code, by `python -m tests.test_reference_pages` -->\n"
ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, ApiError) and kind not in (ApiError, BodyError)
}
GROUPS = {
    "native": "TGI",
    "openai.chat": "OpenAI",
    "openai.completions": "OpenAI",
    "responses": "OpenAI",
    "openai.tokenize": "Tokens",
    "anthropic": "Anthropic",
    "ollama": "Ollama",
    "embeddings": "Embeddings and scores",
    "loras": "LoRA adapters",
    "platforms": "SageMaker, Vertex AI and KServe",
    "info": "The server",
    "openapi": "The server",
}
"""Headings of routes, by the module of their handler."""


def code(text: object) -> str:
    """Return the text as code, also in a table."""
    shown = str(text).replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def table(*rows: Iterable[str]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(tuple(rows[0])), *body]) + "\n"


def texts(node: ast.expr) -> Iterator[str]:
    """Yield what an expression may give; a point stands for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts(one), *texts(other))
        case ast.BinOp(left=one, right=other):
            yield from (before + after for before in texts(one) for after in texts(other))
        case _:
            yield "…"


def details() -> Mapping[str, set[str]]:
    """Return what the code fills into the message of each error, by the name of its class."""
    found = defaultdict(set)
    for path in (ROOT / "tgi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ERRORS:
                    found[name].update(texts(node.args[0]))
    return found


def words(name: str) -> str:
    """Return the name of a class as words."""
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: f" {found[1].lower()}", name)


def errors_part() -> str:
    filled = details()
    parts = []
    for name, kind in sorted(ERRORS.items(), key=lambda item: item[1].status):
        when, _, remedy = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        error = kind("…")
        detail: Any = error.to_openai_body()["error"]
        on_v1 = detail["http_status_code"]
        told = [f"`error_type` {code(kind.error_type)}", f"on `/v1` `type` {code(detail['type'])}"]
        told += [f"`code` {code(kind.code)}"] if kind.code else []
        told += [f"header `{key}: {value}`" for key, value in kind.headers.items()]
        status = str(kind.status) if on_v1 == kind.status else f"{kind.status} ({on_v1} on `/v1`)"
        title = words(name) if kind.form == "{}" else code(kind.form.replace("{}", "…"))
        when = openapi.CONTRACT_IDS.sub("", " ".join(when.split()))
        lines = [f"## {kind.status}: {title}", ""]
        lines += [f"{when} Status {status}; {', '.join(told)}.", "", " ".join(remedy.split()), ""]
        messages = sorted(one for one in filled[name] if one.strip("…") and "{}" in kind.form)
        lines += [f"* {code(message)}" for message in messages]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def headings() -> Mapping[str, list[Route]]:
    found = defaultdict(list)
    for route in openapi.ROUTES:
        found[GROUPS[route.handler.__module__.removeprefix("tgi.api.")]].append(route)
    return {name: found[name] for name in GROUPS.values()}


def answer(route: Route) -> str:
    kinds = ["JSON"] if route.answer else ["text"] if route.text else []
    return ", ".join(kinds + ["events"] * (route.stream is not None))


def statuses(route: Route) -> list[int]:
    """Return the statuses of errors. On `/v1` those of OpenAI."""
    return sorted(set(route.errors) - ({422} if route.path.startswith(OPENAI) else set()))


def routes_part() -> str:
    parts = []
    for heading, routes in headings().items():
        rows = [
            (
                code(f"{route.method} {route.template}"),
                route.summary,
                ", ".join(code(kind.__name__) for kind in route.body),
                answer(route),
                ", ".join(map(str, statuses(route))),
            )
            for route in routes
        ]
        parts.append(f"## {heading}\n\n" + table(("route", "gives", "body", "answer", "errors"), *rows))
    return "\n".join(parts)


def meanings(kind: type) -> Mapping[str, str]:
    """Return the first sentence of the docstring of each attribute."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            text = " ".join(ast.literal_eval(after.value).split())
            found[ast.unparse(node.target)] = re.split(r"(?<=\.) (?=[A-Z])", text)[0].rstrip(".")
    return found


def value(given: Any) -> str:
    """Return a value of a device as a reader would write it."""
    match given:
        case bool():
            return "yes" if given else "no"
        case Mapping():
            return ", ".join(code(f"{key}={one}") for key, one in given.items())
        case str():
            return code(given) if given else ""
        case int() | float():
            return f"{given:,.3g}" if given >= 1e6 or isinstance(given, float) else str(given)
    return ", ".join(map(code, sorted(given)))


def devices() -> list[DeviceSpec]:
    return sorted(offered_devices(load_plugins()).values(), key=lambda spec: spec.name)


def card_value(name: str, given: float) -> str:
    if name.endswith("bytes"):
        return f"{given / 2**30:.1f} GiB" if given else "the machine's"
    return f"{given:g}" if given else "unknown"


def devices_part() -> str:
    specs = devices()
    known = meanings(DeviceSpec)
    rows = [
        (code(name), known[name], *(value(getattr(spec, name)) for spec in specs))
        for name in known
        if not name.startswith(("name", "cards")) and not any(is_code(getattr(spec, name)) for spec in specs)
    ]
    settings = table(("setting", "meaning", *(code(spec.name) for spec in specs)), *rows)
    cards = {
        name: (card, [spec.name for spec in specs if name in spec.cards])
        for spec in specs
        for name, card in spec.cards.items()
    }
    of_cards = meanings(Card)
    columns = [
        (code(name), of_cards[name], *(card_value(name, getattr(card, name)) for card, _ in cards.values()))
        for name in of_cards
    ]
    used = (
        "`--device`",
        "Devices that have it",
        *(", ".join(map(code, names)) for _, names in cards.values()),
    )
    models = table(("rate", "meaning", *map(code, cards)), used, *columns)
    return f"## Settings\n\n{settings}\n## Cards\n\n{models}"


def is_code(given: Any) -> bool:
    """Whether a value names a function or a class, which says nothing to a user."""
    return isinstance(given, str) and re.fullmatch(r"[\w.]+:\w+", given) is not None


PARTS = {"errors": errors_part, "routes": routes_part, "devices": devices_part}


def page(name: str) -> str:
    """Return the page with what follows the mark made anew."""
    before, mark, _ = (DOCS / f"{name}.md").read_text("utf-8").partition(MARK)
    assert mark
    return f"{before}{mark}\n{PARTS[name]()}"


@pytest.mark.parametrize("name", PARTS)
def test_a_page_is_made_from_the_code(name: str) -> None:
    assert (DOCS / f"{name}.md").read_text("utf-8") == page(name), "python -m tests.test_reference_pages"


@pytest.mark.parametrize("kind", ERRORS.values())
def test_every_error_says_when_it_comes_and_what_to_do(kind: type[ApiError]) -> None:
    when, _, remedy = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    assert when.endswith((".", ")."))
    assert remedy.endswith(".")


@pytest.mark.parametrize("pools", [False, True])
async def test_examples_of_the_routes_are_answered_with_a_status_of_the_page(pools: bool) -> None:
    """Examples that name something, such as a LoRA adapter, find nothing of that name."""
    async with serving(pooling=Pooling(folder="") if pools else None) as server:
        for route in openapi.ROUTES:
            if route.method is HTTPMethod.POST and route.pools == pools:
                got = await server.ask("POST", re.sub(r"{\w+}", "x", route.template), route.example)
                by_name = {404, 403} & set(statuses(route))
                assert got.status in {200, *by_name}, (route.path, got.body)


if __name__ == "__main__":
    for each in PARTS:
        (DOCS / f"{each}.md").write_text(page(each), "utf-8")
