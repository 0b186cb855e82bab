"""The command line, in a process of its own as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tgi.cli import launcher_app
from tgi.config import Options


def tgi(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tgi", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def parsed(*arguments: str) -> Options:
    _, bound, _ = launcher_app.parse_args(arguments, exit_on_error=False, print_error=False)
    options: Options = bound.arguments.get("options", Options())
    return options


def test_flags_of_a_typical_script() -> None:
    options = parsed(
        *"--model-id org/model --revision main --sharded false --num-shard 1 --dtype bfloat16 -p 80".split(),
        *"--max-input-tokens 1024 --max-total-tokens 2048 --max-batch-size 8 --json-output".split(),
        *"--cuda-graphs 0 --usage-stats off --cors-allow-origin http://a --cors-allow-origin http://b".split(),
        *"--graceful-termination-timeout 5 --no-prefix-caching".split(),
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
        cuda_graphs="0",
        usage_stats="off",
        cors_allow_origin=("http://a", "http://b"),
        graceful_termination_timeout=5.0,
        prefix_caching=False,
    )


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(Options) if field.name != "env"])
def test_every_option_has_the_variable_of_its_name(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"dtype": "bfloat16", "rope_scaling": "dynamic", "sharded": "true"}
    kind = attrs.fields_dict(Options)[field].default
    value = choices.get(field, "false" if kind is True else "true" if kind is False else "7")
    monkeypatch.setenv(field.upper(), value)
    changed = parsed()
    assert getattr(changed, field) != getattr(Options(), field)
    assert attrs.evolve(changed, **{field: getattr(Options(), field)}) == Options()


def test_a_flag_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert parsed("--port", "2").port == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["serve", "--bogus", "1"], {}, "--bogus"),
        (["serve", "--port", "x"], {}, "--port"),
        (["serve", "--port", "65536"], {}, "--port"),
        (["serve", "--dtype", "float8"], {}, "float8"),
        (["serve", "surplus"], {}, "surplus"),
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


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["--help"], ["download-weights", "-h"]])
def test_help(arguments: list[str]) -> None:
    done = tgi(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""


def test_help_names_every_flag_and_variable() -> None:
    text = "".join(tgi("serve", "--help", COLUMNS="300").stdout.split())
    for field in attrs.fields(Options):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.name == "env" or field.name.upper() in text


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
