"""Frames on a byte stream: a little-endian uint32 length, then that many bytes."""

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")


def frame(payload: bytes) -> bytes:
    """Return the payload, less than 4 GiB, with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payloads, and holds an incomplete one until the rest arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take received bytes, and yield every payload that is complete now, in order."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload
