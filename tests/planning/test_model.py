"""What is known of a model before it is loaded."""

import json
from pathlib import Path

import pytest

from tgi.config import OptionError, Options
from tgi.planning.model import describe_model
from tgi.plugins import ConfigError
from tgi.testing.models import make_llama


def test_a_model_is_described_by_its_plugin(tmp_path: Path) -> None:
    make_llama(tmp_path)
    model = describe_model(tmp_path, Options())
    assert (model.architecture.name, model.device.name) == ("LlamaForCausalLM", "cpu")
    assert model.config.vocab_size == json.loads((tmp_path / "config.json").read_text())["vocab_size"]


def test_what_no_plugin_offers_is_told_with_what_there_is(tmp_path: Path) -> None:
    make_llama(tmp_path)
    with pytest.raises(OptionError, match="there is no device 'tpu'; there are cpu"):
        describe_model(tmp_path, Options(device="tpu"))
    (tmp_path / "config.json").write_text('{"architectures": ["Other", "Another"]}')
    with pytest.raises(
        ConfigError, match=r"Other is not supported: no adapter offers it .* transformers \S+ has"
    ):
        describe_model(tmp_path, Options())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="none named"):
        describe_model(tmp_path, Options())
    (tmp_path / "config.json").write_text('{"architectures": 5}')
    with pytest.raises(ConfigError, match="'architectures' is 5, expected list"):
        describe_model(tmp_path, Options())
