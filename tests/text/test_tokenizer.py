import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, processors

from tgi.text.tokenizer import Tokenizer
from tgi.text.tokenizer_files import TokenizerError

from .tokenizers_of_all_kinds import ALL, SPECIAL, byte_level

CORE = byte_level()


def folder_with(path: Path, core: Core = CORE, **files: Any) -> Path:
    core.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [1, 2]}, "config": {"eos_token_id": 9}}, {1, 2}),
        ({"generation_config": {"eos_token_id": [2]}, "tokenizer_config": {"eos_token": "</s>"}}, {2}),
        # S41 fixed: a single different id counts too.
        ({"generation_config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "</s>"}}, {1, 2}),
        ({"config": {"eos_token_id": 7}, "tokenizer_config": {"eos_token": {"content": "</s>"}}}, {1, 7}),
        ({"config": {"eos_token_id": [7, 8]}}, {7, 8}),
        ({"tokenizer_config": {"eos_token": "</s>"}}, {1}),
        ({"tokenizer_config": {"eos_token": "not there"}}, set()),
        ({"tokenizer_config": {"eos_token": ["</s>", "<|tool|>"]}}, {1, 2}),
        ({"generation_config": {"eos_token_id": []}, "config": {"eos_token_id": 7}}, {7}),
        ({"generation_config": {"eos_token_id": [None, 2, -1]}}, {2}),
        ({"generation_config": {"eos_token_id": "2"}, "config": {"eos_token_id": 7}}, {2}),
        ({"generation_config": {"eos_token_id": "</s>"}}, {1}),
        ({"generation_config": {"eos_token_id": 2.0}}, {2}),
        ({"generation_config": {"eos_token_id": True}, "config": {"eos_token_id": -1}}, set()),
        ({"generation_config": {"eos_token_id": [[2]]}, "tokenizer_config": {"eos_token": "</s>"}}, {1}),
        ({"config": {"text_config": {"eos_token_id": [2, 7]}}}, {2, 7}),
        ({}, set()),
    ],
)
def test_eos_ids_come_from_the_files(tmp_path: Path, files: dict[str, Any], expected: set[int]) -> None:
    assert Tokenizer.from_folder(folder_with(tmp_path, **files)).eos_ids == expected


@pytest.mark.parametrize(
    "names",
    [
        {"additional_special_tokens": ["two words"]},
        {"extra_special_tokens": ["two words"]},
        {"extra_special_tokens": {"image_token": "two words"}},
        {"model_specific_special_tokens": {"image_token": {"content": "two words"}}},
    ],
)
def test_special_tokens_are_flagged_or_named(tmp_path: Path, names: dict[str, Any]) -> None:
    word = CORE.token_to_id("two words")
    plain = Tokenizer.from_folder(folder_with(tmp_path))
    assert plain.special_ids == {CORE.token_to_id(name) for name in SPECIAL}
    named = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config={**names, "pad_token": None}))
    assert named.special_ids == plain.special_ids | {word}


def declared(*tokens: dict[str, Any], first: int | None = None) -> dict[str, Any]:
    start = CORE.get_vocab_size() if first is None else first
    return {str(start + index): token for index, token in enumerate(tokens)}


TURN = {"content": "<|turn|>", "special": True, "normalized": False}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": declared(TURN)}},
        {"added_tokens": {"<|turn|>": CORE.get_vocab_size()}, "tokenizer_config": {"pad_token": "<|turn|>"}},
        {
            "added_tokens": {"<|turn|>": CORE.get_vocab_size()},
            "special_tokens_map": {"additional_special_tokens": ["<|turn|>"]},
        },
    ],
    ids=["decoder", "file", "map"],
)
def test_tokens_that_stand_beside_tokenizer_json(tmp_path: Path, files: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, **files))
    number = CORE.get_vocab_size()
    assert number in tokenizer.encode("a<|turn|>b", add_special_tokens=False)
    assert number in tokenizer.special_ids


def test_flags_beside_tokenizer_json_count(tmp_path: Path) -> None:
    number = CORE.token_to_id("two words")
    token = {"content": "two words", "rstrip": True, "special": True, "normalized": False}
    config = {"added_tokens_decoder": declared(token, first=number)}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config=config))
    assert number in tokenizer.special_ids
    assert tokenizer.encode("two words   ", add_special_tokens=False) == [number]


def test_an_added_token_behind_a_hole_gets_the_id_that_transformers_gives_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"added_tokens_decoder": declared(TURN, first=CORE.get_vocab_size() + 5)}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config=config))
    assert tokenizer.encode("<|turn|>", add_special_tokens=False) == [CORE.get_vocab_size()]
    assert f"gets {CORE.get_vocab_size()}" in caplog.text


@pytest.mark.parametrize("decoder", [[1], {"x": TURN}, {"900": {"special": True}}], ids=str)
def test_added_tokens_that_make_no_sense(tmp_path: Path, decoder: Any) -> None:
    with pytest.raises(TokenizerError, match="added token"):
        Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config={"added_tokens_decoder": decoder}))


def framed(template: str) -> Core:
    """Return a tokenizer whose post-processor adds what the template names."""
    core = Core.from_str(CORE.to_str())
    core.post_processor = processors.TemplateProcessing(
        single=f"{'<s>' * ('bos' in template)} $A {'</s>' * ('eos' in template)}".split(),
        special_tokens=[(name, CORE.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return core


@pytest.mark.parametrize("template", ["", "bos", "bos eos"])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("add_eos", [None, True, False])
def test_settings_beside_tokenizer_json_decide_about_bos_and_eos(
    tmp_path: Path, template: str, add_bos: bool | None, add_eos: bool | None
) -> None:
    bos, eos = (CORE.token_to_id(name) for name in ("<s>", "</s>"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos, "add_eos_token": add_eos}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, framed(template), tokenizer_config=config))
    ids = tokenizer.encode("some text")
    assert ids.count(bos) == (ids[0] == bos) == (add_bos if add_bos is not None else "bos" in template)
    assert ids.count(eos) == (ids[-1] == eos) == (add_eos if add_eos is not None else "eos" in template)


BOS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "Llama 2, Mistral 7B": ("bos", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, True),
    "Llama 3": ("bos", {"tokenizer_class": "PreTrainedTokenizerFast"}, True),
    "CodeLlama": ("bos", {"tokenizer_class": "CodeLlamaTokenizer"}, True),
    "Gemma": ("bos", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}, True),
    "Command R": ("bos", {"tokenizer_class": "CohereTokenizer", "add_bos_token": True}, True),
    "Phi 3.5, Yi": ("bos", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, False),
    "DeepSeek": ("", {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, True),
    "fine-tuned Llama 2 without settings": ("", {"tokenizer_class": "LlamaTokenizerFast"}, True),
    "Qwen": ("", {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}, False),
    "Granite, StarCoder": ("", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False}, False),
    "GPT-2": ("", {"tokenizer_class": "GPT2Tokenizer"}, False),
    "OPT": ("bos", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}, True),
    "Pythia, MPT": ("", {"tokenizer_class": "GPTNeoXTokenizer"}, False),
    "OLMo": ("eos", {"tokenizer_class": "GPTNeoXTokenizer", "add_eos_token": False}, False),
    "SmolLM3, EXAONE 4": ("", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None}, False),
}
"""Post-processor and settings of published tokenizers, and whether transformers 4 begins a text with BOS."""


@pytest.mark.parametrize(("template", "settings", "begins"), BOS.values(), ids=BOS)
def test_bos_of_published_tokenizers(
    tmp_path: Path, template: str, settings: dict[str, Any], begins: bool
) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, framed(template), tokenizer_config=config))
    ids, plain = tokenizer.encode("some text"), tokenizer.encode("some text", add_special_tokens=False)
    assert ids == [CORE.token_to_id("<s>")] * begins + plain


def test_other_frames_stay(tmp_path: Path) -> None:
    """GLM-4 begins texts with two tokens of its own."""
    tool = ("<|tool|>", CORE.token_to_id("<|tool|>"))
    core = Core.from_str(CORE.to_str())
    core.post_processor = processors.TemplateProcessing(single="<|tool|> $A <|tool|>", special_tokens=[tool])
    config = {"bos_token": None, "eos_token": "</s>", "add_bos_token": False}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, core, tokenizer_config=config))
    assert tokenizer.encode("a") == [tool[1], *tokenizer.encode("a", add_special_tokens=False), tool[1]]


def test_one_token_that_begins_and_ends_texts(tmp_path: Path) -> None:
    both = {"bos_token": "<s>", "eos_token": "<s>", "add_bos_token": False}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, framed("bos"), tokenizer_config=both))
    assert CORE.token_to_id("<s>") not in tokenizer.encode("some text")


def test_unusable_tokenizer_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    folder_with(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TokenizerError, match="is not JSON"):
        Tokenizer.from_folder(tmp_path)


def test_truncation_settings_of_the_file_have_no_effect(tmp_path: Path) -> None:
    core = byte_level()
    core.enable_truncation(3)
    core.enable_padding(length=50)
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, core))
    assert 3 < len(tokenizer.encode("The quick brown fox jumps")) < 50


@given(st.text(max_size=40), st.integers(1, 20))
def test_truncation_keeps_special_tokens_and_the_end(text: str, limit: int) -> None:
    """Compared with the left truncation of the library."""
    core = byte_level_core()
    tokenizer = Tokenizer(core, [], [])
    truncating = byte_level_core()
    truncating.enable_truncation(limit, direction="left")
    assert tokenizer.encode(text, truncate=limit) == truncating.encode(text).ids


def byte_level_core() -> Core:
    return Core.from_str(CORE.to_str())


@pytest.mark.contract("3.8")
@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_token_places_are_bytes_of_the_text(kind: str, text: str) -> None:
    core = CORES[kind]
    data = text.encode()
    tokenizer = Tokenizer(core, [], [])
    encoding = core.encode(text)
    for piece, token, (start, stop) in zip(
        tokenizer.tokenize(text), encoding.ids, encoding.offsets, strict=True
    ):
        assert piece.id == token
        assert data[: piece.start].decode() == text[:start]
        assert piece.text == text[start:stop] == data[piece.start : piece.stop].decode()


CORES = {kind: maker() for kind, maker in ALL.items()}


@pytest.mark.contract("12.9")
def test_offsets_count_bytes() -> None:
    core = Core(models.WordLevel({"é": 0, "h": 1}, unk_token="é"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = Tokenizer(core, [], []).tokenize("é h")
    assert [(piece.text, piece.start, piece.stop) for piece in pieces] == [("é", 0, 2), ("h", 3, 4)]


def test_encoding_a_long_text_lets_other_threads_run() -> None:
    text = "a b " * 250_000
    begun, ended = threading.Event(), threading.Event()

    def encode() -> None:
        begun.set()
        Tokenizer(CORE, [], []).encode(text)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    begun.wait()
    moments = [time.monotonic()]
    while not ended.is_set():
        moments.append(time.monotonic())
    thread.join()
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert max(gaps) < sum(gaps) / 2


def test_text_without_tokens_is_an_error() -> None:
    core = Core(models.WordLevel({"a": 0}, unk_token="<missing>"))
    with pytest.raises(TokenizerError, match="WordLevel"):
        Tokenizer(core, [], []).encode("b")


def test_decoding_a_single_token() -> None:
    core = CORES["byte_fallback"]
    tokenizer = Tokenizer(core, [], [])
    word = core.token_to_id("▁")
    assert tokenizer.decode_alone(word) == ""
    assert tokenizer.decode_alone(core.token_to_id("</s>")) == "</s>"


def test_spaces_are_never_cleaned_up(tmp_path: Path) -> None:
    """A model's `clean_up_tokenization_spaces` is ignored; transformers 4 made `a, b` of `a , b`."""
    tokenizer = Tokenizer.from_folder(
        folder_with(tmp_path, tokenizer_config={"clean_up_tokenization_spaces": True})
    )
    for text in ("a , b . c", "do n't"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet=" \n\u3000\u0301\u0345\u1100\u1161\u11a8áe", max_size=60))
def test_a_text_has_no_fewer_tokens_than_its_length_says(name: str, text: str) -> None:
    core = CORES[name]
    assert Tokenizer(core, [], []).min_tokens(text) <= len(core.encode(text).ids)


@pytest.mark.parametrize(
    "normalizer", [None, normalizers.NFC(), normalizers.NFKC()], ids=["none", "NFC", "NFKC"]
)
@settings(deadline=None)
@given(text=st.text(alphabet="\u03b1\u0313\u0300\u0345\u1100\u1161\u11a8", max_size=60))
def test_composition_makes_texts_no_shorter_than_expected(normalizer: Any, text: str) -> None:
    core = byte_level_core()
    core.normalizer = normalizer
    assert Tokenizer(core, [], []).min_tokens(text) <= len(core.encode(text).ids)


def test_a_long_text_has_many_tokens() -> None:
    """Of a vocabulary with bytes, so that no unknown characters join."""
    longest = max(map(len, CORE.get_vocab()))
    assert Tokenizer(CORE, [], []).min_tokens("violin" * 1000) == 6000 // longest
    assert Tokenizer(CORES["word_piece"], [], []).min_tokens("violin" * 1000) == 0
