"""Only a device's own folder names its cards and its vendor."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "tgi"
NAMES = re.compile(
    r"gaudi|habana|\bhpu|hpu\b|\bhl-|cuda|nvidia|\bnccl|\bhccl|triton\b|\bintel\b", re.IGNORECASE
)
ALLOWED = {
    "device/cpu",
    "device/cuda",
    "device/hpu",
    "testing",  # checks of adapters run on the simulated card
    "client/env.py",  # versions and variables for reports of faults
    "config.py",  # variables of other servers, by their names there
    "compat_flags.py",
    "weights/formats/auto_round.py",  # the name that its checkpoints give the format
}


def test_no_card_or_vendor_is_named_outside_its_folder() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py"))
        if not any(str(path.relative_to(ROOT)).startswith(place) for place in ALLOWED)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if NAMES.search(line)
    ]
    assert named == []
