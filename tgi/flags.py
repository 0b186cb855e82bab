"""Building blocks of flags: help groups, types, and parsers for the text of variables.

The flags themselves are in tgi/config.py and tgi/server_options.py, and those without effect in
tgi/compat_flags.py.
"""

import ipaddress
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import attrs
from cyclopts import Group, Parameter, Token, validators

SERVING = Group("Serving a model", sort_key=0)
ASKING = Group("Using a model", sort_key=1)
LISTING = Group("Information", sort_key=2)
MODEL = Group("Model", sort_key=1)
LIMITS = Group("Limits of a request", sort_key=2)
BATCH = Group("Batching", sort_key=3)
BUCKETS = Group("Buckets", sort_key=4)
MEMORY = Group("Memory and warm-up", sort_key=5)
HTTP = Group("HTTP", sort_key=6)
LOG = Group("Logs and traces", sort_key=7)
PLAN = Group("Plan", sort_key=0)
DOCTOR = Group("Doctor", sort_key=0)
UNUSED = Group("Accepted without effect", sort_key=8, show=False)
REFUSED = Group("Refused", sort_key=9, show=False)


def whole(_type: Any, tokens: Sequence[Token]) -> int:
    """Return the value of an integer flag. Unlike cyclopts, refuse fractions instead of rounding them."""
    text = tokens[0].value.strip()
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f'"{text}" is not a whole number.')
    return int(text)


def _check_route(_type: Any, value: str | None) -> None:
    if value and (not value.startswith("/") or set("<>") & set(value)):
        raise ValueError("It must be a path, such as /predict.")


Count = Annotated[int, Parameter(converter=whole, metavar="N", validator=validators.Number(gte=0))]
Port = Annotated[int, Parameter(converter=whole, metavar="N", validator=validators.Number(gte=0, lte=65535))]
Amount = Annotated[float, Parameter(metavar="N", validator=validators.Number(gte=0))]
Share = Annotated[float, Parameter(metavar="N", validator=validators.Number(gt=0, lte=1))]
FILE = Parameter(metavar="FILE", validator=validators.Path(exists=True, dir_okay=False))
ROUTE = Parameter(validator=_check_route)


def whole_text(_type: Any, text: str, **_: Any) -> list[str]:
    """Return the value of a variable. An empty one counts as unset: compose files are full of those."""
    return [text] if text.strip() else []


def origins(_type: Any, text: str, **_: Any) -> list[str]:
    """Split a variable at commas and spaces."""
    return text.replace(",", " ").split()


def keys(_type: Any, text: str, **_: Any) -> list[str]:
    """Split a variable at commas. Keep empty keys, which are then refused.

    A key that was lost on the way must not open the server.
    """
    return [part.strip() for part in text.split(",")]


@attrs.frozen
class LoraSource:
    """A LoRA adapter that an option names."""

    name: str
    place: str
    """Folder, or id on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    @classmethod
    def read(cls, text: str) -> "LoraSource":
        """Read TGI's `ID`, `NAME=PLACE` and `NAME=PLACE@REVISION`. Raises ValueError."""
        name, equals, place = text.strip().partition("=")
        place, _, revision = (place if equals else name).partition("@")
        name = name if equals else place
        if "@" in revision or not name or not place:
            raise ValueError(f"Invalid LoRA adapter format: {text}")
        return cls(name, place, revision or None)

    @classmethod
    def read_all(cls, values: Sequence[str]) -> "list[LoraSource]":
        """Read TGI's lists, which have commas, and vLLM's JSON objects. Raises ValueError."""
        found = []
        for value in values:
            if value.lstrip().startswith("{"):
                fields = json.loads(value)
                if not {"name", "path"} <= fields.keys():
                    raise ValueError(f"Invalid LoRA adapter format: {value}")
                found.append(cls(str(fields["name"]), str(fields["path"])))
            else:
                found += [cls.read(part) for part in value.split(",") if part.strip()]
        names = [source.name for source in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two LoRA adapters are named {twice[0]!r}")
        return found


def read_priorities(values: Sequence[str]) -> dict[str, int]:
    """Read NAME=PRIORITY, several with commas between them. Raises ValueError."""
    found: dict[str, int] = {}
    for part in ",".join(values).split(","):
        name, _, priority = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not name or not priority.removeprefix("-").isdecimal() or abs(int(priority)) > 2**31 - 1:
            raise ValueError(f"{part.strip()!r} is not NAME=PRIORITY, with a whole number of at most 32 bits")
        if name in found:
            raise ValueError(f"{name!r} has two priorities")
        found[name] = int(priority)
    return found


def address(_type: Any, text: str, **_: Any) -> list[str]:
    """Return HOSTNAME if it is an address. Containers and shells set it to a name that nobody means here."""
    return [text] if is_address(text) else []


def is_address(text: str) -> bool:
    """Return whether the text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def flag(
    group: Group,
    *variables: str,
    value: str | None = None,
    short: str | None = None,
    vllm: Sequence[str] = (),
    negative: Sequence[str] = (),
    split: Callable[..., list[str]] = whole_text,
    several: bool = False,
) -> Parameter:
    """Describe a flag of `group`, whose value comes from the first of `variables` that is set.

    `value` is the placeholder in the help; `vllm` lists vLLM's names of the flag; `several` values may follow
    one flag.
    """
    names: dict[str, Any] = {} if value is None else {"metavar": value}
    return Parameter(
        alias=(*([short] if short else []), *vllm),
        group=group,
        env_var=variables,
        env_var_split=split,
        show_env_var=False,
        negative=negative,
        consume_multiple=several,
        **names,
    )


def _compat(group: Group, *variables: str, why: str) -> Parameter:
    """Describe a flag of another server, with the reason why it has no effect or is refused."""
    return Parameter(group=group, env_var=variables, env_var_split=whole_text, help=why, show=False)


unused, refused = partial(_compat, UNUSED), partial(_compat, REFUSED)
