"""Rank processes without a server."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from tgi.parent import Parent
from tgi.protocol import (
    Allocate,
    Allocated,
    Arrived,
    Begun,
    Bucket,
    Command,
    Joined,
    Loaded,
    Progress,
    Report,
    Result,
    Step,
    decode_report,
    encode,
    ints,
    unpack_floats,
    unpack_ints,
)
from tgi.ranks import meeting, meeting_url, rank_arguments, rank_environment
from tgi.testing.driver import BLOCK_SIZE, lane_params, load_command
from tgi.testing.runs import Logprobs

R = TypeVar("R", Loaded, Allocated, Bucket, Result)


def on_ranks(
    folder: Path,
    ranks: int,
    prompts: Sequence[Sequence[int]],
    vocab: int,
    device: str = "cpu",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Logprobs]:
    """Return the distribution after each prompt, computed by real rank processes.

    A step answers with the whole vocabulary as its "top" tokens.
    """
    blocks = max(-(-len(prompt) // BLOCK_SIZE) for prompt in prompts)
    with open_ranks(ranks, environment) as (send, reports):
        send(load_command(folder, device=device, top=vocab))
        _expect(reports, Loaded)
        send(Allocate((1 + blocks,)))
        _expect(reports, Allocated)
        results = []
        for prompt in prompts:
            send(_whole_distribution(prompt, blocks, vocab))
            results.append(_expect(reports, Result))
    logprobs = [torch.empty(1, vocab) for _ in results]
    for row, result in zip(logprobs, results, strict=True):
        row[0, unpack_ints(result.top_tokens).tolist()] = torch.tensor(unpack_floats(result.top_logprobs))
    return logprobs


def _whole_distribution(prompt: Sequence[int], blocks: int, vocab: int) -> Step:
    return Step(
        number=1,
        bucket=Bucket(1, len(prompt), blocks, prefill=True),
        lanes=ints([0]),
        starts=ints([0]),
        lengths=ints([len(prompt)]),
        samples=ints([1]),
        draws=ints([0]),
        tokens=ints(prompt),
        table_lanes=ints([0]),
        table_starts=ints([0]),
        table_counts=ints([blocks]),
        table_blocks=ints(range(1, 1 + blocks)),
        params=(lane_params(0, prompt_length=len(prompt)),),
        top=vocab,
    )


def _expect(reports: Iterator[Report], kind: type[R]) -> R:
    report = next(reports)
    assert isinstance(report, kind), report
    return report


@contextlib.contextmanager
def open_ranks(
    ranks: int, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[Any, Iterator[Report]]]:
    """Start rank processes; yield a function that sends a command to all of them, and rank 0's reports."""
    connections, processes = [], []
    with meeting() as store:
        for rank in range(ranks):
            ours, theirs = socket.socketpair()
            command = [sys.executable, *rank_arguments(rank, ranks, meeting_url(store))]
            variables = {**rank_environment(rank, ranks, environment), **environment}
            processes.append(
                subprocess.Popen(command, stdin=theirs.fileno(), env=variables, pass_fds=[store])
            )
            theirs.close()
            connections.append(Parent(ours))  # the ends of a connection are alike

    def send(command: Command) -> None:
        for connection in connections:
            connection.send(encode(command))

    def reports() -> Iterator[Report]:
        while (payload := connections[0].receive()) is not None:
            report = decode_report(payload)
            if not isinstance(report, Arrived | Joined | Progress | Begun):
                yield report

    try:
        yield send, reports()
    finally:
        for connection in connections:
            connection.connection.close()
        for process in processes:
            process.wait(30)
