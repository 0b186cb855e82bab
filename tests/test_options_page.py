"""The tables of docs/options.md come from the options; `python -m tests.test_options_page` rewrites them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import Argument

from tgi import flags
from tgi.cli import launcher_app

PAGE = Path(__file__).parents[1] / "docs" / "options.md"


def arguments(*groups: object) -> Iterator[Argument]:
    for argument in launcher_app.assemble_argument_collection(parse_docstring=True):
        if not argument.children and argument.parameter.group in [(group,) for group in groups]:
            yield argument


def code(*names: str) -> str:
    return " ".join(f"`{name}`" for name in names)


def variables(argument: Argument) -> str:
    return code(*(str(name) for name in argument.parameter.env_var or ()))


def default(argument: Argument) -> str:
    value = argument.field_info.default
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value in (None, ()) else code(str(value))


def own_names(argument: Argument) -> list[str]:
    long = argument.name.removeprefix("--")
    return [name for name in argument.names if name in (f"--{long}", f"--no-{long}") or len(name) == 2]


def vllm_names(argument: Argument) -> list[str]:
    return [name for name in argument.names if name not in own_names(argument)]


def help_of(argument: Argument) -> str:
    return " ".join(str(argument.parameter.help).split())


def table(*rows: tuple[str, ...]) -> list[str]:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body]


def options_table(group: object) -> list[str]:
    return table(
        ("flag", "variable", "default", "meaning"),
        *((code(*own_names(a)), variables(a), default(a), help_of(a)) for a in arguments(group)),
    )


def vllm_table() -> list[str]:
    groups = (flags.MODEL, flags.LIMITS, flags.BATCH, flags.BUCKETS, flags.MEMORY, flags.HTTP, flags.LOG)
    return table(
        ("vLLM", "here"),
        *((code(*vllm_names(a)), code(a.name)) for a in arguments(*groups) if vllm_names(a)),
    )


def compat_table(group: object) -> list[str]:
    return table(
        ("flag", "variable", "why"),
        *((code(*(a.parameter.name or ())), variables(a), help_of(a)) for a in arguments(group)),
    )


TABLES = {
    "Model": options_table(flags.MODEL),
    "Limits of a request": options_table(flags.LIMITS),
    "Batching": options_table(flags.BATCH),
    "Buckets": options_table(flags.BUCKETS),
    "Memory and warm-up": options_table(flags.MEMORY),
    "HTTP": options_table(flags.HTTP),
    "Logs and traces": options_table(flags.LOG),
    "Names of vLLM's flags": vllm_table(),
    "Accepted without effect": compat_table(flags.UNUSED),
    "Refused": compat_table(flags.REFUSED),
}


def section(page: str, title: str) -> tuple[int, int]:
    """Begin and end of the table in the section of that title."""
    begin = page.index("\n|", page.index(f"\n## {title}\n")) + 1
    rows = re.compile(r"(?:\|.*\n)+").match(page, begin)
    assert rows is not None
    return rows.span()


@pytest.mark.parametrize("title", TABLES)
def test_a_table_is_made_from_the_options(title: str) -> None:
    page = PAGE.read_text("utf-8")
    begin, end = section(page, title)
    assert page[begin:end].splitlines() == TABLES[title]


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    for name, rows in TABLES.items():
        start, stop = section(text, name)
        text = text[:start] + "\n".join(rows) + "\n" + text[stop:]
    PAGE.write_text(text, "utf-8")
