"""A model's tokenizer: text to token ids and back.

Wraps the `tokenizers` library; a folder without tokenizer.json must be converted first. Encoding releases the
GIL. Everything here is safe to call from several threads.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from .tokenizer_files import TokenizerError, read_tokenizer

_CONTEXT = "a"
"""Text before a token when it is decoded to find what it adds to a text."""
_INCOMPLETE = "\ufffd"
_WHITE_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]
_COMPOSED = 4
"""Maximum number of characters that become one by canonical composition (Greek letters with three marks)."""


class Piece(msgspec.Struct, frozen=True):
    """A token of a text, and its place there in bytes of UTF-8 (tgi-behaviour 3.8)."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """The tokenizer of one model; usually made by `from_folder`."""

    def __init__(self, core: tokenizers.Tokenizer, special: Iterable[int], eos: Iterable[int]) -> None:
        """Wrap `core`. `special` are ids beside those that tokenizer.json flags; `eos` end a generation."""
        core.no_truncation()
        core.no_padding()
        self._core = core
        added, content = core.get_added_tokens_decoder(), json.loads(core.to_str())
        self.special_ids = frozenset(special) | {number for number, token in added.items() if token.special}
        """Ids that are no text, and left out of a generated text (S63)."""
        self.added_ids = frozenset(added)
        """Ids of tokens that are found in a text before the rest of it is tokenised."""
        self.eos_ids = frozenset(eos)
        """Ids that end a generation: all that the model's files name (S41)."""
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        """Number of tokens, added ones included."""
        self.bytes_of = _ByteTable(core) if _is_byte_level(content) else None
        """Bytes of each id; None unless a text is the bytes of its tokens one after another."""
        self.texts_of = None if self.bytes_of is None else _TextTable(self.bytes_of)
        """Text of each id alone, "" if its last character is incomplete; None if `bytes_of` is."""
        self.pieces = _PieceTable(core) if _is_context_free(content) else None
        """Text that each id adds to any text, "" if it depends on the text; None if it always does."""
        self._longest = _longest_share(core, content)
        self._alone: dict[int, str] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json, and from the files beside it which tokens are special or end a text.

        Raises TokenizerError.
        """
        return cls(*read_tokenizer(folder))

    def encode(self, text: str, *, add_special_tokens: bool = True, truncate: int | None = None) -> list[int]:
        """Return the ids of a text; the last `truncate` of them, with special tokens kept in place (S50).

        Raises TokenizerError for a text that the tokenizer has no tokens for.
        """
        encoding = self._encode(text, add_special_tokens)
        ids: list[int] = encoding.ids
        surplus = 0 if truncate is None else len(ids) - truncate
        if surplus <= 0:
            return ids
        kept = []
        for token, special in zip(ids, encoding.special_tokens_mask, strict=True):
            if special or surplus <= 0:
                kept.append(token)
            else:
                surplus -= 1
        return kept

    def encode_pair(
        self, first: str, second: str | None, *, truncate: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Return the ids of a text or a pair of texts with special tokens, and the type of each, 0 or 1.

        Of a text or pair that has more than `truncate` tokens, the end of its longer part is left out.
        Raises TokenizerError.
        """
        try:
            texts = [first] if second is None else [first, second]
            own = self._core.encode_batch(texts, add_special_tokens=False)
            if truncate is not None:
                room = max(truncate - self._core.num_special_tokens_to_add(second is not None), 0)
                for part, length in zip(own, _shortened([len(part) for part in own], room), strict=True):
                    part.truncate(length)
            encoding = self._core.post_process(own[0], None if second is None else own[1])
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerError(str(error)) from error
        return encoding.ids, encoding.type_ids

    def min_tokens(self, text: str) -> int:
        """Return a number of tokens that the text has at least, without tokenising it; 0 if unknown.

        Counts characters other than white space, since some special tokens take any amount of that with them.
        """
        if self._longest is None:
            return 0
        return (len(text) - sum(map(text.count, _WHITE_SPACE))) // self._longest

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Piece]:
        """Return the tokens of a text with their places in its UTF-8."""
        encoding = self._encode(text, add_special_tokens)
        data = text.encode()
        # The library's offsets count characters; this table gives the byte where each character begins.
        begins = [0]
        for character in text:
            begins.append(begins[-1] + len(character.encode()))
        pieces = []
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            first, last = begins[start], begins[stop]
            pieces.append(Piece(token, data[first:last].decode(errors="replace"), first, last))
        return pieces

    def _encode(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            # A batch of one, because encoding a text alone holds the GIL: for a second if it has 2 MB.
            return self._core.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerError(str(error)) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included, with U+FFFD for an incomplete character.

        Spaces around punctuation are not cleaned up, even if tokenizer_config.json asks for it: that corrupts
        code (transformers has given it up for the same reason).
        """
        return self._core.decode(ids, skip_special_tokens=False)

    def decode_alone(self, token: int) -> str:
        """Return the text of one id without any context (S33)."""
        text = self._alone.get(token)
        if text is None:
            text = self._alone[token] = self.decode([token])
        return text

    def name(self, token: int) -> str:
        """Return the name of an id in the vocabulary; "" if it has none."""
        return self._core.id_to_token(token) or ""

    def to_json(self) -> str:
        """Return tokenizer.json, with all special tokens and all that end a text flagged as special."""
        text: str = self._core.to_str()
        added = self._core.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        missing = (self.special_ids | self.eos_ids) - special
        if not missing:
            return text
        content = json.loads(text)
        content["added_tokens"] = [
            entry for entry in content["added_tokens"] if entry["id"] not in missing
        ] + [
            {"id": number, "content": name, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for number in sorted(missing)
            if (name := self._core.id_to_token(number)) is not None
        ]
        return json.dumps(content)

    def bytes_alone(self, token: int) -> bytes:
        """Return the bytes that an id adds to a text; a guess if they depend on its neighbours."""
        if self.bytes_of is not None:
            return self.bytes_of[token]
        name = self._core.id_to_token(token) or ""
        if _is_byte_token(name):
            return bytes.fromhex(name[3:5])
        text = self.pieces[token] if self.pieces is not None else ""
        return (text or self.decode_alone(token)).encode()


class _ByteTable(dict[int, bytes]):
    """Bytes by id, filled on demand. Tokens that are not byte-level stand for their UTF-8."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._core = core

    def __missing__(self, token: int) -> bytes:
        name = self._core.id_to_token(token) or ""
        try:
            data = bytes(map(_BYTE_OF.__getitem__, name))
        except KeyError:
            data = name.encode()
        self[token] = data
        return data


class _TextTable(dict[int, str]):
    """Texts by id, filled on demand."""

    def __init__(self, bytes_of: _ByteTable) -> None:
        super().__init__()
        self.bytes_of = bytes_of

    def __missing__(self, token: int) -> str:
        text = self.bytes_of[token].decode(errors="replace")
        text = self[token] = "" if text.endswith(_INCOMPLETE) else text
        return text


class _PieceTable(dict[int, str]):
    """Text by id, filled on demand; "" if the text that an id adds depends on its neighbours."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._core = core
        self._context = core.encode(_CONTEXT, add_special_tokens=False).ids
        self._length = len(self._decode(self._context))

    def _decode(self, ids: list[int]) -> str:
        return self._core.decode(ids, skip_special_tokens=False)

    def __missing__(self, token: int) -> str:
        name = self._core.id_to_token(token)
        text = (
            ""
            if name is None or _is_byte_token(name)
            else self._decode([*self._context, token])[self._length :]
        )
        if text.endswith(_INCOMPLETE):
            text = ""
        self[token] = text
        return text


def _shortened(lengths: list[int], room: int) -> list[int]:
    """Return lengths of one or two parts whose sum is `room` at most, as tokenizers' "longest_first" does.

    Half of the room is for the shorter part, if it needs that, and the rest for the longer one.
    """
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    shorter = min(*lengths, room // 2)
    return [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]


def _is_byte_token(name: str) -> bool:
    """Return whether a token stands for one byte by its name in SentencePiece."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _byte_of() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary, as in GPT-2.

    Printable Latin-1 characters stand for themselves; code points from 256 on stand for the other bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _is_byte_level(content: dict[str, Any]) -> bool:
    return (content["decoder"] or {}).get("type") == "ByteLevel"


def _longest_share(core: tokenizers.Tokenizer, content: dict[str, Any]) -> int | None:
    """Return the maximum number of characters that a token stands for; None if it is unlimited.

    It is unlimited where all unknown characters in a row become one token, or some are dropped before.
    """
    model, normalizer = content["model"], content["normalizer"] or {}
    if "Removed" in json.dumps(content["pre_tokenizer"]):
        return None
    complete = model.get("type") == "BPE" and (model.get("byte_fallback") or _is_byte_level(content))
    kinds = {part["type"] for part in normalizer.get("normalizers", [normalizer]) if part}
    if not complete or not kinds <= {"NFC", "NFKC", "Prepend", "Replace"}:
        return None
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Replace" and len(part["pattern"].get("String", "aa")) > len(part["content"]):
            return None
    return max(map(len, core.get_vocab())) * (_COMPOSED if kinds & {"NFC", "NFKC"} else 1)


def _is_context_free(content: dict[str, Any]) -> bool:
    """Return whether tokens other than byte tokens add the same to every text that is not empty."""
    decoder = content["decoder"] or {}
    parts = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    for part in parts:
        kind = part.get("type")
        if kind not in ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"):
            return False
        if kind == "Strip" and part["stop"] > 0:
            return False
        if kind == "Replace" and len(part["pattern"].get("String", "")) != 1:
            return False
    return True
