"""What `check_architecture` says of faults that authors of adapters make."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.installed import install
from tgi.plugins import load_plugins
from tgi.testing.check_architecture import check_architecture
from tgi.testing.models import make_llama


@pytest.fixture(scope="module", autouse=True)
def _faulty_llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "faulty-llamas", (Path(__file__).parent / "faulty_llamas.py").read_text())
    sys.path.insert(0, str(folder))
    load_plugins.cache_clear()
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("faulty_llamas")
    load_plugins.cache_clear()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same checkpoint, run by another model."""
    whole = make_llama(tmp_path_factory.mktemp("whole"))

    def link(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for file in whole.iterdir():
            (folder / file.name).symlink_to(file)
        config = json.loads((whole / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
        return folder

    return link


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DoubledEmbeddings", "transformers gives something else, from the first token on"),
        ("Epsilon", "from the first token on, .* The difference is small: an epsilon"),
        ("Scale", "from the second token on, .* its scale"),
        ("Theta", r"from the second token on, .* \(theta"),
        ("Window", "from token 9 on, .* a window of attention"),
        (
            "CountedPositions",
            "with the CPU's operations: only with context .* by `batch.positions` .* in chunks by",
        ),
        ("OneCache", "with the CPU's operations: only with context .* the number of its own layer"),
        ("EqualRows", "with the CPU's operations: only with several rows .* not taken from `batch.last`"),
        ("Decoding", "with the CPU's operations: only in decode steps"),
        ("Capacity", "with plain torch .*: only with padding: the model reads it"),
        (
            "Deciding",
            "on a simulated gaudi2-lazy: it fails: .* a value is read on the host .*faulty_llamas.py",
        ),
        ("NotSummed", "on 2 ranks: all is right on one rank: .* not summed"),
        ("SummedOnOne", "on 2 ranks: RanksApartError: .* not every rank calls the same collectives"),
        (
            "Miscounting",
            r"rank 0 of 1 keeps [\d,]+ bytes .* asked for [\d,]+: .* keeps one twice",
        ),
    ],
)
def test_a_fault_is_told_in_words(faulty: Callable[[str], Path], name: str, words: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){words}"):
        check_architecture(faulty(name), cards=["gaudi2-lazy"] if name == "Deciding" else [])


def test_a_fault_is_found_in_a_long_prompt(faulty: Callable[[str], Path]) -> None:
    with pytest.raises(AssertionError, match="from token 9 on"):
        check_architecture(faulty("Window"), lengths=[5, 95], cards=[])


def test_there_is_room_for_long_prompts(tmp_path: Path) -> None:
    """Five rows of 305 tokens are more than a step takes by default."""
    check_architecture(make_llama(tmp_path), lengths=[5, 300], cards=[], ranks=0)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.norm.weight", None, "has no tensor .*model.norm.weight.* has another name in model.py"),
        ("model.extra", torch.ones(3), "no layer of this model reads.*model.extra.* `build.weights.dismiss"),
        ("model.norm.weight", torch.ones(3), r"shape \[3\].*\[64\].* a field of the config"),
    ],
)
def test_a_checkpoint_that_is_not_the_models(
    tmp_path: Path, name: str, change: torch.Tensor | None, words: str
) -> None:
    file = make_llama(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if change is None else {**tensors, name: change}, file)

    with pytest.raises(AssertionError, match=f"(?s)the model cannot be loaded: .*{words}"):
        check_architecture(tmp_path)
