"""A plan as a picture: the memory, the buckets, and the speed of decode and prefill.

Needs matplotlib, which the server does not install: `pip install 'tgi-server[plots]'`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .memory import MIB
from .plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PictureError(Exception):
    """Raised if no picture can be drawn; the message is one line for people."""


def draw(plan: Plan, path: Path) -> None:
    """Write the picture in the format of the file's suffix. Raises PictureError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureError(
            "--plot needs matplotlib, which is not installed: pip install 'tgi-server[plots]'"
        ) from error
    drawers = [_draw_memory]
    if plan.decode:
        drawers += [_draw_buckets, _draw_decode, _draw_prefill]
    columns = min(len(drawers), 2)
    lines = len(drawers) // columns
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    figure.suptitle(f"{plan.model} on {plan.planner.setup.ranks} x {plan.card}")
    for drawer, axes in zip(drawers, figure.subplots(lines, columns, squeeze=False).flat, strict=True):
        drawer(axes, plan)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise PictureError(f"--plot {path}: {error}") from error


def _draw_memory(axes: "Axes", plan: Plan) -> None:
    rows = [(name, size / MIB / 1024) for name, size in plan.memory.rows()]
    names = [name for name, _ in rows][::-1]
    sizes = [size for _, size in rows][::-1]
    axes.barh(names, sizes, color=["#bbbbbb" if name == "left over" else "#2a6fbb" for name in names])
    for place, size in enumerate(sizes):
        axes.annotate(f" {size:.1f}", (max(size, 0), place), va="center", fontsize=8)
    axes.set(title=f"Memory of a card, {plan.memory.rank.total_bytes / MIB / 1024:.1f} GiB", xlabel="GiB")
    axes.margins(x=0.12)


def _draw_buckets(axes: "Axes", plan: Plan) -> None:
    """Plot tokens against blocks: the two sizes that cost time."""
    for prefill, name, color in ((True, "prefill", "#c1502e"), (False, "decode", "#2a6fbb")):
        chosen = [bucket for bucket in plan.buckets if bucket.prefill is prefill]
        axes.scatter(
            [bucket.rows * bucket.tokens for bucket in chosen],
            [bucket.rows * bucket.blocks if prefill else bucket.blocks for bucket in chosen],
            s=16,
            color=color,
            label=f"{len(chosen)} {name}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", base=2, linthresh=1)
    axes.set_ylim(bottom=-0.5)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set(title="Buckets", xlabel="tokens computed", ylabel="KV blocks read")
    axes.legend()


def _draw_decode(axes: "Axes", plan: Plan) -> None:
    rows = [speed.rows for speed in plan.decode]
    bounds = [speed.rows / speed.bound for speed in plan.decode if speed.bound]
    axes.plot(rows, bounds, "--", color="#888888", label="maximum at the card's peak rates")
    axes.plot(rows, [speed.rate for speed in plan.decode], "o-", color="#2a6fbb", label="expected")
    axes.legend()
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    tokens = plan.planner.limits.max_total_tokens
    axes.set(title=f"Decode, sequences of {tokens:,} tokens", xlabel="sequences", ylabel="tokens a second")


def _draw_prefill(axes: "Axes", plan: Plan) -> None:
    tokens = [speed.tokens for speed in plan.prefill]
    axes.plot(tokens, [1000 * speed.seconds for speed in plan.prefill], "o-", color="#c1502e")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set(title="Prefill of one prompt", xlabel="tokens", ylabel="ms")
