"""Tenants: clients that share the server by weights, with limits of their own (`--tenants`)."""

import math
import time
import tomllib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import attrs
import msgspec
from msgspec import Meta

from tgi.config import OptionError, Options
from tgi.errors import RateLimited
from tgi.scheduler import Sequence

NOBODY = "(none)"
"""Name of the tenant of all requests that name none."""
MAX_NAME = 256
"""Number of characters of a name that count."""


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of a tenant, and its limits; None: it has none."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    max_concurrent_requests: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1)] | None = None


class TenantsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `--tenants`."""

    default: Terms = Terms()
    """Terms of each tenant that is not named."""
    tenants: dict[str, Terms] = {}
    """Terms by API key, or by value of `--tenant-header`."""


def read_tenants(path: Path) -> TenantsFile:
    """Read a file of tenants. Raises OptionError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), TenantsFile)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise OptionError(f"--tenants {path}: {error}") from error


@attrs.define(eq=False)
class Tenant:
    """A client's terms and what it has used of them."""

    name: str
    terms: Terms
    clock: Callable[[], float]
    requests: int = 0
    """Number of permits that it holds."""
    owed: float = 0.0
    """Tokens used beyond those that the limit has allowed since; they wear off at the limit's rate."""
    counted: float = 0.0
    """Time for which `owed` holds."""

    @contextmanager
    def permits(self, count: int) -> Iterator[None]:
        """Hold permits. Raises RateLimited at a limit; never waits."""
        most, tokens = self.terms.max_concurrent_requests, self.terms.tokens_per_minute
        if most is not None and self.requests + count > most:
            raise RateLimited(f"more than {most} concurrent requests", {"Retry-After": "1", **self.headers()})
        if tokens is not None and (owed := self._owe(0)) >= tokens:
            seconds = int((owed - tokens) * 60 / tokens) + 1
            reason = f"more than {tokens} tokens per minute"
            raise RateLimited(reason, {"Retry-After": str(seconds), **self.headers()})
        self.requests += count
        try:
            yield
        finally:
            self.requests -= count

    @contextmanager
    def spending(self, sequences: Items[Sequence]) -> Iterator[None]:
        """Count the prompts at once, and what has been generated at the end."""
        self._owe(sum(len(one.prompt) for one in sequences))
        try:
            yield
        finally:
            self._owe(sum(one.generated for one in sequences))

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers about limits: of requests at once, and of tokens per minute."""
        found: dict[str, str] = {}
        if (most := self.terms.max_concurrent_requests) is not None:
            left = max(most - self.requests, 0)
            found |= _headers("requests", most, left, 0 if left else 1)
        if (most := self.terms.tokens_per_minute) is not None:
            owed = self._owe(0)
            found |= _headers("tokens", most, max(int(most - owed), 0), math.ceil(60 * owed / most))
        return found

    @property
    def idle(self) -> bool:
        """Whether it holds no permit and owes no tokens, so that it can be forgotten."""
        return not self.requests and not self._owe(0)

    def _owe(self, tokens: int) -> float:
        """Add tokens, make up for the time that has passed, and return what is owed."""
        now, most = self.clock(), self.terms.tokens_per_minute
        made_up = math.inf if most is None else (now - self.counted) * most / 60
        self.owed, self.counted = max(self.owed - made_up, 0.0) + (tokens if most else 0), now
        return self.owed


def _headers(what: str, limit: int, left: int, seconds: int) -> dict[str, str]:
    values = {"limit": str(limit), "remaining": str(left), "reset": f"{seconds}s"}
    return {f"x-ratelimit-{name}-{what}": value for name, value in values.items()}


@attrs.define(eq=False)
class Tenants:
    """All tenants of a server."""

    options: Options
    clock: Callable[[], float] = time.monotonic
    _file: TenantsFile = attrs.field(factory=TenantsFile)
    _tenants: dict[str, Tenant] = attrs.field(factory=dict)

    @classmethod
    def of(cls, options: Options) -> "Tenants | None":
        """Return the tenants of a server; None if its requests have none."""
        wanted = options.tenant_header or options.tenants or len(options.api_key) > 1
        return cls(options) if wanted else None

    def load(self) -> None:
        """Read `--tenants` again, if it is set. Raises OptionError; then nothing has changed."""
        if self.options.tenants is not None:
            self._file = read_tenants(self.options.tenants)
        for tenant in self._tenants.values():
            tenant.terms = self._terms(tenant.name)

    def named(self, name: str) -> Tenant:
        """Return the tenant of a name, or of `NOBODY`."""
        name = name[:MAX_NAME] or NOBODY
        if name not in self._tenants:
            self._tenants = {other: one for other, one in self._tenants.items() if not one.idle}
            self._tenants[name] = Tenant(name, self._terms(name), self.clock)
        return self._tenants[name]

    def _terms(self, name: str) -> Terms:
        return self._file.tenants.get(name, self._file.default)
