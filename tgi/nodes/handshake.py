"""Connections between the server and the actors of its ranks: who may connect, and what is said.

Both ends prove that they know the token of this start, without sending it: each signs the other's random
number with it (HMAC-SHA256). Nothing beyond fixed sizes is read, and no answer given, before a rank has
proved itself. What follows is not signed: a network that is not trusted needs TLS (`tls_context`).
"""

import hmac
import secrets
import socket
import ssl
import struct
from collections.abc import Mapping

import trio

from tgi.child import Messages

SECONDS = 10.0
"""Seconds within which a connection must have been made, and proved."""
_RANDOM = 32
_PROOF = 32
_HELLO = struct.Struct(f"<II{_RANDOM}s{_PROOF}s")
"""A rank's index, the port of its store, its random number and its proof."""
_SILENCE = 20
"""Seconds without an answer after which the other machine is taken for lost."""


class HandshakeError(Exception):
    """The other end has not proved who it is; the message is one line for people."""


async def admit(stream: trio.abc.Stream, token: bytes) -> tuple[int, int, bytes]:
    """Let a rank prove itself to the server; return its index, the port of its store, and the proof for
    `welcome`. Raises HandshakeError."""
    ours = secrets.token_bytes(_RANDOM)
    await stream.send_all(ours)
    rank, port, theirs, proof = _HELLO.unpack(await _read(stream, _HELLO.size))
    if not hmac.compare_digest(proof, _sign(token, b"rank", ours, theirs, struct.pack("<II", rank, port))):
        raise HandshakeError("it does not know the token of this start")
    return rank, port, _sign(token, b"server", theirs, ours)


async def welcome(stream: trio.abc.Stream, proof: bytes) -> Messages:
    """Prove the server to a rank that has been admitted, and return the connection."""
    await stream.send_all(proof)
    return Messages(stream)


async def introduce(stream: trio.abc.Stream, token: bytes, rank: int, port: int) -> Messages:
    """Prove a rank to the server, check the server's proof, and return the connection. Raises
    HandshakeError."""
    theirs, ours = await _read(stream, _RANDOM), secrets.token_bytes(_RANDOM)
    proof = _sign(token, b"rank", theirs, ours, struct.pack("<II", rank, port))
    await stream.send_all(_HELLO.pack(rank, port, ours, proof))
    if not hmac.compare_digest(await _read(stream, _PROOF), _sign(token, b"server", ours, theirs)):
        raise HandshakeError("the server does not know the token of this start")
    return Messages(stream)


def _sign(token: bytes, *parts: bytes) -> bytes:
    """Return the signature of parts, all but the first of which have fixed sizes."""
    return hmac.digest(token, b"|".join(parts), "sha256")


async def _read(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = await stream.receive_some(size - len(data))
        if not received:
            raise HandshakeError("the connection was closed before it had introduced itself")
        data += received
    return data


def watch_silence(stream: trio.SocketStream) -> None:
    """Let a connection break when the other machine falls silent, because it or the network has failed."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE // 4)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENCE // 4)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _SILENCE)


def tls_context(environment: Mapping[str, str], *, server: bool) -> ssl.SSLContext | None:
    """Return a context with this machine's certificates of Ray, if Ray encrypts its own connections.

    Raises HandshakeError if they cannot be read.
    """
    if environment.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    names = "RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise HandshakeError(f"RAY_USE_TLS is set, and {' and '.join(missing)} not")
    authority, certificate, key = (environment[name] for name in names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # as Ray: any certificate of the authority will do
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise HandshakeError(f"Ray's certificates cannot be read ({', '.join(names)}): {error}") from error
    return context
