"""Checks that Gaudi's software, torch, Python, driver and firmware belong together."""

import re
from collections.abc import Mapping, Sequence

from tgi.plugins.check import Check, fail, ok, warn

from .gaudi_releases import RELEASES, is_known_minor, known_pair, public_version

PLUGIN = "habana-torch-plugin"
"""Distribution of the bridge between torch and the cards."""
_IMAGE = "Use Intel's PyTorch image of one release, and let nothing replace its torch."


def check_software(versions: Mapping[str, str]) -> Check:
    """Check the bridge, torch and Python. `versions` are by distribution, and of "python"."""
    name, plugin, torch = "software", versions.get(PLUGIN), versions.get("torch", "none")
    if plugin is None:
        return fail(name, f"The bridge of Gaudi's software, {PLUGIN}, is not installed.", _IMAGE)
    release = _numbers(plugin, 3)
    known = known_pair(release)
    python = _numbers(versions.get("python", ""), 2)
    found = f"Gaudi software {release}, torch {torch}, Python {python}."
    if known is None and is_known_minor(release):
        advice = "This patch is newer than the server; others of its release are known to work alike."
        return warn(name, found, advice)
    if known is None:
        return warn(name, found, f"This release is not known; the known ones are {', '.join(RELEASES)}.")
    own_torch, pythons = known
    if public_version(torch) != own_torch:
        return fail(name, f"{found} That release is made for torch {own_torch}.", _IMAGE)
    if pythons and python not in pythons:
        return fail(name, f"{found} That release is made for Python {' or '.join(pythons)}.", _IMAGE)
    return ok(name, found)


def check_driver(driver: str, versions: Mapping[str, str]) -> Check:
    """Check the host's driver against the software of this process."""
    name, plugin = "driver", versions.get(PLUGIN, "")
    if not driver:
        advice = "Install hl-smi here (package habanalabs-firmware-tools), and see if it lists the cards."
        return warn(name, "The version of the driver is unknown: hl-smi does not report it.", advice)
    ours, theirs = _release(plugin), _release(driver)
    if not plugin or ours == theirs:
        return ok(name, f"Driver {driver}.")
    found = f"Driver {driver}, and Gaudi software {_numbers(plugin, 3)}."
    if theirs < ours:
        advice = (
            f"Update the host's driver to {_numbers(plugin, 2)}, or use an image of {_numbers(driver, 2)}."
        )
        return fail(name, f"{found} The driver is older.", advice)
    advice = f"Use an image of {_numbers(driver, 2)}: another one ends with synStatus 26."
    return fail(name, f"{found} The driver is newer.", advice)


def check_firmware(firmware: Sequence[str], driver: str) -> Check:
    """Check the firmware in the cards' flash memory against the driver."""
    name = "firmware"
    if not firmware:
        return ok(name, "hl-smi does not report the version of the firmware.")
    found = f"Firmware {', '.join(sorted(set(firmware)))}."
    if len({_release(version) for version in firmware}) > 1:
        advice = "Bring all cards to the driver's version with hl-fw-loader."
        return warn(name, f"{found} The cards differ.", advice)
    if driver and _release(firmware[0]) != _release(driver):
        advice = f"Update it on the host to that of driver {_numbers(driver, 3)}, with hl-fw-loader."
        return warn(name, f"{found} The driver is {driver}.", advice)
    return ok(name, found)


def _numbers(version: str, count: int) -> str:
    """Return the first numbers of a version: "1.21" of "1.21.0.555"."""
    return ".".join(re.findall(r"\d+", version)[:count])


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
