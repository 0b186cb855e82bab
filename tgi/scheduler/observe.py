"""Metrics of steps, and the times of sequences. Makes no scheduling decision."""

import logging
import time
from collections.abc import Callable

import attrs

from tgi.metrics import Metrics
from tgi.protocol import Bucket, Result, Step

from .schedule import PlannedStep, Schedule

log = logging.getLogger(__name__)


@attrs.define(eq=False)
class StepObserver:
    """Told by the scheduler of each event in the life of a step.

    Sets `started`, `first_token` and `last_token` of sequences, and nothing else.
    """

    _metrics: Metrics
    _schedule: Schedule
    _count_shape: Callable[[Bucket], None] | None = None
    """Called with the shape of every step that serves requests, before padding."""

    def planned(self, planned: PlannedStep, seconds: float, steps_since_prefill: int) -> None:
        """Record a step that took `seconds` to plan, `steps_since_prefill` (Schedule's, before) steps on."""
        metrics, method = self._metrics, _method(planned)
        if self._count_shape is not None:
            self._count_shape(planned.shape)
        metrics.batch_filter_duration.observe(seconds, method=method)
        metrics.batch_inference_count.inc(method=method)
        metrics.batch_step_tokens.observe(planned.tokens)
        chunks = [row.length for row in planned.rows if row.chunk]
        if chunks:
            metrics.batch_next_size.observe(len(chunks))
            metrics.batch_tokens.inc(sum(chunks), method="prefill")
            self._admitted(planned, seconds, steps_since_prefill)
        if decoding := planned.tokens - sum(chunks):
            metrics.batch_tokens.inc(decoding, method="decode")
        if self._schedule.buckets.padded:
            padding = planned.bucket.rows * planned.bucket.tokens - planned.tokens
            metrics.batch_padding_tokens.inc(padding, method=method)
        if self._schedule.buckets.flat:
            self._blocks(planned, method)

    def _blocks(self, planned: PlannedStep, method: str) -> None:
        """Count blocks and padding: of the one list of a decode step, or of a prefill's tables."""
        prefill = planned.bucket.prefill
        tables = planned.bucket.rows if prefill else 1
        read = planned.shape.rows * planned.shape.blocks if prefill else planned.shape.blocks
        self._metrics.batch_blocks.inc(read, method=method)
        self._metrics.batch_padding_blocks.inc(tables * planned.bucket.blocks - read, method=method)

    def _admitted(self, planned: PlannedStep, seconds: float, steps_since_prefill: int) -> None:
        """Set the start of new sequences and count why they could join running ones (Q11)."""
        new = [row.sequence for row in planned.rows if not row.sequence.started]
        if new and any(sequence.started for sequence in self._schedule.running):
            waited = steps_since_prefill >= self._schedule.limits.max_waiting_tokens
            reason = "wait_exceeded" if waited else "backpressure"
            if len(new) < sum(row.chunk for row in planned.rows):
                reason = "chunking"
            self._metrics.batch_concat.inc(reason=reason)
            self._metrics.batch_concat_duration.observe(seconds, method="decode")
        now = time.monotonic()
        for sequence in new:
            sequence.started = now

    def committed(self, planned: PlannedStep, result: Result, waited: float, began: float) -> None:
        """Record a step whose result came `waited` seconds after sending and is committed since `began`."""
        metrics, method = self._metrics, _method(planned)
        metrics.batch_decode_duration.observe(time.monotonic() - began, method=method)
        metrics.batch_inference_success.inc(method=method)
        metrics.batch_inference_duration.observe(waited, method=method)
        metrics.batch_forward_duration.observe(result.seconds, method=method)
        self.device(planned.step, result, "serving")
        before: dict[tuple[float, int], int] = {}
        """Rows by the time of their last token and the number of new ones, mostly the same for all."""
        for row in planned.rows:
            sequence = row.sequence
            tokens = len(sequence.tokens) - len(sequence.prompt) - row.draw
            if not row.samples or tokens < 1:
                continue  # no token was drawn, or its sequence ended before
            if row.draw:
                key = sequence.last_token, tokens
                before[key] = before.get(key, 0) + 1
            else:
                sequence.first_token = began
                metrics.request_time_to_first_token_duration.observe(began - sequence.arrived)
            sequence.last_token = began
        for (then, tokens), rows in before.items():
            gap = (began - then) / tokens
            metrics.request_time_between_tokens_duration.observe(gap, times=rows * tokens)

    def device(self, step: Step, result: Result, phase: str) -> None:
        """Record the rank's statistics; compilations are not expected once the server is ready."""
        compilations = result.statistics.get("graph_compilations", 0)
        if compilations and phase == "serving":
            log.warning("%d graphs compiled while serving, for %s", compilations, shape_of(step))
        # Adding 0 makes a counter appear, so that alerts can watch it.
        statistics = {"graph_misses": 0.0, "cpu_fallbacks": 0.0} | result.statistics
        method = "prefill" if step.bucket.prefill else "decode"
        for name, value in statistics.items():
            self._metrics.record(name, value, phase=phase, method=method, state="used")

    def lost(self, planned: PlannedStep) -> None:
        """Record a step that will have no result."""
        self._metrics.batch_inference_failure.inc(method=_method(planned))


def shape_of(step: Step) -> str:
    """Describe the bucket of a step in words."""
    bucket = step.bucket
    if bucket.prefill:
        return f"prefill of {bucket.rows} x {bucket.tokens} tokens, {bucket.blocks} blocks"
    return f"decode of {bucket.rows} {'row' if bucket.rows == 1 else 'rows'}, {bucket.blocks} blocks"


def _method(planned: PlannedStep) -> str:
    """Return the label of a step: "prefill" if it computes some of a prompt."""
    return "prefill" if planned.bucket.prefill else "decode"
