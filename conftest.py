"""Runs tests that are coroutine functions under trio, and gives hypothesis the same examples every time."""

import functools
import inspect
import os

import pytest
import trio
from hypothesis import settings
from trio.testing import MockClock

settings.register_profile("same", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("same")  # `make fuzz` asks for the other


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test, for at most 60 seconds, or the argument of `@pytest.mark.seconds`.

    On a simulated device, which compiles every bucket before it answers, it has at least 600.

    Under `@pytest.mark.autojump` the clock jumps to the next deadline whenever every task waits.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = functools.partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})
    if pyfuncitem.get_closest_marker("autojump"):
        trio.run(test, clock=MockClock(autojump_threshold=0))
        return True
    limit = pyfuncitem.get_closest_marker("seconds")

    seconds = limit.args[0] if limit else 60
    if "TGI_TEST_DEVICE" in os.environ:
        seconds = max(seconds, 600)

    async def limited() -> None:
        with trio.fail_after(seconds):
            await test()

    trio.run(limited)
    return True
