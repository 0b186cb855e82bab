"""tgi-behaviour 2.6 and 12.3: what is refused, with which words, in which order."""

from typing import Any

import attrs
import pytest

from tgi.limits import Limits
from tgi.text.tokenizer import Tokenizer
from tgi.text.tokenizer_files import TokenizerError

from .serving import INFO, LIMITS, saying, serving

SMALL = attrs.evolve(
    LIMITS, max_best_of=2, max_stop_sequences=3, max_top_n_tokens=4, max_input_tokens=5, max_total_tokens=6
)
"""The limits of 12.3."""
LONG = "Hello" * 6
V04 = "`best_of` must be > 0 and <= 2. Given: 3"
V06 = "you must use sampling when `best_of` is > 1"
V07 = "`temperature` must be strictly positive"
V08 = "`repetition_penalty` must be strictly positive"
V09 = "`frequency_penalty` must be >= -2.0 and <= 2.0"
V10 = "`top_p` must be > 0.0 and < 1.0"
V11 = "`typical_p` must be > 0.0 and < 1.0"
V12 = "`top_k` must be strictly positive"
V13 = "`max_new_tokens` must be strictly positive"
V14A = "`stop` supports up to 3 stop sequences. Given: 4"
V14B = "`seed` must not be set when `best_of` > 1"
V14C = "`top_n_tokens` must be >= 0 and <= 4. Given: 5"
V15 = "`inputs` cannot be empty"
V16 = "`truncate` must be strictly positive and less than 5. Given: "
V20 = "`inputs` tokens + `max_new_tokens` must be <= 6. Given: "
V21 = "`inputs` must have less than 5 tokens. Given: 6"

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"best_of": 3, "do_sample": True}, "Hello", V04),
    ({"best_of": 2}, "Hello", V06),
    ({"temperature": 0}, "Hello", V07),
    ({"temperature": -1, "top_p": 2}, "Hello", V07),
    ({"repetition_penalty": 0}, "Hello", V08),
    ({"frequency_penalty": 2.1}, "Hello", V09),
    ({"frequency_penalty": -2.1}, "Hello", V09),
    ({"top_p": 1.0}, "Hello", V10),
    ({"top_p": 0}, "Hello", V10),
    ({"typical_p": 1}, "Hello", V11),
    ({"top_k": 0}, "Hello", V12),
    ({"top_k": -1}, "Hello", V12),
    ({"max_new_tokens": 0}, "", V13),
    ({"stop": ["a", "b", "c", "d"]}, "Hello", V14A),
    ({"seed": 1, "best_of": 2, "do_sample": True}, "Hello", V14B),
    ({"top_n_tokens": 5}, "Hello", V14C),
    ({}, "", V15),
    ({"truncate": 6}, "Hello", V16 + "6"),
    ({"truncate": 0}, "Hello", V16 + "0"),
    ({"max_new_tokens": 10}, "Hello", V20 + "1 `inputs` tokens and 10 `max_new_tokens`"),
    ({"max_new_tokens": 1}, LONG, V20 + "6 `inputs` tokens and 1 `max_new_tokens`"),
    ({}, LONG, V21),
    ({}, LONG + "Hello", V20 + "7 `inputs` tokens and 0 `max_new_tokens`"),
    (
        {"grammar": {"type": "json", "value": [1]}},
        "Hello",
        "grammar is not valid: a schema must be an object or a boolean",
    ),
]
ACCEPTED: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 5}, "Hello"),
    ({"top_p": 0.99}, "Hello"),
    ({"top_n_tokens": 4}, "Hello"),
    ({"top_n_tokens": 0}, "Hello"),
    ({"truncate": 5}, LONG),
    ({"best_of": 0}, "Hello"),
    ({"best_of": 2, "temperature": 1.0}, "Hello"),
    ({"frequency_penalty": -2.0}, "Hello"),
    ({"adapter_id": None, "use_beam_search": False, "n": 1, "presence_penalty": 0.5}, "Hello"),
]


@pytest.mark.contract(
    "R1.38",
    "V04",
    "V06",
    "V07",
    "V08",
    "V09",
    "V10",
    "V11",
    "V12",
    "V13",
    "V14a",
    "V14b",
    "V14c",
    "V15",
    "V16",
    "V20",
    "V21",
    "12.3",
)
@pytest.mark.parametrize(("parameters", "inputs", "message"), REFUSED)
async def test_refused(parameters: dict[str, Any], inputs: str, message: str) -> None:
    async with serving(limits=SMALL, bos=False) as server:
        answer = await server.generate(parameters, inputs)
        assert answer.status == 422
        assert answer.headers["content-type"] == "application/json"
        assert answer.body.startswith(b'{"error":"Input validation error: ')
        assert answer.json == {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert server.service.in_flight == 0


@pytest.mark.contract("V16", "V20", "V21", "12.3")
@pytest.mark.parametrize(("parameters", "inputs"), ACCEPTED)
async def test_accepted(parameters: dict[str, Any], inputs: str) -> None:
    async with serving(limits=SMALL, bos=False) as server:
        assert (await server.generate(parameters, inputs)).status == 200


@pytest.mark.contract("V03")
async def test_where_only_one_sequence_is_allowed() -> None:
    async with serving(limits=attrs.evolve(LIMITS, max_best_of=1)) as server:
        answer = await server.generate({"best_of": 2, "do_sample": True})
        message = "Input validation error: `best_of` != 1 is not allowed for this endpoint"
        assert (answer.status, answer.json["error"]) == (422, message)


@pytest.mark.contract("12.3")
async def test_a_wish_beyond_the_limit_is_accepted_where_its_first_chunk_fits() -> None:
    limits = Limits(max_input_tokens=2047, max_total_tokens=2048, max_batch_size=8)
    async with serving(saying("Hello world"), limits=limits) as server:
        answer = await server.generate({"max_new_tokens": 100_000, "details": True})
        assert answer.json["details"]["finish_reason"] == "eos_token"
    # It ends with the context, and nowhere near TGI's 1024-token chunks.
    async with serving(lambda _params, _draw: 70, limits=limits) as server:
        answer = await server.generate({"max_new_tokens": 100_000, "details": True})
        prompt = int(answer.headers["x-prompt-tokens"])
        assert answer.json["details"]["generated_tokens"] == 2048 - prompt
        assert answer.json["details"]["finish_reason"] == "length"


@pytest.mark.contract("V17")
async def test_what_the_tokenizer_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TokenizerError("no token for it")

    monkeypatch.setattr(Tokenizer, "_encode", fail)
    async with serving() as server:
        for path in ("/generate", "/generate_stream", "/tokenize"):
            answer = await server.generate({}, path=path)
            assert answer.status == 422
            assert answer.json["error"] == "Input validation error: tokenizer error no token for it"


async def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    """A tokenizer may know tokens, added later, for which the model has no embedding."""
    async with serving(info=attrs.evolve(INFO, vocab_size=5)) as server:
        answer = await server.generate({})
        assert answer.status == 422
        assert "the model has 5 tokens, and no token" in answer.json["error"]
