"""Every metric, under TGI's names, and the text that Prometheus scrapes.

prometheus_client does not write it because it renames every counter to `..._total`, which would blank TGI's
dashboards. A family has at most one label and appears with its first sample.
"""

import copy
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import Self

from .log import dropped_lines

CONTENT_TYPE = "text/plain; charset=utf-8"

DURATIONS = tuple(accumulate([0.0001 * 1.5] + [1.5] * 34, mul))
"""Bucket bounds, in seconds, of the histograms named `..._duration`."""
SIZES = tuple(float(size) for size in range(1, 1025))
POWERS = tuple(float(1 << power) for power in range(15))
"""Bucket bounds of numbers of tokens in a step."""
QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
RECENT = 1024
"""Number of latest observations from which a summary computes its quantiles."""


def steps(limit: int) -> tuple[float, ...]:
    """Return a hundred equally spaced bucket bounds for token counts up to `limit`."""
    return tuple(limit / 100.0 * (step + 1) for step in range(100))


class Family:
    """A named metric with one sample per value of its label ("" if it has no label)."""

    kind = ""

    def __init__(self, name: str, description: str, label: str = "") -> None:
        self.name = name
        self._description = description
        self._label = label
        self._constant = ""

    def renamed(self, name: str, constant: str) -> Self:
        """Return this metric under another name, with the labels `constant` (`a="1",b="2"`) on all samples.

        It shows the samples of this one, also later ones.
        """
        other = copy.copy(self)
        other.name, other._constant = name, constant
        return other

    def _key(self, labels: dict[str, str]) -> str:
        return labels[self._label] if self._label else ""

    def _selector(self, key: str, *more: str) -> str:
        pairs = [self._constant] if self._constant else []
        pairs += [f'{self._label}="{key}"'] if self._label else []
        pairs += more
        return f"{{{','.join(pairs)}}}" if pairs else ""

    def record(self, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge, or observe a value; labels that the family lacks are ignored."""
        raise NotImplementedError

    def samples(self) -> Iterator[str]:
        """Yield the lines of the samples."""
        raise NotImplementedError

    def render(self) -> str:
        """Return all lines of the family; "" before its first sample."""
        lines = list(self.samples())
        if not lines:
            return ""
        header = [f"# HELP {self.name} {self._description}", f"# TYPE {self.name} {self.kind}"]
        return "\n".join([*header, *lines, "", ""])


class Counter(Family):
    """A value that only goes up."""

    kind = "counter"

    def __init__(self, name: str, description: str, label: str = "") -> None:
        super().__init__(name, description, label)
        self._values: dict[str, float] = {}

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Add `amount`."""
        key = self._key(labels)
        self._values[key] = self._values.get(key, 0) + amount

    def record(self, value: float, **labels: str) -> None:  # noqa: D102
        self.inc(value, **labels)

    def set(self, value: float, **labels: str) -> None:
        """Set the value: of a gauge, or of a counter whose total is kept elsewhere."""
        self._values[self._key(labels)] = value

    def value(self, **labels: str) -> float:
        """Return the current value; 0 before the first sample."""
        return self._values.get(self._key(labels), 0)

    def samples(self) -> Iterator[str]:  # noqa: D102
        for key, value in self._values.items():
            yield f"{self.name}{self._selector(key)} {number(value)}"


class Gauge(Counter):
    """A value that goes up and down."""

    kind = "gauge"

    def record(self, value: float, **labels: str) -> None:  # noqa: D102
        self.set(value, **labels)


class Info(Family):
    """Facts, each a set of labels; the value is 1, or a time."""

    kind = "gauge"

    def __init__(self, name: str, description: str) -> None:
        super().__init__(name, description)
        self._facts: dict[str, float] = {}

    def set(self, value: float = 1, **labels: object) -> None:
        """Add a fact."""
        self._facts[",".join(f'{name}="{escaped(str(label))}"' for name, label in labels.items())] = value

    def samples(self) -> Iterator[str]:  # noqa: D102
        for labels, value in self._facts.items():
            yield f"{self.name}{{{labels}}} {number(value)}"


class _Distribution:
    """Counts and sum of a histogram for one value of its label."""

    __slots__ = ("counts", "total")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.total = 0.0


class Histogram(Family):
    """Numbers of observations by size."""

    kind = "histogram"

    def __init__(self, name: str, description: str, bounds: Sequence[float], label: str = "") -> None:
        super().__init__(name, description, label)
        self.bounds = bounds
        self._distributions: dict[str, _Distribution] = {}

    def observe(self, value: float, *, times: int = 1, **labels: str) -> None:
        """Record an observation, `times` times."""
        key = self._key(labels)
        distribution = self._distributions.get(key)
        if distribution is None:
            distribution = self._distributions[key] = _Distribution(len(self.bounds))
        distribution.counts[bisect_left(self.bounds, value)] += times
        distribution.total += value * times

    def record(self, value: float, **labels: str) -> None:  # noqa: D102
        self.observe(value, times=1, **labels)

    def total(self, **labels: str) -> float:
        """Return the sum of the observations."""
        distribution = self._distributions.get(self._key(labels))
        return distribution.total if distribution else 0.0

    def count(self, **labels: str) -> int:
        """Return the number of observations."""
        distribution = self._distributions.get(self._key(labels))
        return sum(distribution.counts) if distribution else 0

    def samples(self) -> Iterator[str]:  # noqa: D102
        bounds = [*map(number, self.bounds), "+Inf"]
        for key, distribution in self._distributions.items():
            selector = self._selector(key)
            prefix = f"{self.name}_bucket{selector[:-1]}," if selector else f"{self.name}_bucket{{"
            for bound, count in zip(bounds, accumulate(distribution.counts), strict=True):
                yield f'{prefix}le="{bound}"}} {count}'
            yield f"{self.name}_sum{selector} {number(distribution.total)}"
            yield f"{self.name}_count{selector} {sum(distribution.counts)}"


class Summary(Family):
    """Quantiles of the latest observations, with the sum and number of all."""

    kind = "summary"

    def __init__(self, name: str, description: str) -> None:
        super().__init__(name, description)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._count = 0
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Record an observation."""
        self._recent.append(value)
        self._count += 1
        self._sum += value

    def record(self, value: float, **_labels: str) -> None:  # noqa: D102
        self.observe(value)

    def samples(self) -> Iterator[str]:  # noqa: D102
        if not self._count:
            return
        ordered = sorted(self._recent)
        for quantile in QUANTILES:
            value = ordered[round(quantile * (len(ordered) - 1))]
            yield f'{self.name}{{quantile="{number(quantile)}"}} {number(value)}'
        yield f"{self.name}_sum {number(self._sum)}"
        yield f"{self.name}_count {self._count}"


class Metrics:
    """All metric families of a server, as attributes named without `tgi_`.

    A rank's metric is declared here, and counted there by `Device.count` with the attribute's name. A call
    costs about 1 us.
    """

    def __init__(self, max_input_tokens: int = 4095, max_total_tokens: int = 4096) -> None:
        def count(name: str, description: str, label: str = "") -> Counter:
            return Counter(f"tgi_{name}", description, label)

        def gauge(name: str, description: str, label: str = "") -> Gauge:
            return Gauge(f"tgi_{name}", description, label)

        def duration(name: str, description: str, label: str = "") -> Histogram:
            return Histogram(f"tgi_{name}_duration", f"{description}, in seconds", DURATIONS, label)

        def tokens(name: str, description: str, limit: int) -> Histogram:
            return Histogram(f"tgi_{name}", description, steps(limit))

        # Requests.
        self.request_count = count("request_count", "Generation requests received")
        self.request_success = count("request_success", "Generation requests answered in full")
        self.request_failure = count("request_failure", "Generation requests that failed", "err")
        self.request_duration = duration("request", "Request from arrival to end")
        self.request_validation_duration = duration("request_validation", "Time from arrival to the queue")
        self.request_queue_duration = duration("request_queue", "Time from the queue to the first step")
        self.request_inference_duration = duration("request_inference", "Time from the first step to the end")
        self.request_mean_time_per_token_duration = duration(
            "request_mean_time_per_token", "Inference time of a request divided by its generated tokens"
        )
        self.request_time_to_first_token_duration = duration(
            "request_time_to_first_token", "Time from arrival to the first token"
        )
        self.request_generated_tokens = tokens(
            "request_generated_tokens", "Generated tokens of a request", max_total_tokens
        )
        self.request_input_length = tokens("request_input_length", "Tokens of a prompt", max_input_tokens)
        self.request_max_new_tokens = tokens(
            "request_max_new_tokens", "Maximum tokens that a request may generate", max_total_tokens
        )
        self.request_skipped_tokens = Summary(
            "tgi_request_skipped_tokens", "Tokens of a request that speculation predicted"
        )
        # The engine.
        self.queue_size = gauge("queue_size", "Requests waiting for their first step")
        self.batch_current_size = gauge("batch_current_size", "Rows of the running batch")
        self.batch_current_max_tokens = gauge("batch_current_max_tokens", "KV cache in use, in tokens")
        self.batch_max_total_tokens = gauge("batch_max_total_tokens", "KV cache in all, in tokens")
        self.batch_next_size = Histogram("tgi_batch_next_size", "Rows of a prefill step", SIZES)
        self.batch_inference_count = count("batch_inference_count", "Steps started", "method")
        self.batch_inference_success = count("batch_inference_success", "Steps completed", "method")
        self.batch_inference_failure = count("batch_inference_failure", "Steps that failed", "method")
        self.batch_inference_duration = duration("batch_inference", "Step as seen by the server", "method")
        self.batch_forward_duration = duration("batch_forward", "Step as seen by the rank", "method")
        self.batch_decode_duration = duration("batch_decode", "Detokenisation of a step", "method")
        self.batch_filter_duration = duration("batch_filter", "Scheduling of a step", "method")
        self.batch_concat_duration = duration(
            "batch_concat", "Scheduling of a step in which requests join the running batch", "method"
        )
        self.batch_concat = count("batch_concat", "Steps in which requests join the running batch", "reason")
        # Without a counterpart in TGI.
        self.request_time_between_tokens_duration = duration(
            "request_time_between_tokens", "Time from one token of a request to the next"
        )
        self.request_prefill_duration = duration(
            "request_prefill", "Time from the first step to the first token"
        )
        self.request_decode_duration = duration("request_decode", "Time from the first token to the last")
        self.generated_texts = count("generated_texts", "Texts generated to their end", "finish_reason")
        self.batch_step_tokens = Histogram("tgi_batch_step_tokens", "Tokens computed in a step", POWERS)
        self.batch_tokens = count("batch_tokens", "Tokens computed", "method")
        self.batch_padding_tokens = count("batch_padding_tokens", "Padding tokens of steps", "method")
        self.batch_blocks = count("batch_blocks", "KV blocks read", "method")
        self.batch_padding_blocks = count("batch_padding_blocks", "Padding KV blocks of steps", "method")
        self.kv_blocks = gauge("kv_blocks", "KV blocks", "state")
        self.prefix_cache_hit_tokens = count("prefix_cache_hit_tokens", "Prompt tokens in the prefix cache")
        self.prefix_cache_query_tokens = count(
            "prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache"
        )
        self.replica_serving = gauge("replica_serving", "1 if the replica computes, else 0", "replica")
        self.replica_queue_size = gauge("replica_queue_size", "Requests waiting at a replica", "replica")
        self.replica_batch_size = gauge("replica_batch_size", "Rows of a replica's batch", "replica")
        self.replica_kv_blocks_used = gauge(
            "replica_kv_blocks_used", "KV blocks of a replica that are in use", "replica"
        )
        self.replica_prefix_cache_hit_tokens = count(
            "replica_prefix_cache_hit_tokens", "Prompt tokens in a replica's prefix cache", "replica"
        )
        self.replica_prefix_cache_query_tokens = count(
            "replica_prefix_cache_query_tokens",
            "Prompt tokens looked up in a replica's prefix cache",
            "replica",
        )
        self.preemptions = count("preemptions", "Sequences returned to the queue for lack of KV blocks")
        self.engine_restarts = count("engine_restarts", "Restarts of all ranks after the loss of one")
        self.graph_compilations = count("graph_compilations", "Graphs compiled for steps", "phase")
        self.graph_misses = count("graph_misses", "Steps whose bucket had no graph")
        self.log_dropped_lines = count("log_dropped_lines", "Lines of the log that could not be written")
        self.cpu_fallbacks = count("cpu_fallbacks", "Operations that fell back to the CPU")
        self.device_memory_bytes = gauge("device_memory_bytes", "Memory of the first device", "state")

    @property
    def families(self) -> list[Family]:
        """All of them, in the order of the table."""
        return [family for family in vars(self).values() if isinstance(family, Family)]

    def record(self, name: str, value: float, **labels: str) -> None:
        """Record a value in the family that is the attribute `name`; labels that it lacks are ignored."""
        family: Family = getattr(self, name)
        family.record(value, **labels)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes, of type `CONTENT_TYPE`."""
        if dropped := dropped_lines():
            self.log_dropped_lines.set(dropped)
        return render(self.families)


def render(families: Iterable[Family]) -> bytes:
    """Return the text of some families."""
    return "".join(family.render() for family in families).encode()


def number(value: float) -> str:
    """Return a value as TGI prints it: 100, not 100.0."""
    return str(int(value)) if value == int(value) else repr(float(value))


def escaped(text: str) -> str:
    """Return a text as the value of a label is written."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
