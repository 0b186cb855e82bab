"""The child's side of `tgi.child`: messages from and to the process that started this one.

Imports neither trio nor torch.
"""

import contextlib
import os
import select
import socket
import sys
import threading
from collections import deque
from typing import NoReturn

from tgi.protocol import FrameReader, frame

_RECEIVE_BYTES = 1 << 18


class Parent:
    """The process that started this one, at the other end of a socket. Threads may send at the same time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._reader = FrameReader()
        self._received: deque[bytes] = deque()
        self._sending = threading.Lock()

    @classmethod
    def of_this_process(cls) -> "Parent":
        """Return the parent, whose socket is standard input; from then on standard input is empty."""
        descriptor = os.dup(0)  # a copy that no process started by this one inherits
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return cls(socket.socket(fileno=descriptor))

    def receive(self) -> bytes | None:
        """Return the next message; None once the parent has closed its end, or has gone."""
        while not self._received:
            try:
                data = self.connection.recv(_RECEIVE_BYTES)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._received.extend(self._reader.feed(data))
        return self._received.popleft()

    def stop_receiving(self) -> None:
        """Let `receive` return None once it has returned the messages that have arrived."""
        self.connection.shutdown(socket.SHUT_RD)

    def send(self, payload: bytes) -> None:
        """Send a message. Raises BrokenPipeError or ConnectionResetError if the parent has gone."""
        with self._sending:
            self.connection.sendall(frame(payload))

    def leave_together(self) -> None:
        """End this process as soon as the parent closes its end, or dies, even in the middle of a step.

        prctl(PR_SET_PDEATHSIG) would follow the thread that started this process, and trio ends threads that
        have been idle for ten seconds.
        """
        watch = select.poll()
        watch.register(self.connection, 0)  # a hang-up is reported without asking

        def wait() -> None:
            watch.poll()
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this process at once, and write its output before where that can be written.

    sys.exit would not do: a thread of gloo's that lets go of a tensor while the interpreter ends aborts the
    process.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is None, full or broken, closed
            stream.flush()
    os._exit(code)
