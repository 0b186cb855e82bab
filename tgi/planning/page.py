"""`tgi plan`: the plan as a page for a terminal, and as JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
import msgspec
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tgi.config import ROUNDINGS, OptionError, Options
from tgi.executor import EngineError
from tgi.hub_errors import HubError
from tgi.plugins import ConfigError
from tgi.protocol import Bucket, Described

from .memory import MIB
from .picture import PictureError, draw
from .plan import Plan, read_plan
from .speeds import Speed


def show_plan(options: Options, *, picture: Path | None = None, as_text: bool = False) -> int:
    """Print the plan as a page, or as JSON, and draw it. Return the exit code.

    It is 1 if the plan cannot be made, or if the memory is too small.
    """
    try:
        plan = read_plan(options)
        if picture is not None:
            draw(plan, picture)
    except (ConfigError, EngineError, HubError, OptionError, PictureError) as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    if as_text:
        print(json.dumps(as_json(plan), indent=2))
    else:
        Console(highlight=False).print(page(plan))
    return 0 if plan.memory.refusal is None else 1


def page(plan: Plan) -> RenderableType:
    """Return the whole plan, at most 80 columns wide."""
    limits, setup, described = plan.planner.limits, plan.planner.setup, plan.planner.described
    cards, fullest = f"{setup.ranks} x {plan.card}", ""
    if setup.stages > 1:
        cards += f" in {setup.stages} stages"
        fullest = f" of stage {plan.memory.stage}, which has the least room"
    stored = f", weights in {name}" if (name := _quantization(plan)) else ""
    title = Text(f"{plan.model} on {cards}, {_dtype(plan)}{stored}", style="bold")
    parts: list[RenderableType] = [
        title,
        *_stages(plan),
        _section(f"Memory of a card{fullest}", _memory(plan), *_experts(plan), *_rounding(plan)),
    ]
    if plan.buckets:
        parts.append(_section("Buckets", _buckets(plan.buckets), *_graphs(plan)))
    if plan.roofline is not None:
        weights = "the weights of a token" if described.experts else "the weights"
        floor = f"Reading {weights} once takes {_ms(plan.roofline.floor)} ms of every step."
        if setup.stages > 1:
            floor = floor.removesuffix(".") + " in the slowest stage."
        decode = f"Decode, all sequences {limits.max_total_tokens:,} tokens long"
        parts.append(_section(decode, _decode(plan.decode), floor))
        parts.append(_section("Prefill of one prompt", _prefill(plan.prefill)))
    if plan.memory.refusal:
        parts.append(Text(f"\n{plan.memory.refusal}", style="bold red"))
    return Group(*parts)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the same numbers, in bytes, seconds, tokens per second, and shares."""
    limits, memory, widest = plan.planner.limits, plan.memory, plan.memory.widest
    return {
        "model": plan.model,
        "card": plan.card,
        "cards": plan.planner.setup.ranks,
        "stages": [
            {
                "layers": layers,
                "weights": part.weight_bytes,
                "kv_block": sum(group.token_bytes for group in part.groups) * limits.block_size,
            }
            for layers, part in _parts(plan)
        ],
        "dtype": _dtype(plan),
        "quantize": _quantization(plan) or None,
        "parameters": plan.planner.described.parameters,
        "active_parameters": round(plan.planner.described.active_parameters),
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "max_batch_size": limits.max_batch_size,
        "max_batch_prefill_tokens": limits.max_batch_prefill_tokens,
        "window": limits.window,
        "fits": memory.fits,
        "refusal": plan.memory.refusal,
        "memory": {
            "total": memory.rank.total_bytes,
            "weights": memory.rank.weight_bytes,
            "workspace": memory.rank.workspace_bytes,
            "reserve": memory.reserve,
            "graphs": memory.graphs,
            "kv_block": sum(group.block_bytes for group in memory.groups),
            "kv_blocks": widest.blocks,
            "kv_blocks_that_fit": widest.fitting,
            "tokens_that_fit": widest.fitting * limits.block_size,
            "kv_groups": [attrs.asdict(group) for group in memory.groups],
        },
        "graphs": len(plan.buckets),
        "warm_up_seconds": plan.warm_up_seconds,
        "padding": plan.padding,
        "buckets": [msgspec.structs.asdict(bucket) for bucket in plan.buckets],
        "weights_seconds": plan.roofline and plan.roofline.floor,
        "decode": [_speed(speed) for speed in plan.decode],
        "prefill": [_speed(speed) for speed in plan.prefill],
    }


def _parts(plan: Plan) -> Iterator[tuple[int, Described]]:
    """Yield the number of layers and the description of each of several stages."""
    described = plan.planner.described
    yield from zip(described.stage_layers, described.stages, strict=True)


def _stages(plan: Plan) -> Iterator[RenderableType]:
    """Return the stages of a pipeline as a section."""
    size = plan.planner.limits.block_size
    rows = [
        (
            str(number),
            str(layers),
            f"{part.weight_bytes / MIB:,.0f} MiB",
            _size(size * sum(group.token_bytes for group in part.groups)),
        )
        for number, (layers, part) in enumerate(_parts(plan))
    ]
    if not rows:
        return
    table = _table(
        dict.fromkeys(("stage", "layers", "weights of a card", "KV cache of a block"), "right"), rows
    )
    steps = f"Running sequences divide into {len(rows)} steps, one in each stage."
    if plan.roofline is not None:
        largest = Bucket(1, plan.planner.limits.longest_chunk, 0, prefill=True)
        sent = (_ms(plan.roofline.sending(bucket)) for bucket in (Bucket(1, 1, 1), largest))
        steps += " The features of one token reach the next stage in {} ms, of {} tokens in {} ms.".format(
            next(sent), f"{largest.tokens:,}", next(sent)
        )
    yield _section("Stages", table, steps)


def _experts(plan: Plan) -> list[str]:
    """Return the numbers of parameters of a model with experts."""
    model = plan.planner.described
    if not model.experts:
        return []
    stored, active = (f"{count / 1e9:,.1f} billion" for count in (model.parameters, model.active_parameters))
    return [f"A card keeps {stored} parameters, and multiplies a token with {active}."]


def _speed(speed: Speed) -> dict[str, Any]:
    numbers = {"rows": speed.rows, "tokens": speed.tokens, "seconds": speed.seconds, "rate": speed.rate}
    return numbers if speed.bound is None else {**numbers, "bound": speed.computed / speed.bound}


def _dtype(plan: Plan) -> str:
    dtype = plan.planner.setup.options.compute_dtype
    return "bfloat16" if dtype == "auto" else dtype


def _quantization(plan: Plan) -> str:
    return plan.planner.setup.options.quantization


def _rounding(plan: Plan) -> Iterator[str]:
    name = _quantization(plan)
    if name in ROUNDINGS:
        yield f"Rounding to {name} raises the demo model's loss on unseen words by {ROUNDINGS[name]:.2%}."


def _section(title: str, *parts: RenderableType) -> RenderableType:
    indented = (Padding(part, (0, 0, 0, 2), expand=False) for part in parts)
    return Group("", Text(title, style="bold"), *indented)


def _table(columns: Mapping[str, str], rows: Iterable[Iterable[str]], *, header: bool = True) -> Table:
    """Return a table; `columns` maps headings to "left" or "right"."""
    table = Table(box=None, pad_edge=False, show_header=header, header_style="dim")
    for column, justify in columns.items():
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def _memory(plan: Plan) -> RenderableType:
    rows = [(name, f"{size / MIB:,.0f} MiB") for name, size in plan.memory.rows()]
    table = _table({"part": "left", "size": "right"}, rows, header=False)
    table.add_row("all", f"{plan.memory.rank.total_bytes / MIB:,.0f} MiB", style="dim")
    return Group(table, *_cache(plan))


def _cache(plan: Plan) -> Iterator[str]:
    for group in plan.memory.groups:
        fitting, each = max(group.fitting, 0), _size(group.block_bytes)
        yield f"{fitting:,} blocks fit, {fitting * plan.planner.limits.block_size:,} tokens; {each} a block."
        if group.window is not None:
            sees = f"A token sees {group.window:,} in {group.layers} layers"
            yield f"{sees}; a sequence has {group.longest:,} blocks at most."


def _graphs(plan: Plan) -> Iterator[str]:
    yield f"{len(plan.buckets)} graphs; warming them up takes about {_duration(plan.warm_up_seconds)}."
    waste = " and ".join(f"{share:.0%} to {kind}" for kind, share in plan.padding.items())
    if waste:
        likely = "they are as recorded" if plan.planner.counts else "all shapes are equally likely"
        yield f"Padding adds {waste} steps, if {likely}."


def _buckets(buckets: Iterable[Bucket]) -> RenderableType:
    """Return the table, with one line for buckets that differ in their blocks only."""

    def key(bucket: Bucket) -> tuple[bool, int, int]:
        return not bucket.prefill, bucket.rows, bucket.tokens

    rows = []
    for (decode, *sizes), group in groupby(sorted(buckets, key=key), key):
        blocks = ", ".join(str(size) for size in sorted(bucket.blocks for bucket in group))
        rows.append(("decode" if decode else "prefill", *map(str, sizes), blocks))
    return _table({"step": "left", "rows": "right", "tokens": "right", "blocks": "left"}, rows)


def _decode(speeds: Iterable[Speed]) -> RenderableType:
    columns = ("sequences", "ms a token", "tokens/s", "at most tokens/s")
    rows = [
        (f"{s.rows:,}", _ms(s.seconds), f"{s.rate:,.0f}", f"{s.rows / s.bound:,.0f}" if s.bound else "")
        for s in speeds
    ]
    return _table(dict.fromkeys(columns, "right"), rows)


def _prefill(speeds: Iterable[Speed]) -> RenderableType:
    columns = ("tokens", "steps", "ms", "tokens/s")
    rows = [(f"{s.tokens:,}", str(len(s.buckets)), _ms(s.seconds), f"{s.rate:,.0f}") for s in speeds]
    return _table(dict.fromkeys(columns, "right"), rows)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"


def _size(size: int) -> str:
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / 1024:g} KiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
