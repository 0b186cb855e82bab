"""Which versions of Gaudi's software, torch, Python, driver and firmware go together."""

import re
from collections.abc import Mapping, Sequence

from .check import Check, fail, ok, warn
from .pairs import RELEASES

PLUGIN = "habana-torch-plugin"
"""The package of the bridge."""
_IMAGE = "Use Intel's PyTorch image of one release, and let nothing replace its torch."


def check_software(software: Mapping[str, str]) -> Check:
    """The bridge, torch and Python against each other. `software`: versions by package, and of "python"."""
    name, plugin, torch = "software", software.get(PLUGIN), software.get("torch", "none")
    if plugin is None:
        found = f"The bridge of Gaudi's software, {PLUGIN}, is not installed."
        return fail(name, found, _IMAGE)
    release = _numbers(plugin, 3)
    known = RELEASES.get(release) or RELEASES.get(_numbers(plugin, 2))
    python = _numbers(software.get("python", ""), 2)
    found = f"Gaudi software {release}, torch {torch}, Python {python}."
    if known is None:
        advice = f"Nothing is known of this release; those that are known are {', '.join(RELEASES)}."
        return warn(name, found, advice)
    wanted, pythons = known
    if torch.partition("+")[0] != wanted:
        return fail(name, f"{found} That release is made for torch {wanted}.", _IMAGE)
    if pythons and python not in pythons:
        return fail(name, f"{found} That release is made for Python {' or '.join(pythons)}.", _IMAGE)
    return ok(name, found)


def check_driver(driver: str, software: Mapping[str, str]) -> Check:
    """The driver of the host against the software here."""
    name, plugin = "driver", software.get(PLUGIN, "")
    if not driver:
        advice = (
            "Install hl-smi here (package habanalabs-firmware-tools), and look whether it lists the cards."
        )
        return warn(name, "The version of the driver is not known: hl-smi does not tell it.", advice)
    found = f"Driver {driver}."
    ours, theirs = _release(plugin), _release(driver)
    if not plugin or ours == theirs:
        return ok(name, found)
    found = f"Driver {driver}, and Gaudi software {_numbers(plugin, 3)}."
    if theirs < ours:
        advice = (
            f"Update the host's driver to {_numbers(plugin, 2)}, or use an image of {_numbers(driver, 2)}."
        )
        return fail(name, f"{found} The driver is older.", advice)
    advice = f"Use an image of {_numbers(driver, 2)}: Intel supports equal versions only."
    return warn(name, f"{found} The driver is newer.", advice)


def check_firmware(firmware: Sequence[str], driver: str) -> Check:
    """What is in the flash of the cards against the driver."""
    name = "firmware"
    if not firmware:
        return ok(name, "hl-smi tells no version of the firmware.")
    found = f"Firmware {', '.join(sorted(set(firmware)))}."
    if len({_release(version) for version in firmware}) > 1:
        advice = "Bring all cards to that of the driver with hl-fw-loader."
        return warn(name, f"{found} The cards differ.", advice)
    if driver and _release(firmware[0]) != _release(driver):
        advice = f"Update it on the host to that of driver {_numbers(driver, 3)}, with hl-fw-loader."
        return warn(name, f"{found} The driver is {driver}.", advice)
    return ok(name, found)


def _numbers(version: str, count: int) -> str:
    """The first numbers of a version: "1.21" of "1.21.0.555"."""
    return ".".join(re.findall(r"\d+", version)[:count])


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
