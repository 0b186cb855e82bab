"""The files of a tokenizer: tokenizer.json, and what those beside it say of added tokens, BOS and ends.

A folder without tokenizer.json must be converted first.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FURTHER_TOKENS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
"""Lists of special tokens, or objects in which they have names."""
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")

_ADDS_BOS = {
    "codellama": True,
    "cohere": True,
    "gemma": True,
    "gptneox": False,
    "llama": True,
    "mistral": True,
    "mixtral": True,
}
"""Whether texts begin with BOS, by the class of the tokenizer, or by the type of a model that names none."""

log = logging.getLogger(__name__)


class TokenizerError(Exception):
    """A folder has no usable tokenizer, or it cannot encode a text; the message is one line."""


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, list[int], set[int]]:
    """Return a folder's tokenizer, the ids of its special tokens, and those that end a text.

    Raises TokenizerError.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{folder} has no tokenizer.json")
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    settings = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings = read_json(folder / "special_tokens_map.json") | settings
    _add_tokens(core, folder, settings)
    _frame(core, folder, settings)
    named = [number for name in _special_tokens(settings) if (number := _id_of(core, name)) is not None]
    return core, named, _eos_ids(core, folder, settings)


def _add_tokens(core: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Add the tokens that stand beside tokenizer.json only, with the flags given there, as transformers does.

    They are "added_tokens_decoder" of tokenizer_config.json, or else added_tokens.json, and special tokens
    that are in the vocabulary but are not found in a text as a whole. Raises TokenizerError.
    """
    named = _special_tokens(settings)
    special = {text: token for token in named if (text := token_text(token)) is not None}
    for number, token in _declared_tokens(folder, settings, special):
        current = core.token_to_id(token.content)
        if current is None or core.get_added_tokens_decoder().get(current) != token:
            core.add_tokens([token])
        current = core.token_to_id(token.content)
        if current != number:
            log.warning(
                "%s: the added token %r is to have id %d, and gets %s", folder, token.content, number, current
            )
    added = {token.content for token in core.get_added_tokens_decoder().values()}
    missing = [text for text in special if text not in added and core.token_to_id(text) is not None]
    core.add_tokens(
        [_added_token({"special": True} | _object(special[text]) | {"content": text}) for text in missing]
    )


def _special_tokens(settings: dict[str, Any]) -> list[Any]:
    """Return the special tokens that tokenizer_config.json names, in the lists or objects of any version."""
    found = [settings.get(key) for key in NAMED_TOKENS]
    for key in _FURTHER_TOKENS:
        value = settings.get(key)
        found += value.values() if isinstance(value, dict) else _list(value)
    return found


def _declared_tokens(
    folder: Path, settings: dict[str, Any], special: Mapping[str, Any]
) -> list[tuple[int, tokenizers.AddedToken]]:
    """Return the tokens that the files beside tokenizer.json name, by id."""
    decoder = settings.get("added_tokens_decoder")
    try:
        if decoder is not None:
            tokens = {int(number): _added_token(token) for number, token in decoder.items()}
        else:
            numbers = read_json(folder / "added_tokens.json")
            tokens = {
                int(number): _added_token({"content": text, "special": text in special})
                for text, number in numbers.items()
            }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder}: the added tokens make no sense: {error!r}") from error
    return sorted(tokens.items(), key=lambda pair: pair[0])


def _added_token(token: dict[str, Any]) -> tokenizers.AddedToken:
    flags = {name: bool(token[name]) for name in _FLAGS if name in token}
    return tokenizers.AddedToken(
        token["content"], **({"normalized": not flags.get("special", False)} | flags)
    )


def _frame(core: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Let texts begin with BOS and end with EOS as "add_bos_token" and "add_eos_token" say.

    Where one is missing, the class of the tokenizer decides if it is in `_ADDS_BOS`, and otherwise the
    post-processor of tokenizer.json. That is what TGI does, which goes by transformers 4, but for settings
    that contradict tokenizer.json in another class: TGI ignores them. transformers 5 ignores them in all.
    """
    name = settings.get("tokenizer_class") or read_json(folder / "config.json").get("model_type")
    kind = str(name).lower().removesuffix("fast").removesuffix("tokenizer")
    by_class = {"bos": _ADDS_BOS[kind], "eos": False} if kind in _ADDS_BOS else {}
    ids = core.encode("a").ids
    wanted, right = {}, True
    for end, there in (("bos", ids[:1]), ("eos", ids[-1:])):
        number = _id_of(core, settings.get(f"{end}_token"))
        if number is None:
            continue
        given, present = settings.get(f"add_{end}_token"), there == [number]
        if given if isinstance(given, bool) else by_class.get(end, present):
            wanted[end] = number
        right = right and present == (end in wanted)
    if right:
        return
    before, after = (f"{end}:0" if end in wanted else "" for end in ("bos", "eos"))
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{before} $A:0 {after}".split(), special_tokens=list(wanted.items())
    )


def _object(token: object) -> dict[str, Any]:
    return token if isinstance(token, dict) else {}


def _id_of(core: tokenizers.Tokenizer, name: object) -> int | None:
    text = token_text(name)
    return None if text is None else core.token_to_id(text)


def token_text(token: object) -> str | None:
    """Return the text of a token, which tokenizer_config.json gives as a text or an object with it (C6)."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _eos_ids(core: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> set[int]:
    """Return the ids of generation_config.json, with the tokenizer's own unless those are a list.

    Without any there, config.json's count, or those of its text model. An entry may be a token's id or text.
    """
    own = {number for name in _list(settings.get("eos_token")) if (number := _id_of(core, name)) is not None}
    config = read_json(folder / "config.json")
    text = _object(config.get("text_config"))
    places = (read_json(folder / "generation_config.json"), config, text)
    for index, place in enumerate(places):
        named = place.get("eos_token_id")
        if ids := {number for each in _list(named) if (number := _token_id(core, each)) is not None}:
            return ids if index == 0 and isinstance(named, list) else ids | own
        if _list(named):
            log.warning("%s: 'eos_token_id' is %r, which is no token", folder, named)
    return own


def _token_id(core: tokenizers.Tokenizer, value: object) -> int | None:
    """Return the id that a value stands for; None if it stands for none, as -1 does."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else _id_of(core, value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def read_json(path: Path, optional: bool = True) -> dict[str, Any]:
    """Return the object in a file; {} if it holds none or an optional file is missing.

    Raises TokenizerError for a file that is not JSON, and OSError.
    """
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict):
        return content
    log.warning("%s is not an object", path)
    return {}
