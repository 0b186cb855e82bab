"""Responses that later requests may go on from, in memory."""

from collections import OrderedDict
from typing import Any

import attrs

from tgi.errors import UnknownResponse

MAX_STORED = 1000
"""Number of responses that the server remembers, the latest ones."""
Json = dict[str, Any]


@attrs.frozen
class StoredResponse:
    """A response and the conversation before it."""

    body: Json
    items: list[Json]
    """Items of the conversation before the response."""


class ResponseStore:
    """The latest responses."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def add(self, body: Json, items: list[Json]) -> None:
        """Remember a response and the items before it; the oldest is forgotten."""
        self._responses[body["id"]] = StoredResponse(body, items)
        if len(self._responses) > MAX_STORED:
            self._responses.popitem(last=False)

    def get(self, id_: str) -> StoredResponse:
        """Return a response. Raises UnknownResponse."""
        try:
            return self._responses[id_]
        except KeyError:
            raise UnknownResponse(id_) from None

    def remove(self, id_: str) -> None:
        """Forget a response. Raises UnknownResponse."""
        self.get(id_)
        del self._responses[id_]
