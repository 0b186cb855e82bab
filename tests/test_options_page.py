"""The tables of docs/options.md, and those of flags for users of TGI and of vLLM, come from the options.

`python -m tests.test_options_page` rewrites them.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import Argument, ArgumentCollection

from tgi import flags
from tgi.cli import launcher_app

DOCS = Path(__file__).parents[1] / "docs"
GROUPS = (flags.MODEL, flags.LIMITS, flags.BATCH, flags.BUCKETS, flags.MEMORY, flags.HTTP, flags.LOG)
TGI = """
    model-id revision validation-workers sharded num-shard quantize speculate dtype kv-cache-dtype
    trust-remote-code max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens
    max-input-tokens max-input-length max-total-tokens waiting-served-ratio max-batch-prefill-tokens
    max-batch-total-tokens max-waiting-tokens max-batch-size cuda-graphs hostname port prometheus-port
    shard-uds-path master-addr master-port huggingface-hub-cache weights-cache-override
    disable-custom-kernels cuda-memory-fraction rope-scaling rope-factor json-output otlp-endpoint
    otlp-service-name cors-allow-origin api-key watermark-gamma watermark-delta ngrok ngrok-authtoken
    ngrok-edge tokenizer-config-path disable-grammar-support env max-client-batch-size lora-adapters
    usage-stats payload-limit enable-prefill-logprobs graceful-termination-timeout
""".split()
"""Flags of text-generation-launcher 3.3, in the order of its --help (tgi-behaviour 6.1)."""
SAME_IN_VLLM = """
    revision dtype kv-cache-dtype load-format chat-template served-model-name api-key port uds root-path
    config trust-remote-code
""".split()


@cache
def collected() -> ArgumentCollection:
    return launcher_app.assemble_argument_collection(parse_docstring=True)


def arguments(*groups: object) -> Iterator[Argument]:
    for group in groups:
        yield from (one for one in collected() if not one.children and one.parameter.group == (group,))


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
    return table(
        ("vLLM", "here"),
        *((code(*vllm_names(a)), code(a.name)) for a in arguments(*GROUPS) if vllm_names(a)),
    )


def compat_table(group: object) -> list[str]:
    return table(
        ("flag", "variable", "why"),
        *((code(*(a.parameter.name or ())), variables(a), help_of(a)) for a in arguments(group)),
    )


def fate(argument: Argument) -> str:
    """What becomes of a flag of another server."""
    words = {(flags.UNUSED,): "no effect: ", (flags.REFUSED,): "refused: "}
    return words.get(argument.parameter.group, "") + help_of(argument)  # type: ignore[arg-type]


def own(argument: Argument) -> str:
    return code(argument.name, *(name for name in argument.names if len(name) == 2))


def tgi_flags_table() -> list[str]:
    known = {argument.name: argument for argument in arguments(*GROUPS, flags.UNUSED, flags.REFUSED)}
    rows = [known[f"--{name}"] for name in TGI]
    return table(("flag", "variable", "here"), *((own(a), variables(a), fate(a)) for a in rows))


def vllm_flags_table() -> list[str]:
    """Renamed flags, then those with the same name, then those of vLLM alone, without effect here."""
    others = list(arguments(flags.UNUSED, flags.REFUSED))
    renamed = [a for a in arguments(*GROUPS) if vllm_names(a)]
    same = [a for a in (*arguments(*GROUPS), *others) if a.name.removeprefix("--") in SAME_IN_VLLM]
    alone = [a for a in others if not a.parameter.env_var]
    return table(
        ("vLLM", "here"),
        *((code(*vllm_names(a)), f"{code(a.name)}: {help_of(a)}") for a in renamed),
        *((own(a), fate(a)) for a in same),
        *((code(*(a.parameter.name or ())), fate(a)) for a in alone),
    )


OPTIONS = {
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
TABLES = {
    **{("options.md", title): rows for title, rows in OPTIONS.items()},
    ("from-tgi-gaudi.md", "Flag by flag"): tgi_flags_table(),
    ("from-vllm.md", "Flags"): vllm_flags_table(),
}


def section(page: str, title: str) -> tuple[int, int]:
    """Begin and end of the table in the section of that title."""
    begin = page.index("\n|", page.index(f"\n## {title}\n")) + 1
    rows = re.compile(r"(?:\|.*\n)+").match(page, begin)
    assert rows is not None
    return rows.span()


@pytest.mark.parametrize(("page", "title"), TABLES)
def test_a_table_is_made_from_the_options(page: str, title: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    begin, end = section(text, title)
    assert text[begin:end].splitlines() == TABLES[page, title]


if __name__ == "__main__":
    for (name, heading), lines in TABLES.items():
        content = (DOCS / name).read_text("utf-8")
        start, stop = section(content, heading)
        content = content[:start] + "\n".join(lines) + "\n" + content[stop:]
        (DOCS / name).write_text(content, "utf-8")
