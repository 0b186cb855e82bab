"""A rank over its socket, in this process: results that are waited for apart from their steps."""

import socket
import threading

import pytest

from tgi.device.base import Device
from tgi.parent import Parent
from tgi.protocol import (
    Allocate,
    Allocated,
    Bucket,
    Failed,
    FrameReader,
    Loaded,
    Progress,
    Ready,
    decode_report,
    encode,
    frame,
    unpack_ints,
)
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker import loop

from .test_process import decode_step, first_step

SHAPE = Bucket(2, 16, 0, prefill=True)


class Slow(Device):
    """Results of prefill are there only when a decode step has been launched."""

    asynchronous = True

    def __init__(self):
        super().__init__(1)
        self.fetched = 0
        self.launched = threading.Event()

    def fetch(self, *tensors):
        answer = super().fetch(*tensors)
        self.fetched += 1
        number = self.fetched

        def wait():
            if number == self.first:
                assert self.launched.wait(30)
            return answer()

        if number > self.first:
            self.launched.set()
        return wait

    first = 3  # two are of the answers about the prompt, at the start


class Broken(Device):
    asynchronous = True

    def fetch(self, *tensors):
        if tensors[0].shape[0] == 2:  # a step's
            return lambda: 1 // 0
        return super().fetch(*tensors)


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """`rank(device, commands)`: the reports of a rank that gets all commands at once, and how it ended."""

    def run(device, commands):
        monkeypatch.setattr(loop, "open_device", lambda *_: device)
        ours, theirs = socket.socketpair()
        ended = []
        thread = threading.Thread(target=lambda: ended.append(loop.serve(Parent(theirs), Shard())))
        with ours, theirs:
            thread.start()
            for command in (load_command(make_llama(tmp_path)), Allocate((16,)), *commands):
                ours.sendall(frame(encode(command)))
            reports, reader = [], FrameReader()
            answers = 2 + sum(not isinstance(command, Ready) for command in commands)
            while len(reports) < answers and not (reports and isinstance(reports[-1], Failed)):
                for payload in reader.feed(ours.recv(1 << 16)):
                    if not isinstance(report := decode_report(payload), Progress):
                        reports.append(report)
            ours.shutdown(socket.SHUT_WR)
            thread.join(30)
        assert not thread.is_alive()
        return reports, ended[0]

    return run


@pytest.mark.parametrize("device", [Device, Slow])
def test_a_step_is_launched_before_the_result_of_the_last_is_there(rank, device):
    steps = [
        first_step([2, 0], [5, 3, 9, 1], bucket=SHAPE),
        decode_step(2, [0, 2]),
        decode_step(3, [2, 0]),
    ]
    (loaded, allocated, *results), well = rank(device(), steps)
    assert isinstance(loaded, Loaded)
    assert isinstance(allocated, Allocated)
    assert [result.number for result in results] == [1, 2, 3]
    assert all(len(set(unpack_ints(result.tokens).tolist())) == 1 for result in results)
    assert well


def test_a_result_that_fails_ends_the_rank(rank):
    (_, _, failed), well = rank(Broken(1), [first_step([2, 0], [5, 3, 9, 1], bucket=SHAPE)])
    assert (failed.message, failed.kind) == ("ZeroDivisionError: integer division or modulo by zero", "error")
    assert "return lambda: 1 // 0" in failed.trace
    assert not well


def test_a_bucket_that_was_not_warmed_up_is_a_miss(rank):
    first = first_step([2, 0], [5, 3, 9, 1], bucket=SHAPE)
    commands = [first, Ready(), decode_step(2, [0, 2]), decode_step(3, [0, 2])]
    (_, _, *results), _ = rank(Device(1), commands)
    assert [result.statistics for result in results] == [{}, {"graph_misses": 1}, {}]
