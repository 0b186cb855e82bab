"""What a person sees of the start."""

import logging

import pytest
import trio
import trio.testing

from tgi.lifecycle import Lifecycle, Phase
from tgi.progress import describe, show_progress


async def start(lifecycle: Lifecycle) -> None:
    """Ten seconds of reading, 25 seconds of warming up."""
    lifecycle.enter("reading")
    await trio.sleep(10)
    lifecycle.enter("warming up", total=4)
    for done in range(1, 5):
        await trio.sleep(6.25)
        lifecycle.done = done
    lifecycle.phase = Phase.READY


def run(*, bar: bool) -> None:
    async def main() -> None:
        lifecycle = Lifecycle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, lifecycle)
            nursery.start_soon(lambda: show_progress(lifecycle, bar=bar))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_log_gets_one_line_for_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tgi"):
        run(bar=False)
    assert [record.message for record in caplog.records][-2:] == ["reading", "warming up"]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run(bar=True)
    assert "warming up" in capsys.readouterr().out


def test_a_line_tells_share_and_time() -> None:
    lifecycle = Lifecycle()
    assert describe(lifecycle) == "starting"
    lifecycle.enter("loading weights", total=200)
    assert describe(lifecycle) == "loading weights"
    lifecycle.done = 50
    lifecycle.stage_started -= 10
    assert describe(lifecycle) == "loading weights: 25 %, 30 s left"
    lifecycle.detail = "the head"
    assert describe(lifecycle) == "loading weights: 25 %, 30 s left (the head)"
    lifecycle.enter("warming up")
    assert describe(lifecycle) == "warming up"


def test_what_was_expected_counts_until_there_is_more_to_go_by() -> None:
    """The first graph alone tells little: it is the largest, and the device starts with it."""
    lifecycle = Lifecycle()
    lifecycle.enter("warming up", total=64, expected=128.0)
    assert describe(lifecycle) == "warming up, 128 s left"
    lifecycle.done, lifecycle.stage_started = 1, lifecycle.stage_started - 20
    assert describe(lifecycle) == "warming up: 1 %, 126 s left"
    lifecycle.done = 2
    assert describe(lifecycle) == "warming up: 3 %, 620 s left"
