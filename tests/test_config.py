"""Options and limits against the tables of TGI's launcher (tgi-behaviour 6.1 and 6.2)."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options, map_legacy_variables
from tgi.limits import Limits
from tgi.planning.setup import resolve_limits

CPU = {"block_size": 16, "batch_size": 32, "prefill_tokens": 512}

# text-generation-launcher --help: the flags with a default of their own.
TGI_DEFAULTS = {
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_top_n_tokens": 5,
    "max_client_batch_size": 4,
    "payload_limit": 2_000_000,
    "waiting_served_ratio": 0.3,
    "max_waiting_tokens": 20,
    "hostname": "0.0.0.0",
    "port": 3000,
    "graceful_termination_timeout": 90,
    "json_output": False,
    "otlp_service_name": "text-generation-inference.router",
}


def limits(max_position: int = 2048, **options: Any) -> Limits:
    return resolve_limits(Options(**options), max_position=max_position, **CPU)


@pytest.mark.contract(
    "--max-concurrent-requests",
    "--max-best-of",
    "--max-stop-sequences",
    "--max-top-n-tokens",
    "--waiting-served-ratio",
    "--max-waiting-tokens",
    "--hostname",
    "--port",
    "--otlp-service-name",
    "--max-client-batch-size",
    "--payload-limit",
    "--graceful-termination-timeout",
)
@pytest.mark.parametrize(("name", "value"), TGI_DEFAULTS.items())
def test_defaults_are_those_of_the_launcher(name: str, value: object) -> None:
    assert getattr(Options(), name) == value


@pytest.mark.contract("L4")
def test_limits_come_from_the_model_and_the_device() -> None:
    found = limits(max_position=2048)
    assert (found.max_input_tokens, found.max_total_tokens) == (2047, 2048)
    assert (found.max_batch_size, found.max_batch_prefill_tokens, found.block_size) == (32, 512, 16)
    assert limits(max_position=131_072).max_total_tokens == 4096


@pytest.mark.contract(
    "--max-input-tokens", "--max-total-tokens", "--max-batch-prefill-tokens", "--max-batch-size"
)
def test_given_limits_stand() -> None:
    found = limits(max_input_tokens=100, max_total_tokens=300, max_batch_size=4, max_batch_prefill_tokens=64)
    assert (found.max_input_tokens, found.max_total_tokens) == (100, 300)
    assert (found.max_batch_size, found.max_batch_prefill_tokens) == (4, 64)


def test_there_are_no_positions_beyond_those_that_a_model_has_learned() -> None:
    assert (
        resolve_limits(Options(), max_position=1024, learned_positions=1024, **CPU).max_total_tokens == 1024
    )
    with pytest.raises(OptionError, match=r"`max_total_tokens` must be <= 1024, .* Given: 1025"):
        resolve_limits(Options(max_total_tokens=1025), max_position=1024, learned_positions=1024, **CPU)


def test_a_long_prompt_limit_alone_raises_the_total() -> None:
    """TGI refuses this (L5)."""
    assert limits(max_position=32_768, max_input_tokens=8192).max_total_tokens == 8193


@pytest.mark.contract("--max-input-length")
def test_the_old_name_of_the_prompt_limit() -> None:
    assert limits(max_input_length=77).max_input_tokens == 77


@pytest.mark.contract("6.1")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"max_input_tokens": 5, "max_total_tokens": 5},
            "`max_input_tokens`(5) must be < `max_total_tokens`(5)",
        ),
        ({"max_input_tokens": 0}, "`max_input_tokens` must be >= 1. Given: 0"),
        (
            {"max_total_tokens": 1},
            "`max_total_tokens` must be >= 2, for one token of the prompt and one of the answer. Given: 1",
        ),
        (
            {"max_total_tokens": 100, "max_batch_total_tokens": 99},
            "`max_total_tokens` must be <= `max_batch_total_tokens`. Given: 100 and 99",
        ),
    ],
)
def test_contradictions_between_limits(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        limits(**options)
    assert str(caught.value) == text


def test_with_a_window_the_cache_may_be_smaller_than_a_sequence() -> None:
    given = {"max_total_tokens": 1000, "max_batch_prefill_tokens": 64}
    made = resolve_limits(Options(**given, max_batch_total_tokens=163), max_position=4096, window=100, **CPU)
    assert (made.window, made.sequence_tokens) == (100, 163)
    with pytest.raises(OptionError, match=r"`max_batch_total_tokens` must be >= 163, .* Given: 162"):
        resolve_limits(Options(**given, max_batch_total_tokens=162), max_position=4096, window=100, **CPU)
    with pytest.raises(OptionError, match="Given: 1000 and 999"):
        resolve_limits(Options(**given, max_batch_total_tokens=999), max_position=4096, window=1000, **CPU)


@pytest.mark.contract("6.1")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"max_input_tokens": 5, "max_input_length": 6},
            "Both `max_input_tokens` (5) and `max_input_length` (6) are set. Please define only "
            "`max_input_tokens` as `max_input_length` is deprecated for naming consistency.",
        ),
        ({"num_shard": 0}, "`num_shard` cannot be < 1"),
        ({"sharded": "true", "num_shard": 1}, "`sharded` is true but `num_shard` <= 1"),
        ({"max_batch_size": 0}, "`max_batch_size` must be > 0"),
        (
            {"recipe_cache": Path("/a,b")},
            "the folder name of --recipe-cache must not contain a comma",
        ),
        ({"api_key": ("a", "")}, "an API key is empty: give a key, or leave out --api-key and API_KEY"),
        ({"api_key": ("é",)}, "an API key must be printable ASCII without surrounding spaces"),
        ({"api_key": (" a",)}, "an API key must be printable ASCII without surrounding spaces"),
        ({"api_key": ("a\n",)}, "an API key must be printable ASCII without surrounding spaces"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        list(Options(**options).checked({}))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float16"}, "computing in bfloat16"),
        ({"dtype": "half"}, "computing in bfloat16"),
    ],
)
def test_what_is_done_otherwise_is_said(options: dict[str, Any], said: str) -> None:
    (warning,) = Options(**options).checked({})
    assert said in warning


@pytest.mark.contract("L1")
def test_what_is_done_as_told_is_not_said() -> None:
    options = Options(hostname="localhost", dtype="bfloat16", api_key=("a b", "!~"), num_shard=1)
    assert not list(options.checked({}))


@pytest.mark.contract("--dtype")
@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("float32", "float32"),
        ("float", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "bfloat16"),
        ("half", "bfloat16"),
    ],
)
def test_dtypes(dtype: Any, compute: str) -> None:
    assert Options(dtype=dtype).compute_dtype == compute


@pytest.mark.contract("--rope-scaling", "--rope-factor")
@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, None),
        ({"rope_factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_scaling": "dynamic"}, {"rope_type": "dynamic", "factor": 1.0}),
        ({"rope_scaling": "dynamic", "rope_factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}),
    ],
)
def test_rope_scaling(options: dict[str, Any], scaling: object) -> None:
    assert Options(**options).config_overrides({"rope_theta": 5.0}).get("rope_scaling") == scaling


def test_rope_scaling_keeps_the_base_that_newer_configs_hold_beside_it() -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    assert Options(rope_factor=2.0).config_overrides(config) == {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0}
    }


@pytest.mark.contract("C1")
def test_old_variables_of_the_hub() -> None:
    assert map_legacy_variables({"HUGGING_FACE_HUB_TOKEN": "a"}) == {"HF_TOKEN": "a"}
    assert map_legacy_variables({"HF_API_TOKEN": "b"}) == {"HF_TOKEN": "b"}
    assert map_legacy_variables({"HF_TOKEN": "c", "HF_API_TOKEN": "b"}) == {}


def test_options_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Options().port = 1  # type: ignore[misc]
