"""Responses that later requests may go on from, in memory."""

from collections import OrderedDict
from typing import Any

import attrs

from tgi.errors import UnknownResponse

MAX_STORED = 1000
"""Number of responses that the server remembers, the latest ones."""
MAX_BYTES = 64 << 20
"""Maximum size of the requests of these responses; what is remembered takes a few times as much."""
Json = dict[str, Any]


@attrs.frozen
class StoredResponse:
    """A response and the conversation before it."""

    body: Json
    items: list[Json]
    """Items of the conversation before the response."""
    size: int
    """Bytes of the requests that the conversation came in."""


class ResponseStore:
    """The latest responses."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._size = 0

    def add(self, body: Json, items: list[Json], size: int) -> None:
        """Remember a response and the items before it; the oldest are forgotten where there are too many."""
        self._responses[body["id"]] = StoredResponse(body, items, size)
        self._size += size
        while len(self._responses) > MAX_STORED or self._size > MAX_BYTES:
            self.remove(next(iter(self._responses)))

    def get(self, id_: str) -> StoredResponse:
        """Return a response. Raises UnknownResponse."""
        try:
            return self._responses[id_]
        except KeyError:
            raise UnknownResponse(id_) from None

    def output_items(self) -> dict[str, Json]:
        """Return the items that responses are made of, by id."""
        return {item["id"]: item for one in self._responses.values() for item in one.body["output"]}

    def remove(self, id_: str) -> None:
        """Forget a response. Raises UnknownResponse."""
        self._size -= self.get(id_).size
        del self._responses[id_]
