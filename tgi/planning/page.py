"""A plan as a page for a terminal, and as JSON."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tgi.protocol import Bucket

from .memory import MIB
from .plan import Plan, Speed


def page(plan: Plan) -> RenderableType:
    """All of it, 80 columns wide at most."""
    setup = plan.setup
    cards = f"{setup.ranks} x {setup.target.name}"
    title = Text(f"{setup.model} on {cards}, {_dtype(plan)}", style="bold")
    parts: list[RenderableType] = [title, _section("Memory of a card", _memory(plan))]
    if plan.buckets:
        parts.append(_section("Buckets", _buckets(plan.buckets), *_graphs(plan)))
    if plan.roofline is not None:
        floor = f"Reading the weights once takes {_ms(plan.roofline.floor)} ms of every step."
        decode = f"Decode, all sequences {setup.limits.max_total_tokens:,} tokens long"
        parts.append(_section(decode, _decode(plan.decode), floor))
        parts.append(_section("Prefill of one prompt", _prefill(plan.prefill)))
    if plan.refusal:
        parts.append(Text(f"\n{plan.refusal}", style="bold red"))
    return Group(*parts)


def as_json(plan: Plan) -> dict[str, Any]:
    """The same numbers; bytes, seconds, tokens a second, shares."""
    setup, memory = plan.setup, plan.memory
    return {
        "model": setup.model,
        "card": setup.target.name,
        "cards": setup.ranks,
        "dtype": _dtype(plan),
        "max_input_tokens": setup.limits.max_input_tokens,
        "max_total_tokens": setup.limits.max_total_tokens,
        "max_batch_size": setup.limits.max_batch_size,
        "max_batch_prefill_tokens": setup.limits.max_batch_prefill_tokens,
        "window": setup.limits.window,
        "fits": memory.fits,
        "refusal": plan.refusal,
        "memory": {
            "total": memory.total,
            "weights": memory.weights,
            "workspace": memory.workspace,
            "reserve": memory.reserve,
            "graphs": memory.graphs,
            "kv_block": memory.block_bytes,
            "kv_blocks": memory.blocks,
            "kv_blocks_that_fit": memory.fitting,
            "tokens_that_fit": memory.fitting * memory.block_size,
        },
        "graphs": len(plan.buckets),
        "warm_up_seconds": plan.warm_up_seconds,
        "padding": plan.waste,
        "buckets": [
            {"prefill": b.prefill, "rows": b.rows, "tokens": b.tokens, "blocks": b.blocks}
            for b in plan.buckets
        ],
        "weights_seconds": plan.roofline and plan.roofline.floor,
        "decode": [_speed(speed) for speed in plan.decode],
        "prefill": [_speed(speed) for speed in plan.prefill],
    }


def _speed(speed: Speed) -> dict[str, Any]:
    found = {"rows": speed.rows, "tokens": speed.tokens, "seconds": speed.seconds, "rate": speed.rate}
    return found if speed.bound is None else {**found, "bound": speed.computed / speed.bound}


def _dtype(plan: Plan) -> str:
    return "bfloat16" if plan.setup.dtype == "auto" else plan.setup.dtype


def _section(title: str, *parts: RenderableType) -> RenderableType:
    indented = (Padding(part, (0, 0, 0, 2), expand=False) for part in parts)
    return Group("", Text(title, style="bold"), *indented)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _memory(plan: Plan) -> RenderableType:
    memory = plan.memory
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, size in memory.rows():
        table.add_row(name, f"{size / MIB:,.0f} MiB")
    table.add_row("all", f"{memory.total / MIB:,.0f} MiB", style="dim")
    fitting = max(memory.fitting, 0)
    each = _size(memory.block_bytes)
    fit = f"{fitting:,} blocks fit, {fitting * memory.block_size:,} tokens; {each} a block."
    window = plan.setup.limits.window
    if window is None:
        return Group(table, fit)
    return Group(table, fit, f"A token sees {window:,}; a sequence has {memory.longest:,} blocks at most.")


def _graphs(plan: Plan) -> Iterator[str]:
    yield f"{len(plan.buckets)} graphs; warming them up takes about {_duration(plan.warm_up_seconds)}."
    waste = " and ".join(f"{share:.0%} to {kind}" for kind, share in plan.waste.items())
    if waste:
        likely = "they are as recorded" if plan.setup.bucketing.counts else "all shapes are equally likely"
        yield f"Padding adds {waste} steps, if {likely}."


def _buckets(buckets: Iterable[Bucket]) -> RenderableType:
    """Those that differ in their blocks only share a line."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (("step", "left"), ("rows", "right"), ("tokens", "right"), ("blocks", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]

    def key(bucket: Bucket) -> tuple[bool, int, int]:
        return not bucket.prefill, bucket.rows, bucket.tokens

    for (decode, rows, tokens), group in groupby(sorted(buckets, key=key), key):
        blocks = ", ".join(str(size) for size in sorted(bucket.blocks for bucket in group))
        table.add_row("decode" if decode else "prefill", str(rows), str(tokens), blocks)
    return table


def _decode(speeds: Iterable[Speed]) -> RenderableType:
    table = _table("sequences", "ms a token", "tokens/s", "at most tokens/s")
    for speed in speeds:
        bound = "" if speed.bound is None else f"{speed.rows / speed.bound:,.0f}"
        table.add_row(f"{speed.rows:,}", _ms(speed.seconds), f"{speed.rate:,.0f}", bound)
    return table


def _prefill(speeds: Iterable[Speed]) -> RenderableType:
    table = _table("tokens", "steps", "ms", "tokens/s")
    for speed in speeds:
        table.add_row(f"{speed.tokens:,}", str(len(speed.buckets)), _ms(speed.seconds), f"{speed.rate:,.0f}")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"


def _size(size: int) -> str:
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / 1024:g} KiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
