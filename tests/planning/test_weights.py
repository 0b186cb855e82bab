"""What weights take, by the files and by what the architecture says."""

from pathlib import Path

import attrs
import pytest

from tgi.planning.weights import rank_bytes, rank_numbers, read_shapes
from tgi.plugins import ConfigError, ModelConfig, Weight
from tgi.testing.models import llama_config, llama_tensors, make_llama

from .llamas import LLAMA_31_70B, read

UNKNOWN = ModelConfig(
    vocab_size=10, hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=2, max_position=9
)


@attrs.frozen(kw_only=True)
class Told(ModelConfig):
    def weights(self) -> list[Weight]:
        return [Weight("whole", (10, 4)), Weight("rows", (10, 4), 0), Weight("columns", (10, 4), 1)]


TOLD = Told(**attrs.asdict(UNKNOWN))


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_have_the_shapes_of_all_tensors(tmp_path: Path, shards: int) -> None:
    make_llama(tmp_path, shards=shards)
    expected = {name: tuple(tensor.shape) for name, tensor in llama_tensors(llama_config()).items()}
    assert read_shapes(tmp_path) == expected


def test_a_folder_without_weights_has_no_shapes(tmp_path: Path) -> None:
    assert read_shapes(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x07\0\0\0\0\0\0\0{"a":5}',
        b'\x08\0\0\0\0\0\0\0{"a":{}}',
        b"version https://git-lfs",
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file"):
        read_shapes(tmp_path)


@pytest.mark.parametrize(
    ("ranks", "numbers"), [(1, 120), (2, 40 + 20 + 20), (3, 40 + 16 + 20), (4, 40 + 12 + 10)]
)
def test_a_rank_keeps_its_part_of_what_is_divided(ranks: int, numbers: int) -> None:
    assert rank_numbers(TOLD, {}, ranks) == numbers


def test_the_files_know_better() -> None:
    assert rank_numbers(TOLD, {"rows": (20, 4), "other": (5,)}, 2) == 40 + 40 + 20


def test_files_of_a_model_whose_adapter_says_nothing_are_taken_to_be_divided() -> None:
    assert rank_numbers(UNKNOWN, {"a": (3, 5), "b": (6,)}, 2) == 11
    with pytest.raises(ConfigError, match="the size of the weights is not known"):
        rank_numbers(UNKNOWN, {}, 1)


def test_linear_layers_in_fp8_take_a_byte_for_each_number() -> None:
    """What is left in bfloat16: the embedding, the head, and two norms a layer and one."""
    config = LLAMA_31_70B | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}
    for ranks in (1, 8):
        whole = rank_numbers(read(LLAMA_31_70B), {}, ranks)
        wide = 2 * 128256 // ranks * 8192 + 161 * 8192
        assert rank_bytes(read(config), {}, ranks, 2) == whole + wide
        assert rank_bytes(read(LLAMA_31_70B), {}, ranks, 2) == 2 * whole


def test_llama_70b_on_eight_and_sixteen_cards() -> None:
    """Everything is divided but the norms, which every card has; and of 8 key/value heads each has one at
    least."""
    norms, keys = 161 * 8192, 80 * 2 * 8 * 128 * 8192
    assert rank_numbers(read(LLAMA_31_70B), {}, 8) == (70_553_706_496 - norms) // 8 + norms
    assert (
        rank_numbers(read(LLAMA_31_70B), {}, 16) == (70_553_706_496 - norms - keys) // 16 + keys // 8 + norms
    )
