"""Every flag and variable of TGI and vLLM (tgi-behaviour 6.1, 6.3, 6.5; users-and-ecosystem 4.1) by name."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.cli import parse_options
from tgi.compat_flags import UNUSED_VARIABLES, IgnoredFlags
from tgi.config import OptionError, Options

HERE = Path(__file__)
# The flags of text-generation-launcher and text-generation-router that do something: a value as it is typed
# (None: the flag takes none), and what it becomes. All but --env have the variable of their name.
IMPLEMENTED: dict[str, tuple[str | None, Any]] = {
    "model-id": ("org/m", "org/m"),
    "revision": ("r", "r"),
    "sharded": ("true", "true"),
    "num-shard": ("2", 2),
    "dtype": ("bfloat16", "bfloat16"),
    "max-concurrent-requests": ("7", 7),
    "max-best-of": ("7", 7),
    "max-stop-sequences": ("7", 7),
    "quantize": ("int8", "int8"),
    "kv-cache-dtype": ("fp8_e4m3fn", "fp8_e4m3fn"),
    "max-top-n-tokens": ("7", 7),
    "max-input-tokens": ("7", 7),
    "max-input-length": ("7", 7),
    "max-total-tokens": ("7", 7),
    "waiting-served-ratio": ("1.2", 1.2),
    "speculate": ("3", 3),
    "max-batch-prefill-tokens": ("7", 7),
    "max-batch-total-tokens": ("7", 7),
    "max-waiting-tokens": ("7", 7),
    "max-batch-size": ("7", 7),
    "hostname": ("127.0.0.1", "127.0.0.1"),
    "port": ("80", 80),
    "huggingface-hub-cache": ("/data", Path("/data")),
    "weights-cache-override": ("/data", Path("/data")),
    "rope-scaling": ("linear", "linear"),
    "rope-factor": ("2", 2.0),
    "json-output": (None, True),
    "otlp-endpoint": ("http://c:4317", "http://c:4317"),
    "otlp-service-name": ("s", "s"),
    "cors-allow-origin": ("http://a", ("http://a",)),
    "api-key": ("k", ("k",)),
    "watermark-gamma": ("0.25", 0.25),
    "watermark-delta": ("1.5", 1.5),
    "tokenizer-config-path": (str(HERE), HERE),
    "disable-grammar-support": (None, True),
    "env": (None, True),
    "max-client-batch-size": ("7", 7),
    "lora-adapters": ("a,b=/path", ("a,b=/path",)),
    "payload-limit": ("7", 7),
    "graceful-termination-timeout": ("7", 7.0),
}
IN_VAIN: dict[str, str | None] = {
    "validation-workers": "2",
    "trust-remote-code": None,
    "cuda-graphs": "0",
    "prometheus-port": "9000",
    "shard-uds-path": "/tmp/s",
    "master-addr": "localhost",
    "master-port": "29500",
    "disable-custom-kernels": None,
    "cuda-memory-fraction": "1.0",
    "ngrok": None,
    "ngrok-authtoken": "t",
    "ngrok-edge": "e",
    "usage-stats": "off",
    "enable-prefill-logprobs": None,
    "master-shard-uds-path": "/tmp/s-0",
    "tokenizer-name": "bigscience/bloom",
    "max-image-fetch-size": "1073741824",
}
# vLLM's flag -> ours, with a value.
ALIASES = {
    "model": ("model_id", "org/m", "org/m"),
    "served-model-name": ("served_model_name", "n", "n"),
    "tensor-parallel-size": ("num_shard", "2", 2),
    "max-model-len": ("max_total_tokens", "7", 7),
    "max-num-seqs": ("max_batch_size", "7", 7),
    "max-num-batched-tokens": ("max_batch_prefill_tokens", "7", 7),
    "dtype": ("dtype", "half", "half"),
    "quantization": ("quantize", "int8", "int8"),
    "no-enable-prefix-caching": ("prefix_caching", None, False),
    "host": ("hostname", "::1", "::1"),
    "port": ("port", "80", 80),
    "api-key": ("api_key", "k", ("k",)),
    "chat-template": ("chat_template", str(HERE), HERE),
    "gpu-memory-utilization": ("memory_fraction", "0.9", 0.9),
    "ssl-certfile": ("tls_cert", str(HERE), HERE),
    "ssl-keyfile": ("tls_key", str(HERE), HERE),
    "lora-modules": ("lora_adapters", "sql=/path", ("sql=/path",)),
    "enable-lora": ("enable_lora", None, True),
    "max-loras": ("max_loras", "4", 4),
    "max-lora-rank": ("max_lora_rank", "64", 64),
    "shutdown-timeout": ("graceful_termination_timeout", "7", 7.0),
}
VLLM_IN_VAIN: dict[str, str | None] = {
    "speculative-config": '{"method":"ngram"}',
    "task": "embed",
    "runner": "pooling",
    "convert": "embed",
    "enforce-eager": None,
    "enable-chunked-prefill": None,
    "no-enable-chunked-prefill": None,
    "enable-auto-tool-choice": None,
    "tool-call-parser": "hermes",
    "reasoning-parser": "qwen3",
    "seed": "0",
    "block-size": "128",
    "swap-space": "4",
    "disable-log-requests": None,
    "max-num-queued-reqs": "10",
    "enable-ssl-refresh": None,
    "trust-remote-code": None,
    "max-cpu-loras": "16",
    "lora-dtype": "bfloat16",
    "fully-sharded-loras": None,
    "specialize-active-lora": None,
}
VLLM_REFUSED: dict[str, str | None] = {
    "ssl-ca-certs": "/ca.pem",
    "ssl-cert-reqs": "2",
    "default-mm-loras": '{"audio":"x"}',
}


def words(flag: str, value: str | None) -> list[str]:
    return [f"--{flag}"] if value is None else [f"--{flag}", value]


def variable(flag: str) -> str:
    return flag.replace("-", "_").upper()


def changed(options: Options) -> dict[str, Any]:
    names = [field.name for field in attrs.fields(Options)]
    return {
        name: getattr(options, name) for name in names if getattr(options, name) != getattr(Options(), name)
    }


@pytest.mark.contract(
    "--model-id",
    "--revision",
    "--sharded",
    "--num-shard",
    "--dtype",
    "--kv-cache-dtype",
    "--max-concurrent-requests",
    "--max-best-of",
    "--max-stop-sequences",
    "--max-top-n-tokens",
    "--max-input-tokens",
    "--max-input-length",
    "--max-total-tokens",
    "--waiting-served-ratio",
    "--max-batch-prefill-tokens",
    "--max-batch-total-tokens",
    "--max-waiting-tokens",
    "--max-batch-size",
    "--hostname",
    "--port",
    "--huggingface-hub-cache",
    "--weights-cache-override",
    "--rope-scaling",
    "--rope-factor",
    "--json-output",
    "--otlp-endpoint",
    "--otlp-service-name",
    "--cors-allow-origin",
    "--api-key",
    "--watermark-gamma",
    "--watermark-delta",
    "--tokenizer-config-path",
    "--disable-grammar-support",
    "--env",
    "--max-client-batch-size",
    "--lora-adapters",
    "--payload-limit",
    "--graceful-termination-timeout",
)
@pytest.mark.parametrize(("flag", "value", "means"), [(f, *row) for f, row in IMPLEMENTED.items()])
def test_a_flag_that_does_something(
    flag: str, value: str | None, means: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {flag.replace("-", "_"): means}
    assert changed(parse_options(words(flag, value))) == expected
    if flag != "env":
        monkeypatch.setenv(variable(flag), value or "true")
        assert changed(parse_options()) == expected


@pytest.mark.contract(
    "--validation-workers",
    "--trust-remote-code",
    "--cuda-graphs",
    "--prometheus-port",
    "--shard-uds-path",
    "--master-addr",
    "--master-port",
    "--disable-custom-kernels",
    "--cuda-memory-fraction",
    "--ngrok",
    "--ngrok-authtoken",
    "--ngrok-edge",
    "--usage-stats",
    "--enable-prefill-logprobs",
    "6.3",
)
@pytest.mark.parametrize(("flag", "value"), IN_VAIN.items())
def test_a_flag_without_effect_is_named(
    flag: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ngrok = ["--ngrok-authtoken", "t", "--ngrok-edge", "e"] if flag == "ngrok" else []
    options = parse_options([*words(flag, value), *ngrok])
    assert changed(options).keys() == {"ignored"}
    assert any(line.startswith(f"--{flag} has no effect: ") for line in options.checked({}))
    monkeypatch.setenv(variable(flag), value or "true")
    assert parse_options(ngrok) == options


@pytest.mark.parametrize("value", ["none", "auto", "0"])
def test_a_refused_flag_may_ask_for_nothing(value: str) -> None:
    assert not list(parse_options(words("default-mm-loras", value)).checked({}))


@pytest.mark.parametrize("value", ["none", "auto", "0"])
def test_a_quantization_of_nothing(value: str) -> None:
    assert parse_options(words("quantize", value)).quantization == ""


@pytest.mark.parametrize(("flag", "name", "value", "means"), [(f, *row) for f, row in ALIASES.items()])
def test_vllms_name_of_an_option(flag: str, name: str, value: str | None, means: Any) -> None:
    assert changed(parse_options(words(flag, value))) == {name: means}


@pytest.mark.parametrize(("flag", "value"), VLLM_IN_VAIN.items())
def test_a_flag_of_vllm_without_effect(flag: str, value: str | None) -> None:
    options = parse_options(words(flag, value))
    assert changed(options).keys() == {"ignored"}
    (line,) = options.checked({})
    assert " has no effect: " in line


@pytest.mark.parametrize(("flag", "value"), VLLM_REFUSED.items())
def test_a_flag_of_vllm_that_is_refused(flag: str, value: str | None) -> None:
    with pytest.raises(OptionError, match=" is not supported: "):
        list(parse_options(words(flag, value)).checked({}))


def test_no_foreign_option_is_missing_from_these_tables() -> None:
    tables = {**IN_VAIN, **VLLM_IN_VAIN, **VLLM_REFUSED}
    assert {field.name for field in attrs.fields(IgnoredFlags)} <= {flag.replace("-", "_") for flag in tables}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("VLLM_API_KEY", "k", {"api_key": ("k",)}),
        ("VLLM_LOGGING_LEVEL", "DEBUG", {"log_level": "DEBUG"}),
        ("HF_MODEL_ID", "org/m", {"model_id": "org/m"}),
        ("HF_MODEL_REVISION", "r", {"revision": "r"}),
        ("SM_NUM_GPUS", "2", {"num_shard": 2}),
        ("HF_MODEL_QUANTIZE", "awq", {"quantize": "awq"}),
        ("HF_MODEL_TRUST_REMOTE_CODE", "true", {"ignored": IgnoredFlags(trust_remote_code=True)}),
        ("PREFIX_CACHING", "0", {"prefix_caching": False}),
        ("HF_HUB_CACHE", "/data", {"huggingface_hub_cache": Path("/data")}),
        ("COMPUTE_TYPE", "1-gaudi2", {"compute_type": "1-gaudi2"}),
        ("VLLM_SKIP_WARMUP", "true", {"skip_warmup": True}),
        ("HPU_MEMORY_FRACTION", "0.8", {"memory_fraction": 0.8}),
        ("USE_EXPERT_PARALLEL", "true", {"expert_parallel": True}),
        ("TGI_GRAPH_RESERVED_MEM", "0.1", {"graph_memory_fraction": 0.1}),
        ("VLLM_GRAPH_RESERVED_MEM", "0.1", {"graph_memory_fraction": 0.1}),
        (
            "LOG_LEVEL",
            "info,text_generation_router=debug",
            {"log_level": "info,text_generation_router=debug"},
        ),
    ],
)
def test_variables_that_are_no_flags_of_the_launcher(
    name: str, value: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert changed(parse_options()) == expected


@pytest.mark.contract("6.5")
@pytest.mark.parametrize(
    "name",
    """ATTENTION DUMP_STACK ENABLE_HPU_GRAPH FLASH_ATTENTION_RECOMPUTE LIMIT_HPU_GRAPH PREFILL_CHUNKING
    REQUEST_LOGPROBS SKIP_TOKENIZER_IN_TGI TEXT_GENERATION_SERVER_IGNORE_EOS_TOKEN TGI_WIGGLE_ROOM
    USE_FLASH_ATTENTION VLLM_EXPONENTIAL_BUCKETING
    VLLM_GRAPH_PROMPT_RATIO VLLM_BUCKETING_STRATEGY VLLM_DECODE_BS_BUCKET_STEP VLLM_DECODE_BLOCK_BUCKET_MAX
    VLLM_PROMPT_SEQ_BUCKET_MIN VLLM_PROMPT_QUERY_BUCKET_MIN VLLM_PROMPT_CTX_BUCKET_MIN
    VLLM_PROMPT_BS_BUCKET_MAX BATCH_BUCKET_SIZE PREFILL_BATCH_BUCKET_SIZE
    PAD_SEQUENCE_TO_MULTIPLE_OF""".split(),
)
def test_variables_of_a_gaudi_image_that_do_nothing(name: str) -> None:
    assert list(Options().checked({name: "1"})) == [
        f"variables without effect: {name} ({UNUSED_VARIABLES[name]})"
    ]


def test_variables_that_do_nothing_share_a_line() -> None:
    (line,) = Options().checked({"PATH": "/bin", **dict.fromkeys(UNUSED_VARIABLES, "1")})
    assert all(name in line for name in UNUSED_VARIABLES)


@pytest.mark.contract("L1", "6.5")
@pytest.mark.parametrize(
    "name",
    """HF_HOME HF_HUB_ENABLE_HF_TRANSFER HF_HUB_OFFLINE HABANA_VISIBLE_DEVICES PT_HPU_LAZY_MODE
    PT_HPU_ENABLE_LAZY_COLLECTIVES PT_HPU_WEIGHT_SHARING PT_HPU_RECIPE_CACHE_CONFIG
    OMPI_MCA_btl_vader_single_copy_mechanism""".split(),
)
def test_variables_that_libraries_read_are_left_to_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not changed(parse_options())
    assert not list(Options().checked({name: "1"}))


@pytest.mark.contract(
    "--validation-workers", "--ngrok", "--ngrok-authtoken", "--ngrok-edge", "--lora-adapters", "6.1"
)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ignored": IgnoredFlags(validation_workers="0")}, "`validation_workers` must be > 0"),
        (
            {"ignored": IgnoredFlags(ngrok=True)},
            "`ngrok-authtoken` must be set when using ngrok tunneling",
        ),
        (
            {"ignored": IgnoredFlags(ngrok=True, ngrok_authtoken="t")},
            "`ngrok-edge` must be set when using ngrok tunneling",
        ),
        (
            {"quantize": "exl2", "num_shard": 2},
            "Sharding is currently not supported with `exl2` quantization",
        ),
        ({"lora_adapters": ("a,b=c@d@e",)}, "Invalid LoRA adapter format: b=c@d@e"),
        ({"objectives": ("a=1, a=2",)}, "--objectives: 'a' has two priorities"),
        *(
            (
                {"objectives": (f"a=1,{wrong}",)},
                f"--objectives: {wrong!r} is not NAME=PRIORITY, with a whole number of at most 32 bits",
            )
            for wrong in ("b", "b=", "=1", "b=1.5", "b=high", f"b={2**31}", "b=--1", "b=²")
        ),
    ],
)
def test_what_the_launcher_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        list(Options(**options).checked({}))
    assert str(caught.value) == text


LORAS = {
    "org/a": [("org/a", "org/a", None)],
    "org/a@v1, b=/path": [("org/a", "org/a", "v1"), ("b", "/path", None)],
    "b=org/b@v2,,": [("b", "org/b", "v2")],
    '{"name": "b", "path": "/path", "base_model_name": "m"}': [("b", "/path", None)],
}
"""Values of --lora-adapters as TGI's documentation has them, and of vLLM's --lora-modules."""


@pytest.mark.parametrize("value", LORAS)
def test_names_and_places_of_adapters(value: str) -> None:
    options = parse_options(words("lora-adapters", value))
    assert [attrs.astuple(lora) for lora in options.loras] == LORAS[value]
    assert options.room_for_loras == len(LORAS[value])


def test_several_adapters_after_one_flag() -> None:
    options = parse_options(["--lora-modules", "a=/a", "b=/b", "--enable-lora", "--max-loras", "1"])
    assert [lora.name for lora in options.loras] == ["a", "b"]
    assert options.room_for_loras == 2


@pytest.mark.parametrize("value", ["a=/a,a=/b", "=/a", "a=", "a=b@c@d", '{"name": "a"}', "{"])
def test_adapters_that_make_no_sense(value: str) -> None:
    with pytest.raises(OptionError):
        list(parse_options(words("lora-adapters", value)).checked({}))
