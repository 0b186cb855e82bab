"""Every kind of checkpoint of every family on an NVIDIA GPU, where there is one, against transformers.

`check_architecture` computes texts in every way in which a server may; each step is a CUDA graph here.
"""

from pathlib import Path

import pytest
import torch

from tests.falcon_models import VARIANTS, make_falcon
from tests.test_families import CONFIGS
from tgi.testing.check_architecture import check_architecture
from tgi.testing.checkpoints import make_checkpoint
from tgi.worker.runner import open_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config, reference = CONFIGS[name], None
    if callable(config):
        reference = config(tmp_path, monkeypatch)
    else:
        make_checkpoint(tmp_path, config)
    check_architecture(tmp_path, reference=reference, cards=(), ranks=0, devices=[open_device("cuda", 1)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_falcon(tmp_path: Path, variant: str) -> None:
    folder = make_falcon(tmp_path, variant)
    check_architecture(folder, cards=(), ranks=0, devices=[open_device("cuda", 1)])
