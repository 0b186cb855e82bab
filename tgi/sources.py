"""Option values from the TOML or YAML file of --config, and from Vertex AI's port, which outranks all others.

cyclopts reads flags and variables itself, then calls `add_sources`.
"""

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Token

from tgi.config import vertex_port

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a string or a list of strings",
}


def add_sources(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in options that no flag or variable sets from the file of --config. Raises CycloptsError."""
    config = arguments.get("--config", None)
    if config is None:  # another command
        return
    for token in config.tokens:
        _add_file(Path(token.value), arguments)
    model = [
        token for argument in arguments if argument.field_info.is_positional_only for token in argument.tokens
    ]
    if model and model[0].value in ("true", "false"):  # from a script: --trust-remote-code true
        raise CycloptsError(msg=f'Unexpected argument "{model[0].value}".')
    if model and any(token.source == "cli" for token in arguments["--model-id"].tokens):
        raise CycloptsError(msg="The model is given twice: as MODEL and by --model-id.")
    port = vertex_port()
    if port is not None:
        arguments["--port"].tokens = [Token(keyword="AIP_HTTP_PORT", value=port, source="env")]


def _add_file(path: Path, arguments: ArgumentCollection) -> None:
    known = dict(_keys(arguments))
    seen: set[str] = set()
    for key, value in _read(path).items():
        name = key.replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CycloptsError(msg=f"{path}: unknown option {key}.{hint}")
        argument = known[name]
        if argument.name in seen:
            raise CycloptsError(msg=f"{path}: {key} is given twice.")
        seen.add(argument.name)
        texts = _texts(argument.hint, value)
        if texts is None:
            wanted = NAMES.get(_kind(argument.hint), "a string")
            raise CycloptsError(msg=f"{path}: {key} must be {wanted}.")
        if not argument.tokens:
            source = f"{key} in {path}"
            argument.tokens = [Token(keyword=source, value=text, index=at) for at, text in enumerate(texts)]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        if path.suffix in (".yaml", ".yml"):
            return _read_yaml(path, text)
        return tomllib.loads(text)
    except OSError as error:
        raise CycloptsError(msg=f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CycloptsError(msg=f"{path} is not TOML: {error}.") from error


def _read_yaml(path: Path, text: str) -> dict[str, Any]:
    """Return the options that have a value."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CycloptsError(msg=f"{path} is not YAML: {error}.") from error
    if not isinstance(content or {}, dict):
        raise CycloptsError(msg=f"{path} must have options and their values.")
    return {str(key): value for key, value in (content or {}).items() if value is not None}


def _keys(arguments: ArgumentCollection) -> Iterator[tuple[str, Argument]]:
    """Yield the keys that a file may use: the long names of the flags."""
    for argument in arguments:
        for name in argument.parameter.name or ():
            if name.startswith("--") and name != "--config":
                yield name.removeprefix("--"), argument


def _texts(hint: Any, value: Any) -> list[str] | None:
    """Return a value as command-line words; None if it does not have the option's type."""
    kind = _kind(hint)
    if kind is tuple:
        values = [value] if isinstance(value, str) else value
        return values if isinstance(values, list) and all(isinstance(item, str) for item in values) else None
    if kind is bool:
        fits = isinstance(value, bool)
    elif kind in (int, float):
        fits = isinstance(value, int | kind) and not isinstance(value, bool)
    else:  # a string option: everybody writes `sharded = true` and `revision = 1`
        fits = isinstance(value, str | bool | int | float)
    if not fits:
        return None
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def _kind(hint: Any) -> Any:
    """Return the type that a hint allows besides None."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is tuple or not kinds:
        return get_origin(hint) or hint
    return kinds[0]
