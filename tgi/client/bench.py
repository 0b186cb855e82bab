"""`tgi bench`: load on a server, and what its clients see.

Each request is a random text and asks for a fixed number of tokens. A *level* of load is a number of requests
that run at once, or a rate at which they arrive (Poisson, seeded).
"""

import importlib.util
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx2 as httpx
import trio
from rich.console import Console
from rich.table import Table

from . import http

PLOTS = (".png", ".svg", ".pdf")
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
]


@attrs.frozen(kw_only=True)
class Work:
    """Contents of the requests of a measurement."""

    input_words: int
    """Number of words of a prompt."""
    output_tokens: int
    requests: int
    """Requests of each level."""
    seed: int = 0
    prompts: Sequence[str] = ()
    """Prompts to use, in turn, instead of random ones."""

    def prompt(self, index: int) -> str:
        """Return the prompt of a request."""
        if self.prompts:
            return self.prompts[index % len(self.prompts)]
        draw = random.Random(self.seed * 1_000_003 + index)
        return " ".join(draw.choice(WORDS) for _ in range(self.input_words))


@attrs.frozen
class Sample:
    """One request, as its client saw it."""

    started: float
    times: list[float]
    """Time of each event with text."""
    prompt_tokens: int
    tokens: int
    """Generated tokens."""
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.times[0] - self.started

    @property
    def total(self) -> float:
        """Seconds until the last token."""
        return self.times[-1] - self.started

    @property
    def between(self) -> float:
        """Mean seconds from one token to the next."""
        return (self.times[-1] - self.times[0]) / max(self.tokens - 1, 1)


@attrs.frozen
class Level:
    """Samples of a level of load."""

    name: str
    samples: list[Sample]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return its figures: times in milliseconds, rates per second."""
        good = [sample for sample in self.samples if not sample.error]
        errors = [sample.error for sample in self.samples if sample.error]
        row: dict[str, Any] = {
            "load": self.name,
            "requests": len(self.samples),
            "failed": len(errors),
            "requests_per_s": len(good) / self.seconds,
            "output_tokens_per_s": sum(sample.tokens for sample in good) / self.seconds,
            "input_tokens_per_s": sum(sample.prompt_tokens for sample in good) / self.seconds,
        }
        for name in ("first", "between", "total"):
            values = sorted(1000 * getattr(sample, name) for sample in good)
            for share in (50, 90, 99):
                row[f"{name}_ms_p{share}"] = quantile(values, share / 100)
        if errors:
            row["error"] = statistics.mode(errors)
        return row


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of the values is at most; nan of none."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan


class BenchError(Exception):
    """Nothing can be measured; the text says why."""


def measure(
    url: str,
    work: Work,
    concurrency: Sequence[int],
    rates: Sequence[float],
    *,
    key: str | None,
    json_file: Path | None,
    plot: Path | None,
) -> int:
    """Measure each level, and show a table; return 1 if a request failed. Raises BenchError."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib, which is not installed: pip install 'tgi-server[plots]'")
    if plot is not None and plot.suffix not in PLOTS:
        raise BenchError(f"--plot {plot}: the name must end in {', '.join(PLOTS)}")
    for file in (json_file, plot):
        if file is not None and not file.parent.is_dir():
            raise BenchError(f"{file} cannot be written: there is no folder {file.parent}")
    console = Console()
    levels = trio.run(_run, url, work, concurrency, rates, key, console)
    rows = [level.summary() for level in levels]
    console.print(table(rows))
    for row in rows:
        if "error" in row:
            console.print(
                f"{row['failed']} of {row['requests']} failed: {row['error']}", style="red", markup=False
            )
    if json_file is not None:
        about = {"url": url, **attrs.asdict(work), "prompts": len(work.prompts)}
        json_file.write_text(json.dumps({"work": about, "levels": rows}, indent=2) + "\n")
    if plot is not None:
        draw(rows, plot)
    return int(any(row["failed"] for row in rows))


async def _run(
    url: str,
    work: Work,
    concurrency: Sequence[int],
    rates: Sequence[float],
    key: str | None,
    console: Console,
) -> list[Level]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    base = url.removesuffix("/").removesuffix("/v1") + "/"
    client = httpx.AsyncClient(
        base_url=base, headers=http.headers(key), timeout=http.timeout(), limits=limits
    )
    levels = []
    async with client:
        model = (await client.get("v1/models")).raise_for_status().json()["data"][0]["id"]
        await _request(client, model, work, -1)  # open a connection, and wake what sleeps
        with console.status("") as status:
            for count in concurrency:
                status.update(f"{count} at once")
                levels.append(await _closed(client, model, work, count))
            for rate in rates:
                status.update(f"{rate:g} requests/s")
                levels.append(await _open(client, model, work, rate))
    return levels


async def _closed(client: httpx.AsyncClient, model: str, work: Work, count: int) -> Level:
    """Keep `count` requests running until all are done."""
    samples: list[Sample] = []
    numbers = iter(range(work.requests))

    async def one_after_the_other() -> None:
        for number in numbers:
            samples.append(await _request(client, model, work, number))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one_after_the_other)
    return Level(f"{count} at once", samples, time.perf_counter() - began)


async def _open(client: httpx.AsyncClient, model: str, work: Work, rate: float) -> Level:
    """Let requests arrive at a rate, however many are running."""
    samples: list[Sample] = []
    draw = random.Random(work.seed)

    async def one(number: int) -> None:
        samples.append(await _request(client, model, work, number))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(work.requests):
            nursery.start_soon(one, number)
            await trio.sleep(draw.expovariate(rate))
    return Level(f"{rate:g}/s", samples, time.perf_counter() - began)


async def _request(client: httpx.AsyncClient, model: str, work: Work, number: int) -> Sample:
    body = {
        "model": model,
        "prompt": work.prompt(number),
        "max_tokens": work.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    started, times, usage = time.perf_counter(), [], {"prompt_tokens": 0, "completion_tokens": 0}
    error = ""
    try:
        async for event in http.stream_async(client, "v1/completions", body):
            if event["choices"]:
                times.append(time.perf_counter())
            usage = event.get("usage") or usage
    except (http.RequestError, httpx.HTTPError) as failure:
        error = str(failure) or type(failure).__name__
    if not times:
        error = error or "the answer was empty"
    return Sample(started, times, usage["prompt_tokens"], usage["completion_tokens"], error)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the figures of all levels."""
    shown = Table(title="Milliseconds until the first token, and from one token to the next")
    columns = {
        "requests/s": "requests_per_s",
        "tokens/s": "output_tokens_per_s",
        "first p50": "first_ms_p50",
        "p99": "first_ms_p99",
        "next p50": "between_ms_p50",
        "p99 ": "between_ms_p99",
    }
    shown.add_column("load")
    for name in columns:
        shown.add_column(name.strip(), justify="right")
    for row in rows:
        shown.add_row(row["load"], *(f"{row[name]:.4g}" for name in columns.values()))
    return shown


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw latency against throughput."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for one, name, title in zip(
        axes, ("first", "between"), ("Time to first token", "Time between tokens"), strict=True
    ):
        for share in (50, 90, 99):
            rates = [row["output_tokens_per_s"] for row in rows]
            one.plot(rates, [row[f"{name}_ms_p{share}"] for row in rows], marker="o", label=f"p{share}")
        for row in rows:
            place = (row["output_tokens_per_s"], row[f"{name}_ms_p50"])
            below: dict[str, Any] = {"xytext": (0, -6), "textcoords": "offset points", "va": "top"}
            one.annotate(row["load"], place, ha="center", fontsize=8, **below)
        one.set(title=title, xlabel="output tokens/s", ylabel="ms")
        one.margins(x=0.12)
        one.set_ylim(bottom=0)
        one.legend()
    figure.savefig(file, dpi=150)


def read_prompts(file: Path) -> list[str]:
    """Return the first messages of a file in ShareGPT's format, or one prompt a line."""
    text = file.read_text("utf-8")
    try:
        records = json.loads(text)
    except ValueError:
        return [line for line in text.splitlines() if line.strip()]
    return [record["conversations"][0]["value"] for record in records if record.get("conversations")]
