"""Loading on a simulated Gaudi in lazy mode, where copies into parts of a tensor pile up on the card."""

import pytest
import torch
from tgi_simulated_gaudi.device import open_card

from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker.runner import Runner


@pytest.mark.parametrize("ranks", [1, 2])
@torch.inference_mode()
def test_loading_takes_the_weights_and_twice_the_largest_tensor_at_most(tmp_path, ranks):
    """Twice, since a linear layer's weight may be transposed on the card."""
    folder = make_llama(tmp_path, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    with open_card("gaudi2-lazy") as device:
        memory = device.card.memory
        before = memory.in_use
        runner = Runner.load(load_command(folder, device="hpu-sim"), Shard(0, ranks), device)
        device.bridge.hpu.synchronize()
        assert memory.in_use - before > 8 * memory.largest, "so that all tensors once more would be seen"
        assert memory.peak <= memory.in_use + 2 * memory.largest
        del runner
