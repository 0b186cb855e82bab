"""Where a Gaudi keeps what it has compiled, so that the next start reads it instead.

Recipes are good for one software release, generation of cards, number of ranks, dtype, model and set of
buckets only. Each combination has a folder of its own in the one that the user gives; ranks share it.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from os import environ
from pathlib import Path
from typing import Any

import attrs

from tgi.config import OptionError, Options
from tgi.scheduler.buckets import Buckets

from .cards import installed_card
from .model import DEMO_ID, Model

VARIABLE = "PT_HPU_RECIPE_CACHE_CONFIG"
"""Folder, whether to empty it first, its limit in MB, whether it is on a network file system."""
MEGABYTES = 8192
HABANA = "0x1da3"
"""Of PCI vendors."""
SOFTWARE = ("tgi", "torch", "habana-torch-plugin")


def prepare_recipes(model: Model, buckets: Buckets, options: Options) -> dict[str, str]:
    """Make the folder for what a device compiles, if one is wanted; variables that tell the ranks of it.

    Raises OptionError.
    """
    if options.recipe_cache is None or not model.device.compiles:
        return {}
    folder = recipe_folder(
        options.recipe_cache.absolute(),
        model=options.model_id or DEMO_ID,
        config=attrs.asdict(model.config),
        dtype=options.compute_dtype,
        ranks=options.num_shard or 1,
        generation=installed_generation() or installed_card("", environ),
        software=installed_software(),
        buckets=buckets,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--recipe-cache: {error.filename} cannot be made: {error.strerror}") from error
    return recipe_environment(folder)


def recipe_folder(
    root: Path,
    *,
    model: str,
    config: Mapping[str, Any],
    dtype: str,
    ranks: int,
    generation: str,
    software: Mapping[str, str],
    buckets: Iterable[object],
) -> Path:
    """The folder for these: its name can be read as far as that is short, and ends in a digest of all.

    `config`: the model's config.json as it is used. `buckets`: in any order; each is known by its repr.
    """
    key = [model, config, dtype, ranks, generation, software, sorted(map(repr, buckets))]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    words = [Path(model).name, dtype, f"{ranks}x{generation or 'card'}", digest]
    return root / re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))


def recipe_environment(folder: Path) -> dict[str, str]:
    """What tells the ranks of it."""
    return {VARIABLE: f"{folder},false,{MEGABYTES},false"}


def installed_software(names: Iterable[str] = SOFTWARE) -> dict[str, str]:
    """The versions of what decides whether a recipe can be used."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed_generation(devices: Path = Path("/sys/bus/pci/devices")) -> str:
    """Which Gaudis are in this machine, by their PCI ids: "1020" for a Gaudi2; "" where there is none."""
    ids = set()
    for device in devices.glob("*"):
        if _text(device / "vendor") == HABANA:
            ids.add(_text(device / "device").removeprefix("0x"))
    return "-".join(sorted(ids))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
