"""Connections of ranks on nodes to the server, and ranks behind them, without Ray."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.test_ranks import PROMPTS
from tgi.device.meeting import open_store
from tgi.executor import EngineError, open_executor
from tgi.limits import Limits
from tgi.nodes import actor
from tgi.nodes.handshake import HandshakeError, admit, introduce, tls_context, welcome
from tgi.nodes.messages import Kind, Seat, Task, encode
from tgi.nodes.server import NodeRank, _Start
from tgi.plugins import ConfigError
from tgi.protocol import Describe
from tgi.testing.engine import generate, open_engine
from tgi.testing.models import make_llama
from tgi.text.tokenizer import Tokenizer
from tgi.weights import Shard

TOKEN = bytes(range(32))


async def meet(ours: bytes, theirs: bytes) -> tuple[str | int, str | int]:
    """Let a server and rank 3, with these tokens, meet; return what each makes of the other."""
    server_end, rank_end = trio.testing.memory_stream_pair()
    results: dict[str, str | int] = {}

    async def be_server() -> None:
        try:
            rank, port, proof = await admit(server_end, ours)
            await welcome(server_end, proof)
            results["server"] = 10_000 * rank + port
        except HandshakeError as error:
            results["server"] = str(error)
            await server_end.aclose()

    async def be_rank() -> None:
        try:
            await introduce(rank_end, theirs, 3, 4321)
            results["rank"] = "welcome"
        except HandshakeError as error:
            results["rank"] = str(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_server)
        nursery.start_soon(be_rank)
    return results["server"], results["rank"]


async def test_both_ends_must_know_the_token() -> None:
    assert await meet(TOKEN, TOKEN) == (34_321, "welcome")
    told, heard = await meet(TOKEN, bytes(32))
    assert told == "it does not know the token of this start"
    assert heard == "the connection was closed before it had introduced itself"


async def test_a_server_without_the_token_is_noticed() -> None:
    server_end, rank_end = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server_end.send_all, bytes(64))
        with pytest.raises(HandshakeError, match="the server does not know the token of this start"):
            await introduce(rank_end, TOKEN, 0, 0)


@contextlib.asynccontextmanager
async def listening(ranks: int) -> AsyncIterator[tuple[_Start, Callable[[], Awaitable[trio.SocketStream]]]]:
    """Yield connections of ranks that none has connected to, and a way to connect."""
    start = _Start([NodeRank(rank, "127.0.0.1") for rank in range(ranks)], None)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:

        async def connect() -> trio.SocketStream:
            return await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))

        nursery.start_soon(trio.serve_listeners, start.take, listeners)
        yield start, connect
        nursery.cancel_scope.cancel()


async def refused(stream: trio.SocketStream) -> bool:
    """Return whether the server closes the connection, after what it has sent already."""
    with trio.fail_after(20):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True


async def test_a_second_connection_of_a_rank_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(1) as (start, connect):
        first = await introduce(await connect(), start.token, 0, 7)
        assert await first.receive() == b"tcp://127.0.0.1:7"
        second = await connect()
        with pytest.raises(HandshakeError, match="closed"):
            await introduce(second, start.token, 0, 8)
        await first.send(bytes([Kind.STARTED]) + b"4711")
        await first.send(bytes([Kind.REPORT]) + b"report")
        await start.ranks[0].started.wait()
        assert str(start.ranks[0]) == "process 4711 on node 127.0.0.1"
        assert await start.ranks[0].receive() == b"report"
    assert (
        "refused a connection of 127.0.0.1 to the port for ranks: rank 0 is connected already" in caplog.text
    )


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "the connection was closed before it had introduced itself"),
        (b"GET / HTTP/1.1\r\n\r\n", "the connection was closed before it had introduced itself"),
        (bytes(200), "it does not know the token of this start"),
    ],
)
async def test_whoever_is_no_rank_is_refused(
    sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(1) as (start, connect):
        stream = await connect()
        await stream.send_all(sent)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_eof()
        assert await refused(stream)
        assert not start.ranks[0].connected.is_set()
    assert reason in caplog.text


async def test_whoever_has_left_before_it_is_seen_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """As a port scanner does: its reset arrives before the connection is taken."""
    start = _Start([NodeRank(0, "127.0.0.1")], None)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    scanner = socket.create_connection(listener.socket.getsockname())
    scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    scanner.close()
    async with listener:
        await start.take(await listener.accept())
    assert "refused a connection of a host that has left to the port for ranks: " in caplog.text


@pytest.mark.autojump
async def test_whoever_says_nothing_is_refused_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(1) as (_, connect):
        assert await refused(await connect())
    assert "it does not introduce itself in time" in caplog.text


async def test_half_a_message_is_the_end_of_the_rank() -> None:
    async with listening(1) as (start, connect):
        stream = await connect()
        rank = await introduce(stream, start.token, 0, 0)
        assert await rank.receive() is not None
        await rank.send(bytes([Kind.STARTED]) + b"1")
        await stream.send_all(struct.pack("<I", 1000) + bytes(10))
        await stream.aclose()
        await start.ranks[0].started.wait()
        with trio.fail_after(10):
            assert await start.ranks[0].receive() is None


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Variables that tell Ray of a certificate that is its own authority."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ray", "-days", "1"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    names = {"RAY_TLS_CA_CERT": certificate, "RAY_TLS_SERVER_CERT": certificate, "RAY_TLS_SERVER_KEY": key}
    return {"RAY_USE_TLS": "1", **{name: str(path) for name, path in names.items()}}


def test_certificates_that_are_not_there(certificates: dict[str, str]) -> None:
    assert tls_context({}, server=True) is None
    with pytest.raises(HandshakeError, match="RAY_USE_TLS is set, and RAY_TLS_SERVER_KEY not"):
        tls_context({**certificates, "RAY_TLS_SERVER_KEY": ""}, server=True)
    with pytest.raises(HandshakeError, match="Ray's certificates cannot be read"):
        tls_context({**certificates, "RAY_TLS_CA_CERT": "/absent"}, server=True)


@contextlib.asynccontextmanager
async def ranks_without_ray(
    folder: str, tls: ssl.SSLContext | None, ranks: int, environment: Mapping[str, str]
) -> AsyncIterator[list[NodeRank]]:
    """Start ranks as `RayRanks` does, with actors that run in this process."""
    start = _Start([NodeRank(rank, "127.0.0.1") for rank in range(ranks)], tls)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    task = Task("127.0.0.1", port, start.token, folder, None, None, "auto", dict(environment), (), ())
    async with trio.open_nursery() as actors, trio.open_nursery() as nursery:

        async def act(rank: int) -> None:
            how = await actor._Rank(task, Seat(rank, ranks, "127.0.0.1", rank, ranks)).run()
            start.ranks[rank].how = how
            start.ranks[rank].ended.set()

        nursery.start_soon(trio.serve_listeners, start.take, listeners)
        for rank in range(ranks):
            actors.start_soon(act, rank)
        for rank in start.ranks:
            await rank.started.wait()
        try:
            yield start.ranks
        finally:
            await start.aclose()
            nursery.cancel_scope.cancel()


async def test_ranks_behind_actors_give_the_tokens_of_one_process(
    tmp_path: Path, certificates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are encrypted, and the nodes have the model in another folder than the server."""
    folder, theirs = make_llama(tmp_path / "model"), tmp_path / "theirs"
    tokenizer, limits = Tokenizer.from_folder(folder), Limits(max_total_tokens=64, max_batch_size=2)
    tokens = []

    async def ask(**ranks: Any) -> None:
        async with open_engine(folder, limits, threads=2, **ranks) as scheduler:
            tokens.append(await generate(scheduler, tokenizer, tokenizer.encode(PROMPTS[0]), 12))

    await ask()
    shutil.copytree(folder, theirs)
    (folder / "model.safetensors").unlink()
    for name, value in certificates.items():
        monkeypatch.setenv(name, value)
    start = partial(ranks_without_ray, str(theirs), tls_context(certificates, server=True))
    await ask(ranks=2, start=start)
    assert [token.id for token in tokens[0]] == [token.id for token in tokens[1]]


async def start_and_kill(folder: Path) -> None:
    async with open_executor(1, {}, start=partial(ranks_without_ray, str(folder), None)) as executor:
        process = executor._ranks[0].process
        assert isinstance(process, NodeRank)
        assert process.pid is not None
        await executor.describe(
            Describe(folder=str(folder), architecture="LlamaForCausalLM", ranks=1, dtype="float32")
        )
        os.kill(process.pid, signal.SIGKILL)
        await executor.receive()


async def test_what_a_rank_prints_is_logged_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_llama(tmp_path)
    (tmp_path / "sitecustomize.py").write_text("print('first\\nsecond', end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    caplog.set_level(logging.WARNING)
    with pytest.raises(BaseExceptionGroup) as caught:
        await start_and_kill(folder)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, EngineError)
    assert "on node 127.0.0.1) was killed by SIGKILL" in str(error)
    assert caplog.messages == ["rank 0 on 127.0.0.1: first", "rank 0 on 127.0.0.1: second"]


def test_an_actor_that_cannot_reach_the_server_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    task = Task("127.0.0.1", port, TOKEN, "", None, None, "auto", {}, (), ())
    how = actor.RankActor().run(encode(task), encode(Seat(1, 2, "127.0.0.1", 0, 1)))
    assert how.startswith(f"cannot reach the server at 127.0.0.1, port {port}: ")


def test_an_actor_whose_connection_is_reset_says_so() -> None:
    """As when the server expects TLS, or does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        task = Task("127.0.0.1", server.getsockname()[1], TOKEN, "", None, None, "auto", {}, (), ())

        def reset() -> None:
            connection, _ = server.accept()
            connection.sendall(bytes(32))
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        with ThreadPoolExecutor(1) as pool:
            resetting = pool.submit(reset)
            how = actor.RankActor().run(encode(task), encode(Seat(1, 2, "127.0.0.1", 0, 1)))
            resetting.result()
    assert how.startswith(f"cannot reach the server at 127.0.0.1, port {task.port}: ")
    assert "reset" in how


def test_a_rank_that_cannot_reach_rank_0_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"^rank 1 on .* cannot reach rank 0 at 127.0.0.1, port {port} "):
        open_store(f"tcp://127.0.0.1:{port}", Shard(1, 2), timedelta(seconds=5))
