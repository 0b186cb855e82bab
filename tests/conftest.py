"""Fixtures of several test files."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undo what a server that runs in the test's process does to logging."""
    root, ours = logging.getLogger(), logging.getLogger("tgi")
    before = root.handlers, root.level, ours.level
    yield
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)
