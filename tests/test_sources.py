"""A TOML file of options: what it may say, what beats it, and what is said when it is wrong."""

from pathlib import Path
from typing import Any

import attrs
import pytest
from cyclopts import CycloptsError

from tgi.cli import parse_options
from tgi.compat_flags import IgnoredFlags
from tgi.config import Options


def write(folder: Path, text: str) -> Path:
    path = folder / "tgi.toml"
    path.write_text(text)
    return path


def parse(folder: Path, text: str, *arguments: str) -> Options:
    path = write(folder, text)
    options = parse_options(["--config", str(path), *arguments])
    assert options.config == path
    return attrs.evolve(options, config=None)


def test_a_file_names_options_as_flags_do(tmp_path: Path) -> None:
    text = """
        model-id = "org/m"
        max_input_tokens = 100            # as in Python
        max-model-len = 200               # as in vLLM
        waiting-served-ratio = 1          # a number without a fraction is a number
        json-output = true
        prefix-caching = false
        sharded = false                   # where a flag takes true or false as a word
        api-key = ["a", "b,c"]
        cors-allow-origin = "http://a"
        huggingface-hub-cache = "/data"
        cuda-graphs = 0
    """
    assert parse(tmp_path, text) == Options(
        model_id="org/m",
        max_input_tokens=100,
        max_total_tokens=200,
        waiting_served_ratio=1.0,
        json_output=True,
        prefix_caching=False,
        sharded="false",
        api_key=("a", "b,c"),
        cors_allow_origin=("http://a",),
        huggingface_hub_cache=Path("/data"),
        ignored=IgnoredFlags(cuda_graphs="0"),
    )


def test_a_flag_beats_a_variable_beats_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'port = 1\nmax-best-of = 1\ndevice = "file"\napi-key = ["a", "b"]'
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("MAX_BEST_OF", "2")
    monkeypatch.setenv("API_KEY", "c")
    options = parse(tmp_path, text, "--port", "3")
    assert (options.port, options.max_best_of, options.device, options.max_stop_sequences) == (
        3,
        2,
        "file",
        4,
    )
    assert options.api_key == ("c",)


def test_the_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_CONFIG", str(write(tmp_path, "port = 1")))
    assert parse_options().port == 1
    monkeypatch.setenv("TGI_CONFIG", "")
    assert parse_options() == Options()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "{}: unknown option prot. Did you mean port?"),
        ("max_total_toks = 1", "{}: unknown option max_total_toks. Did you mean max-total-tokens?"),
        ("zzz = 1", "{}: unknown option zzz."),
        ("p = 1", "{}: unknown option p."),
        ('config = "x"', "{}: unknown option config. Did you mean quant-config?"),
        ('port = "80"', "{}: port must be a whole number."),
        ("port = true", "{}: port must be a whole number."),
        ("port = 1.0", "{}: port must be a whole number."),
        ("drain-delay = '1'", "{}: drain-delay must be a number."),
        ("json-output = 1", "{}: json-output must be true or false."),
        ("api-key = [1]", "{}: api-key must be a string or a list of strings."),
        ("model-id = ['a']", "{}: model-id must be a string."),
        ("[model]\nid = 1", "{}: model must be a string."),
        ("port = 1979-05-27", "{}: port must be a whole number."),
        ("max-total-tokens = 1\nmax-model-len = 1", "{}: max-model-len is given twice."),
        ("port = 70000", 'Invalid value "70000" for port in {}. Must be <= 65535.'),
        ("max-best-of = -1", 'Invalid value "-1" for max-best-of in {}. Must be >= 0.'),
        ("drain-delay = nan", 'Invalid value "nan" for drain-delay in {}. Must be >= 0.'),
        ('sharded = "maybe"', 'Invalid value "maybe" for sharded in {}. Choose from: "true", "false".'),
        ("model_id: org/m", "{} is not TOML: "),
        ("port = 1\nport = 2", "{} is not TOML: "),
    ],
)
def test_a_wrong_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CycloptsError) as caught:
        parse(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(said.format(tmp_path / "tgi.toml"))
    assert "\n" not in message
    assert said.endswith(": ") or message == said.format(tmp_path / "tgi.toml")


def test_what_a_flag_overrides_must_be_right_nevertheless(tmp_path: Path) -> None:
    with pytest.raises(CycloptsError, match="port must be a whole number"):
        parse(tmp_path, 'port = "x"', "--port", "3")


@pytest.mark.parametrize(
    ("name", "said"), [("none.toml", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CycloptsError) as caught:
        parse_options(["--config", str(tmp_path / name)])
    assert str(caught.value) == f"{tmp_path / name} cannot be read: {said}."


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "tgi.toml"
    path.write_bytes(b'model-id = "\xff"')
    with pytest.raises(CycloptsError, match="is not TOML: 'utf-8' codec"):
        parse_options(["--config", str(path)])


@pytest.mark.contract("R1.22")
@pytest.mark.parametrize(
    ("given", "port"),
    [("8081", 8081), ("65535", 65535), ("65536", 3), ("-1", 3), ("x", 3), ("", 3)],
)
def test_vertex_ais_port_beats_every_other(given: Any, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("AIP_HTTP_PORT", given)
    assert parse_options(["--port", "3"]).port == port


VLLM = """
# a file of vLLM's
model: org/m
host: 127.0.0.1
port: 8000
tensor-parallel-size: 2
max_model_len: 2048
gpu-memory-utilization: 0.8
enable-prefix-caching: false
enforce-eager: true
dtype: bfloat16
served-model-name: m
revision:
api-key: [a, b]
"""


@pytest.mark.parametrize("name", ["vllm.yaml", "vllm.yml"])
def test_a_file_of_vllm_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(VLLM)
    options = parse_options(["--config", str(tmp_path / name), "--port", "1"])
    assert attrs.evolve(options, config=None) == Options(
        model_id="org/m",
        hostname="127.0.0.1",
        port=1,
        num_shard=2,
        max_total_tokens=2048,
        memory_fraction=0.8,
        prefix_caching=False,
        dtype="bfloat16",
        served_model_name="m",
        api_key=("a", "b"),
        ignored=IgnoredFlags(enforce_eager=True),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is not YAML"), ("- a", "must have options"), ("modle: x", "Did you mean model"), ("", "")],
)
def test_a_yaml_file_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    arguments = ["--config", str(tmp_path / "c.yaml")]
    if not said:
        assert attrs.evolve(parse_options(arguments), config=None) == Options()
        return
    with pytest.raises(CycloptsError, match=said) as caught:
        parse_options(arguments)
    assert str(tmp_path / "c.yaml") in str(caught.value)
