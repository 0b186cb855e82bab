"""The command line, in a process of its own as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tgi.cli import app, options_from_environment, parse_options
from tgi.compat_flags import IgnoredFlags
from tgi.config import Options

OWN = [field.name for field in attrs.fields(Options) if field.name not in ("config", "env", "ignored")]
CHOICES = {
    "load_format": "dummy",
    "kv_cache_dtype": "fp8_e4m3fn",
    "dtype": "bfloat16",
    "rope_scaling": "dynamic",
    "memory_fraction": "0.5",
    "graph_memory_fraction": "0.5",
    "sharded": "true",
    "hostname": "127.0.0.1",
    "tokenizer_config_path": __file__,
    "chat_template": __file__,
    "bucket_shapes": __file__,
    "root_path": "/llm",
    "executor": "ray",
    "while_recovering": "refuse",
    "metrics_names": "vllm",
    "tenants": __file__,
    "tls_cert": __file__,
    "tls_key": __file__,
    "aip_predict_route": "/predict",
    "aip_health_route": "/alive",
}
"""Values for options that do not take any."""


def tgi(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tgi", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_flags_of_a_typical_script() -> None:
    options = parse_options(
        "--model-id org/model --revision main --sharded false --num-shard 1 --dtype bfloat16 -p 80 "
        "--max-input-tokens 1024 --max-total-tokens=2048 --max-batch-size 8 --json-output --cuda-graphs 0 "
        "--usage-stats off --cors-allow-origin http://a --cors-allow-origin http://b -g 5 -e "
        "--no-prefix-caching --api-key k --api-key l,m".split()
    )
    assert options == Options(
        model_id="org/model",
        revision="main",
        sharded="false",
        num_shard=1,
        dtype="bfloat16",
        port=80,
        max_input_tokens=1024,
        max_total_tokens=2048,
        max_batch_size=8,
        json_output=True,
        ignored=IgnoredFlags(cuda_graphs="0", usage_stats="off"),
        api_key=("k", "l,m"),
        env=True,
        cors_allow_origin=("http://a", "http://b"),
        graceful_termination_timeout=5.0,
        prefix_caching=False,
    )


@pytest.mark.contract("6.1")
@pytest.mark.parametrize("field", OWN)
def test_every_option_has_the_variable_of_its_name(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = attrs.fields_dict(Options)[field].default
    value = CHOICES.get(field, "false" if kind is True else "true" if kind is False else "7")
    monkeypatch.setenv(field.upper(), value)
    changed = parse_options()
    assert getattr(changed, field) != getattr(Options(), field)
    assert attrs.evolve(changed, **{field: getattr(Options(), field)}) == Options()


@pytest.mark.parametrize("field", OWN)
def test_an_empty_variable_is_not_set(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(field.upper(), "")
    # But for the key: a server that has lost it must not start without.
    assert parse_options() == (Options(api_key=("",)) if field == "api_key" else Options())


@pytest.mark.contract("6.1")
def test_a_flag_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert parse_options(["--port", "2"]).port == 2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("API_KEY", "a, b", Options(api_key=("a", "b"))),
        ("API_KEY", "a,", Options(api_key=("a", ""))),
        ("API_KEY", "a b", Options(api_key=("a b",))),
        ("API_KEY", '["a"]', Options(api_key=('["a"]',))),
        ("CORS_ALLOW_ORIGIN", "http://a", Options(cors_allow_origin=("http://a",))),
        ("CORS_ALLOW_ORIGIN", "http://a, http://b", Options(cors_allow_origin=("http://a", "http://b"))),
        ("HOSTNAME", "e3b0c44298fc", Options()),
        ("HOSTNAME", "localhost", Options()),
        ("HOSTNAME", "::1", Options(hostname="::1")),
        ("JSON_OUTPUT", "false", Options()),
        ("JSON_OUTPUT", "True", Options(json_output=True)),
        ("MAX_BATCH_SIZE", " 8 ", Options(max_batch_size=8)),
    ],
)
def test_how_a_variable_is_read(
    name: str, value: str, expected: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert parse_options() == expected


@pytest.mark.contract("--port")
@pytest.mark.parametrize("short", [["-p", "8"], ["-p8"], ["-p=8"], ["--port=8"]])
def test_p_is_the_port(short: list[str]) -> None:
    """TGI has -p twice, for --prometheus-port too."""
    assert parse_options(short) == Options(port=8)


def test_short_names_of_vllm() -> None:
    options = parse_options(["-tp", "2", "-q", "awq"])
    assert (options.num_shard, options.quantize) == (2, "awq")


@pytest.mark.contract("6.1")
@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["serve", "--bogus", "1"], {}, "--bogus"),
        (["serve", "--port", "x"], {}, "--port"),
        (["serve", "--port", "65536"], {}, 'Invalid value "65536" for --port. Must be <= 65535.'),
        (["serve", "--max-best-of", "1.5"], {}, '--max-best-of: "1.5" is not a whole number'),
        (["serve", "--max-best-of", "-1"], {}, "Must be >= 0"),
        (["serve", "--drain-delay", "nan"], {}, "Must be >= 0"),
        (["serve", "--chat-template", "/none"], {}, '"/none" does not exist'),
        (["serve", "--max-inputs-tokens", "1"], {}, "Did you mean --max-input-tokens?"),
        (["serve", "--trust-remote-code", "true"], {}, 'Unexpected argument "true".'),
        (["serve", "org/m", "--model-id", "org/n"], {}, "The model is given twice"),
        (["serve"], {"JSON_OUTPUT": "maybe"}, "JSON_OUTPUT"),
        (["serve"], {"AIP_HEALTH_ROUTE": "health"}, "It must be a path, such as /predict."),
        (["serve"], {"TGI_CONFIG": "/none.toml"}, "/none.toml cannot be read: No such file or directory."),
        (["serve", "--dtype", "float8"], {}, "float8"),
        (["serve", "org/m", "surplus"], {}, 'Unexpected argument "surplus".'),
        (["serve", "--port"], {}, "--port"),
        (["serve"], {"PORT": "x"}, "PORT"),
        (["download-weights"], {}, "--model-id"),
        (["swerve"], {}, "swerve"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = tgi(*arguments, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "model"),
    [(["org/m"], {"MODEL_ID": "org/n"}, "org/m"), ([], {"MODEL_ID": "org/n"}, "org/n"), ([], {}, None)],
)
def test_the_model_may_stand_alone(
    arguments: list[str], environment: dict[str, str], model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Options] = []

    def run(options: Options) -> int:
        started.append(options)
        return 7

    monkeypatch.setattr("tgi.server.run", run)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert app(["serve", *arguments], exit_on_error=False) == 7
    assert started == [Options(model_id=model)]


def test_options_of_an_application_that_has_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tgi.toml"
    path.write_text("port = 1\nmax-best-of = 3\n")
    monkeypatch.setenv("TGI_CONFIG", str(path))
    monkeypatch.setenv("PORT", "2")
    assert options_from_environment() == Options(config=path, port=2, max_best_of=3)
    path.write_text("prot = 1")
    with pytest.raises(SystemExit) as ended:
        options_from_environment()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tgi: {path}: unknown option prot.")


@pytest.mark.contract("--help")
@pytest.mark.parametrize("arguments", [["serve", "--help"], ["--help"], ["download-weights", "-h"]])
def test_help(arguments: list[str]) -> None:
    done = tgi(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.contract("--help")
def test_help_shows_every_flag_once_and_fits_a_narrow_terminal() -> None:
    text = tgi("serve", "--help", COLUMNS="80").stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    panels, _, epilogue = text.partition("Flags of text-generation-launcher and vLLM")
    for field in OWN:
        flag = f"--{field.replace('_', '-')}"
        left = [line[2:34] for line in panels.splitlines()]
        found = [words for words in left if flag in words.replace("[no-]", "").split()]
        assert len(found) == 1, flag
    for attribute in attrs.fields(IgnoredFlags):
        assert f"--{attribute.name.replace('_', '-')}" in epilogue


def test_the_schema_is_what_the_server_would_show() -> None:
    done = tgi("print-schema")
    schema = json.loads(done.stdout)
    assert (done.returncode, done.stderr, schema["openapi"][:2]) == (0, "", "3.")
    assert {"/generate", "/v1/chat/completions", "/health"} <= schema["paths"].keys()


@pytest.mark.contract("--version")
def test_version() -> None:
    assert tgi("--version").stdout.startswith("tgi 0.")


def test_the_command_line_imports_no_torch() -> None:
    code = "import sys, tgi.cli, tgi.server; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_are_installed() -> None:
    for name in ("tgi", "text-generation-launcher"):
        done = subprocess.run(
            [Path(sys.executable).parent / name, "-V"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(name)
