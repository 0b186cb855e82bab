"""One HTTP request in quart-trio: it gives back what it holds, and closes its connection, however it ends."""

from contextlib import ExitStack
from typing import Any, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from quart import request
from quart_trio.asgi import TrioASGIHTTPConnection

LAST_SEND_SECONDS = 30.0
"""How long the end of an answer may wait for a client that does not read."""
LINGER_SECONDS = 1.0
"""How long a client that was answered before all of its body had come may go on sending it."""
_RESOURCES = "tgi.resources"


class HTTPConnection(TrioASGIHTTPConnection):
    """quart-trio's own, with three things added.

    The end of an answer is shielded: hypercorn reports a disconnect as soon as it is sent, quart-trio
    cancels the request for that, and hypercorn would never get to close the connection (its keep-alive
    timeout and `Connection: close` would have no effect). It waits for the end of the body: hypercorn closes
    the connection if there is more to come, and a client that is still sending would lose the answer. And
    each request has a stack of resources.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:  # noqa: D102
        received = trio.Event()

        async def receive_and_note() -> ASGIReceiveEvent:
            message = await receive()
            if not message.get("more_body", False):  # the end of the body, or of the connection
                received.set()
            return message

        async def send_end_shielded(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.move_on_after(LINGER_SECONDS):
                    await received.wait()
                with trio.move_on_after(LAST_SEND_SECONDS, shield=True):
                    await send(message)
            else:
                await send(message)

        with ExitStack() as stack:
            cast(dict[str, Any], self.scope)[_RESOURCES] = stack
            await super().__call__(receive_and_note, send_end_shielded)


def resources() -> ExitStack:
    """Closed when the present request has been answered, its stream included, or its client has gone.

    What is entered here must not need an await to leave.
    """
    return cast(ExitStack, cast(dict[str, Any], request.scope)[_RESOURCES])
