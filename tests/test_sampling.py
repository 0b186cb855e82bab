"""Fields, checks, messages and columns that derive from the declaration of the sampling parameters."""

from types import SimpleNamespace

import msgspec
import pytest

from tgi.sampling import COLUMNS, DECLARED, FLOATS, INTS, NEUTRAL, SamplingParams, body_fields, read_body

APIS = ("native", "openai")
NAMES = {
    "sample": ("", ""),
    "seed": ("", ""),
    "temperature": ("temperature", "temperature"),
    "repetition_penalty": ("repetition_penalty", "repetition_penalty"),
    "frequency_penalty": ("frequency_penalty", ""),
    "count_penalty": ("", "frequency_penalty"),
    "presence_penalty": ("presence_penalty", "presence_penalty"),
    "min_p": ("min_p", "min_p"),
    "top_p": ("top_p", "top_p"),
    "typical_p": ("typical_p", "typical_p"),
    "top_k": ("top_k", "top_k"),
    "watermark": ("watermark", "watermark"),
    "logit_bias": ("", ""),
    "min_tokens": ("min_tokens", "min_tokens"),
    "ends": ("", ""),
    "top_n_tokens": ("top_n_tokens", ""),
}
"""Names of TGI's and OpenAI's parameters in the bodies of `APIS`, "" where they are not a field of that name.
Further parameters may be declared."""
OUTSIDE = [
    ("native", "temperature", 0.0, "`temperature` must be strictly positive"),
    ("native", "temperature", float("nan"), "`temperature` must be strictly positive"),
    ("native", "top_p", 1.0, "`top_p` must be > 0.0 and < 1.0"),
    ("openai", "top_p", 1.5, "`top_p` must be >= 0.0 and <= 1.0"),
    ("openai", "temperature", -1.0, "`temperature` must be >= 0.0"),
    ("openai", "typical_p", 0.0, "`typical_p` must be > 0.0 and <= 1.0"),
    ("native", "top_k", 0, "`top_k` must be strictly positive"),
    ("openai", "top_k", -2, "`top_k` must be >= -1"),
    ("openai", "frequency_penalty", 2.5, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("openai", "min_p", -0.1, "`min_p` must be >= 0.0 and <= 1.0"),
]


def body(api, **given):
    return SimpleNamespace(**{name: default for name, _, default in body_fields(api)} | given)


def test_parameters_have_the_names_of_tgi_and_openai():
    declared = {one.name: tuple(one.parameter.name(api) for api in APIS) for one in DECLARED}
    assert {name: declared[name] for name in NAMES} == NAMES


@pytest.mark.parametrize("api", APIS)
def test_bodies_offer_the_declared_names(api):
    declared = [one.parameter.name(api) for one in DECLARED if one.parameter.name(api)]
    assert [name for name, _, _ in body_fields(api)] == declared
    assert len(set(declared)) == len(declared)
    assert read_body(body(api), api) == SamplingParams()


@pytest.mark.parametrize(("api", "name", "value", "words"), OUTSIDE)
def test_values_out_of_range_are_refused_in_the_words_of_tgi(api, name, value, words):
    with pytest.raises(ValueError, match=r"must be") as refusal:
        read_body(body(api, **{name: value}), api)
    assert str(refusal.value) == words


@pytest.mark.parametrize("api", APIS)
def test_numbers_beyond_float32_are_within_open_ends(api):
    params = read_body(body(api, temperature=1e39, repetition_penalty=1e308), api)
    assert COLUMNS["temperature"].column(params) == COLUMNS["repetition_penalty"].column(params) == 1e4


def test_values_that_are_neutral_in_openai_have_no_effect():
    assert read_body(body("openai", temperature=0, top_p=1, top_k=-1), "openai") == SamplingParams()
    assert read_body(body("openai", top_k=0), "openai") == SamplingParams()


def test_one_name_may_mean_different_parameters():
    assert read_body(body("native", frequency_penalty=0.5), "native") == SamplingParams(frequency_penalty=0.5)
    assert read_body(body("openai", frequency_penalty=0.5), "openai") == SamplingParams(count_penalty=0.5)


def test_every_parameter_crosses_the_socket_by_name():
    changed = {
        "sample": True,
        "seed": 2**64 - 1,
        "top_k": 3,
        "watermark": True,
        "min_tokens": 2,
        "top_n_tokens": 4,
    }
    changed |= dict.fromkeys(FLOATS, 0.5) | {"logit_bias": ((3, -1.0),), "ends": (1, 2)}
    assert set(changed) == {declared.name for declared in DECLARED}
    params = SamplingParams(**changed)
    data = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(data, type=SamplingParams) == params
    assert set(msgspec.msgpack.decode(data)) == set(changed)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(SamplingParams())) == {}


def test_columns_are_numbers_within_bounds():
    params = SamplingParams(
        temperature=1e-9, min_p=0.0, count_penalty=1e9, logit_bias=((1, 1.0),), sample=True
    )
    columns = {name: declared.column(params) for name, declared in COLUMNS.items()}
    assert columns == NEUTRAL | {"temperature": 1e-4, "count_penalty": 1e4, "logit_bias": 1, "sample": 1}
    assert {*FLOATS, *INTS} == set(COLUMNS) == set(NEUTRAL)
    assert NEUTRAL["min_p"] == float("-inf")


@pytest.mark.parametrize(
    "name", ["repetition_penalty", "frequency_penalty", "count_penalty", "presence_penalty"]
)
def test_penalties_look_at_the_tokens_so_far(name):
    assert not SamplingParams(temperature=0.5, min_p=0.1).needs_history
    assert SamplingParams(**{name: 0.5}).needs_history
