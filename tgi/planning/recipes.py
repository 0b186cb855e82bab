"""Folders in which a device keeps what it has compiled, so that the next start reads it instead.

A compiled program is good for one release of the software, model of card, number of ranks, dtype and model.
Each combination has its own folder in that of --recipe-cache, which all ranks share.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from tgi.config import OptionError
from tgi.plugins.machine import Machine

from .setup import Setup

log = logging.getLogger(__name__)


def prepare_recipes(setup: Setup) -> dict[str, str]:
    """Make the folder for what a device compiles, and return the variables that tell ranks of it.

    Return none if --recipe-cache has no effect. Raises OptionError.
    """
    device, root, machine = setup.device, setup.options.recipe_cache, Machine()
    if root is None:
        return {}
    if not device.compile_cache:
        log.warning("--recipe-cache has no effect: %s keeps nothing that it compiles", device.name)
        return {}
    folder = recipe_folder(
        root.absolute(),
        model=setup.model_id,
        config=attrs.asdict(setup.config) | {"stages": setup.stages},
        dtype=setup.options.compute_dtype,
        ranks=setup.ranks,
        card=device.card(machine)[0],
        software=machine.versions(("tgi-server", "torch", *device.compile_packages)),
    )
    variables = dict(device.compile_variables(folder))
    for name in variables.keys() & machine.environ.keys():
        log.warning("--recipe-cache has no effect: %s says where recipes are kept", name)
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--recipe-cache: {error.filename} cannot be made: {error.strerror}") from error
    return variables


def recipe_folder(
    root: Path,
    *,
    model: str,
    config: Mapping[str, Any],
    dtype: str,
    ranks: int,
    card: str,
    software: Mapping[str, str],
) -> Path:
    """Return the folder for a combination, whose name has its short parts and a digest of all.

    `config` holds the fields of the model's config.json as they are used.
    """
    key = [model, config, dtype, ranks, card, software]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    words = [Path(model).name, dtype, f"{ranks}x{card}", digest]
    return root / re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))
