"""How many ranks a model is divided over, from the options and the cards of the machine."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options
from tgi.planning.setup import count_ranks, read_architecture
from tgi.plugins import ConfigError, devices, load_plugins
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
MODULES, DEVICES = "HABANA_VISIBLE_MODULES", "HABANA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("options", "environment", "ranks"),
    [
        ({}, {DEVICES: "0,1"}, 1),
        ({"sharded": "false"}, {DEVICES: "0,1"}, 1),
        ({"sharded": "true"}, {DEVICES: "0,1"}, 2),
        ({"sharded": "true"}, {DEVICES: "all", MODULES: "4,5,6,7"}, 4),
        ({"sharded": "true"}, {DEVICES: "all"}, 3),
        ({"sharded": "true"}, {DEVICES: ""}, 3),
        ({"sharded": "true", "num_shard": 2}, {DEVICES: "0,1,2"}, 2),
        ({"num_shard": 2}, {}, 2),
    ],
)
def test_how_many_ranks_there_are(
    tmp_path: Path, options: dict[str, Any], environment: dict[str, str], ranks: int
) -> None:
    for name in ("accel0", "accel1", "accel2", "accel_controlD0"):
        (tmp_path / name).touch()
    device = attrs.evolve(GAUDI, card_files=f"{tmp_path}/{Path(GAUDI.card_files).name}")
    assert count_ranks(Options(**options), device, environment) == ranks
    if options.get("num_shard"):
        assert count_ranks(Options(**options), CPU, environment) == ranks


def test_ranks_that_there_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="`sharded` is true but only found 0 cards of cpu: give --num-shard"
    ):
        count_ranks(Options(sharded="true"), CPU, {DEVICES: "0,1"})
    with pytest.raises(OptionError, match="only found 1 cards of hpu"):
        count_ranks(Options(sharded="true"), GAUDI, {DEVICES: "3"})
    with pytest.raises(OptionError, match=f"--num-shard 4 is more than the 2 cards in {MODULES}"):
        count_ranks(Options(num_shard=4), GAUDI, {MODULES: "6,7", DEVICES: "all"})
    config = read_architecture(make_llama(tmp_path, num_attention_heads=6, num_key_value_heads=3), Options())[
        1
    ]
    config.check_ranks(6)
    with pytest.raises(ConfigError, match=r"cannot be divided over 2 ranks; --num-shard can be 1, 3, 6$"):
        config.check_ranks(2)
    config = read_architecture(make_llama(tmp_path, intermediate_size=77), Options())[1]
    with pytest.raises(ConfigError, match=r"--num-shard can be 1$"):
        config.check_ranks(2)
