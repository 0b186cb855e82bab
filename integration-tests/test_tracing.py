"""Traces of a real server: they arrive, and a collector that is not there costs a moment at the end."""

import signal
import time
from typing import Any

import pytest

from tests.trace_collector import collecting


@pytest.mark.contract("--otlp-endpoint")
def test_the_last_traces_are_sent_before_the_end(start: Any) -> None:
    with collecting() as collector:
        server = start(otlp_endpoint=collector.grpc_endpoint, otlp_service_name="ours").wait_ready()
        server.generate("Hello", max_new_tokens=2)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert collector.resources[0]["service.name"] == "ours"
        assert {span.name for span in collector.spans} == {
            "generate", "validate", "queued", "prefill", "decode"
        }  # fmt: skip


def test_no_collector_is_no_trouble(start: Any) -> None:
    server = start(otlp_endpoint="http://127.0.0.1:9").wait_ready()
    server.generate("Hello", max_new_tokens=2)
    server.signal(signal.SIGTERM)
    begin = time.monotonic()
    assert server.wait_exit() == 0
    assert time.monotonic() - begin < 10
    assert "Traceback" not in server.output()
