"""A few rounds of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent / "chaos" / "chaos.py"


@pytest.mark.slow
@pytest.mark.seconds(300)
def test_nothing_is_lost_when_ranks_die_and_clients_misbehave() -> None:
    command = [sys.executable, CHAOS, "--rounds", "4", "--seed", "4", "--only", "kill", "vanish", "bad", "--"]
    ended = subprocess.run([*command, "--num-shard", "2"], capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "kill: " in ended.stdout
    assert ended.stdout.endswith("nothing was lost\n")
