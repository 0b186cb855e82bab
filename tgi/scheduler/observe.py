"""What the metrics get to know of steps and of the schedule's state. Decides nothing."""

import logging
import time
from collections.abc import Callable

import attrs

from tgi.metrics import Metrics
from tgi.protocol import Result, Step

from .buckets import Bucket
from .policy import Planned, Schedule

log = logging.getLogger(__name__)


@attrs.define(eq=False)
class StepObserver:
    """Told by the scheduler of each event in the life of a step."""

    _metrics: Metrics
    _schedule: Schedule
    _count_shape: Callable[[Bucket], None] | None = None
    """Called with the shape of every step that serves requests, before padding."""

    def planned(self, planned: Planned, seconds: float, steps_since_prefill: int) -> None:
        """It has been chosen, within `seconds`. `steps_since_prefill`: the schedule's, before that."""
        metrics, method = self._metrics, _method(planned)
        if self._count_shape is not None:
            self._count_shape(planned.shape)
        metrics.batch_filter_duration.observe(seconds, method=method)
        metrics.batch_inference_count.inc(method=method)
        tokens = len(planned.rows)
        if planned.step.prefill:
            tokens = sum(row.length for row in planned.rows)
            metrics.batch_next_size.observe(len(planned.rows))
            self._admitted(planned, seconds, steps_since_prefill)
        metrics.batch_tokens.inc(tokens, method=method)
        if self._schedule.buckets.padded:
            padding = planned.bucket.rows * planned.bucket.tokens - tokens
            metrics.batch_padding_tokens.inc(padding, method=method)
        if self._schedule.buckets.flat:
            self._blocks(planned, method)
        self.state()

    def _blocks(self, planned: Planned, method: str) -> None:
        """What there is of a decode step's list, and of the tables of a prefill, which are all as long."""
        tables = planned.bucket.rows if planned.step.prefill else 1
        read = planned.shape.rows * planned.shape.blocks if planned.step.prefill else planned.shape.blocks
        self._metrics.batch_blocks.inc(read, method=method)
        self._metrics.batch_padding_blocks.inc(tables * planned.bucket.blocks - read, method=method)

    def _admitted(self, planned: Planned, seconds: float, steps_since_prefill: int) -> None:
        """Note who has begun, and whether others are being generated meanwhile (Q11)."""
        new = [row.sequence for row in planned.rows if not row.sequence.started]
        if new and any(sequence.started for sequence in self._schedule.running):
            waited = steps_since_prefill >= self._schedule.limits.max_waiting_tokens
            reason = "wait_exceeded" if waited else "backpressure"
            if len(new) < len(planned.rows):
                reason = "chunking"
            self._metrics.batch_concat.inc(reason=reason)
            self._metrics.batch_concat_duration.observe(seconds, method="decode")
        now = time.monotonic()
        for sequence in new:
            sequence.started = now

    def committed(self, planned: Planned, result: Result, waited: float, began: float) -> None:
        """Its result came `waited` seconds after it was sent; it has been committed since `began`."""
        metrics, method = self._metrics, _method(planned)
        metrics.batch_decode_duration.observe(time.monotonic() - began, method=method)
        metrics.batch_inference_success.inc(method=method)
        metrics.batch_inference_duration.observe(waited, method=method)
        metrics.batch_forward_duration.observe(result.seconds, method=method)
        self._device(planned.step, result, "serving")
        before: dict[float, int] = {}
        """When the rows had their last token: mostly the same time for all."""
        for row in planned.rows:
            sequence = row.sequence
            if row.draw < 0 or sequence.generated != row.draw + 1:
                continue  # no token was drawn, or it came too late
            if row.draw:
                before[sequence.last_token] = before.get(sequence.last_token, 0) + 1
            else:
                sequence.first_token = began
                metrics.request_time_to_first_token_duration.observe(began - sequence.arrived)
            sequence.last_token = began
        for then, rows in before.items():
            metrics.request_time_between_tokens_duration.observe(began - then, times=rows)

    def warmed_up(self, step: Step, result: Result) -> None:
        """The first step of a bucket is done."""
        self._device(step, result, "warm-up")

    def _device(self, step: Step, result: Result, phase: str) -> None:
        """What the device has done besides computing: nothing, once the server is ready."""
        metrics = self._metrics
        if result.compilations:
            metrics.graph_compilations.inc(result.compilations, phase=phase)
            if phase == "serving":
                log.warning("%d graphs compiled while serving, for %s", result.compilations, shape_of(step))
        metrics.graph_misses.inc(result.graph_misses)  # 0 as well: what is not there cannot be watched
        metrics.cpu_fallbacks.inc(result.cpu_fallbacks)
        if result.memory_bytes:
            metrics.device_memory_bytes.set(result.memory_bytes, state="used")

    def lost(self, planned: Planned) -> None:
        """It will have no result."""
        self._metrics.batch_inference_failure.inc(method=_method(planned))

    def state(self) -> None:
        """Queue, rows and blocks, as they are now."""
        metrics, schedule = self._metrics, self._schedule
        metrics.queue_size.set(len(schedule.waiting))
        metrics.batch_current_size.set(len(schedule.running))
        metrics.batch_current_max_tokens.set(schedule.pool.statistics().used * schedule.pool.block_size)


def shape_of(step: Step) -> str:
    """The bucket of a step, for people."""
    rows, tokens, blocks = step.bucket_rows, step.bucket_tokens, step.bucket_blocks
    if step.prefill:
        return f"prefill of {rows} x {tokens} tokens, {blocks} blocks"
    return f"decode of {rows} rows, {blocks} blocks"


def _method(planned: Planned) -> str:
    return "prefill" if planned.step.prefill else "decode"
