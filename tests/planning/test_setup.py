"""What is known before ranks start: the number of ranks, the model's plugin, limits, commands for ranks."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options
from tgi.layers.loading import describe
from tgi.limits import Limits
from tgi.planning.setup import count_shards, find_device, read_setup
from tgi.plugins import ConfigError, devices, load_plugins
from tgi.protocol import AttentionWorkspace
from tgi.testing.models import make_llama

from .descriptions import make_group

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
        ({"sharded": "true", "replicas": 2}, {DEVICES: "all", MODULES: "4,5,6,7"}, 2),
        ({"sharded": "true", "replicas": 4}, {DEVICES: "all", MODULES: "4,5,6,7"}, 1),
        ({"num_shard": 2, "replicas": 2}, {MODULES: "4,5,6,7"}, 2),
    ],
)
def test_how_many_ranks_there_are(
    tmp_path: Path, options: dict[str, Any], environment: dict[str, str], ranks: int
) -> None:
    for name in ("accel0", "accel1", "accel2", "accel_controlD0"):
        (tmp_path / name).touch()
    device = attrs.evolve(GAUDI, card_files=f"{tmp_path}/{Path(GAUDI.card_files).name}")
    assert count_shards(Options(**options), device, environment) == ranks
    if options.get("num_shard"):
        assert count_shards(Options(**options), CPU, environment) == ranks


def test_ranks_that_there_cannot_be() -> None:
    with pytest.raises(
        OptionError, match="`sharded` is true but only found 0 cards of cpu: give --num-shard"
    ):
        count_shards(Options(sharded="true"), CPU, {DEVICES: "0,1"})
    with pytest.raises(OptionError, match="only found 1 cards of hpu"):
        count_shards(Options(sharded="true"), GAUDI, {DEVICES: "3"})
    with pytest.raises(OptionError, match=f"--num-shard 4 is more than the 2 cards in {MODULES}"):
        count_shards(Options(num_shard=4), GAUDI, {MODULES: "6,7", DEVICES: "all"})

    with pytest.raises(
        OptionError, match=f"--num-shard 1 times --replicas 3 is more than the 2 cards in {MODULES}"
    ):
        count_shards(Options(replicas=3), GAUDI, {MODULES: "6,7"})


@pytest.mark.parametrize(
    ("options", "environment", "cards"),
    [
        ({"replicas": 2}, {}, ["0", "1"]),
        ({"replicas": 2, "num_shard": 4}, {MODULES: "all"}, ["0,1,2,3", "4,5,6,7"]),
        ({"replicas": 2, "num_shard": 2}, {MODULES: "7,6,3,2"}, ["7,6", "3,2"]),
    ],
)
def test_each_replica_has_its_own_cards(
    tmp_path: Path, options: dict[str, Any], environment: dict[str, str], cards: list[str]
) -> None:
    setup = read_setup(make_llama(tmp_path), Options(**options), GAUDI, environment)
    assert [setup.own_cards(replica, environment) for replica in (0, 1)] == [{MODULES: one} for one in cards]
    assert attrs.evolve(setup, device=CPU).own_cards(1, environment) == {}
    assert attrs.evolve(setup, options=Options()).own_cards(0, environment) == {}


@pytest.mark.parametrize(("replicas", "threads", "each"), [(1, 0, 0), (1, 5, 5), (2, 5, 2), (4, 3, 1)])
def test_replicas_divide_the_threads(tmp_path: Path, replicas: int, threads: int, each: int) -> None:
    setup = read_setup(make_llama(tmp_path), Options(replicas=replicas, threads=threads), CPU)
    assert setup.load_command(setup.limits(), AttentionWorkspace()).threads == each


def test_a_model_is_found_by_its_plugin(tmp_path: Path) -> None:
    setup = read_setup(make_llama(tmp_path), Options(), CPU)
    assert (setup.architecture, setup.device.name, setup.ranks) == ("LlamaForCausalLM", "cpu", 1)
    assert setup.config.vocab_size == json.loads((tmp_path / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            '{"architectures": ["Other", "Another"]}',
            r"Other is not supported: no adapter offers it .* transformers \S+ has",
        ),
        ("{}", "none named"),
        ('{"architectures": 5}', "'architectures' is 5, expected list"),
    ],
)
def test_what_no_plugin_offers_is_told_with_what_there_is(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=said):
        read_setup(tmp_path, Options(), CPU)


def test_a_device_that_nobody_offers_is_told_with_those_there_are() -> None:
    assert find_device("cpu") is CPU
    with pytest.raises(OptionError, match="no device is named 'tpu'; known are cpu"):
        find_device("tpu")


@pytest.mark.parametrize(
    ("changes", "possible"),
    [({"num_attention_heads": 6, "num_key_value_heads": 3}, "1, 3, 6"), ({"intermediate_size": 77}, "1")],
)
def test_numbers_of_ranks_that_a_model_can_be_divided_over(
    tmp_path: Path, changes: dict[str, int], possible: str
) -> None:
    setup = read_setup(make_llama(tmp_path, **changes), Options(num_shard=2), CPU)
    with pytest.raises(ConfigError, match=f"divided over 2 ranks; --num-shard can be {possible}$"):
        describe(setup.describe_command())


def test_limits_follow_the_layers_that_see_most(tmp_path: Path) -> None:
    """The size of the cache can be checked only when windows are known."""
    options = Options(max_total_tokens=1000, max_batch_prefill_tokens=64, max_batch_total_tokens=163)
    setup = read_setup(make_llama(tmp_path), options, CPU)

    def limits(*windows: int | None) -> Limits:
        return setup.limits([make_group(window=window) for window in windows])

    assert limits().max_batch_total_tokens is None
    assert limits(100).window == 100
    assert limits(50, 100).window == 100
    with pytest.raises(OptionError, match="`max_total_tokens` must be <= `max_batch_total_tokens`"):
        limits(100, None)


def test_ranks_are_told_how_large_steps_will_be(tmp_path: Path) -> None:
    options = Options(dtype="bfloat16", watermark_delta=3.0, kv_cache_dtype="fp8_e4m3fn")
    setup = read_setup(make_llama(tmp_path), options, GAUDI)
    attention = AttentionWorkspace(gathered_blocks=5)
    command = setup.load_command(Limits(max_batch_size=8, block_size=128), attention, top=28)
    assert (command.dtype, command.lanes, command.watermark_delta) == ("bfloat16", 8, 3.0)
    assert (command.attention, command.block_size, command.prefill_tokens) == (attention, 128, 512)
    assert (command.kv_cache_dtype, command.top, command.dummy) == ("fp8_e4m3fn", 28, False)
    made_up = attrs.evolve(setup, options=attrs.evolve(options, load_format="dummy"))
    assert made_up.load_command(Limits(), attention).dummy
    assert made_up.describe_command().dummy


def test_a_dtype_of_the_cache_that_the_device_lacks(tmp_path: Path) -> None:
    setup = read_setup(make_llama(tmp_path), Options(kv_cache_dtype="fp8_e4m3fn"), CPU)
    with pytest.raises(ConfigError, match="a KV cache of 'fp8_e4m3fn' is not supported on this device"):
        setup.describe_command()


def test_stages_divide_the_cards() -> None:
    eight = {MODULES: "0,1,2,3,4,5,6,7"}
    assert count_shards(Options(sharded="true", pipeline_parallel_size=2), GAUDI, eight) == 4
    assert count_shards(Options(pipeline_parallel_size=2), GAUDI, eight) == 1
    with pytest.raises(OptionError, match="8 cards, which --pipeline-parallel-size 3 does not divide"):
        count_shards(Options(sharded="true", pipeline_parallel_size=3), GAUDI, eight)
    with pytest.raises(
        OptionError, match="--num-shard 4 times --pipeline-parallel-size 4 is more than the 8"
    ):
        count_shards(Options(num_shard=4, pipeline_parallel_size=4), GAUDI, eight)
