"""Folders in which a device keeps what it has compiled, so that the next start reads it instead.

What is compiled (a recipe) is good for one software release, model of card, number of ranks, dtype, model and
set of buckets only. Each combination has its own folder in that of --recipe-cache; ranks share it.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from tgi.config import OptionError, Options
from tgi.plugins.machine import Machine
from tgi.scheduler.buckets import Buckets

from .model import DEMO_ID, Model

log = logging.getLogger(__name__)


def prepare_recipes(model: Model, buckets: Buckets, options: Options) -> dict[str, str]:
    """Make the folder for what a device compiles, if one is wanted, and return the variables for ranks.

    Raises OptionError.
    """
    device, machine = model.device, Machine()
    if options.recipe_cache is None:
        return {}
    if not device.compile_cache:
        log.warning("--recipe-cache has no effect: %s keeps nothing that it compiles", device.name)
        return {}
    folder = recipe_folder(
        options.recipe_cache.absolute(),
        model=options.model_id or DEMO_ID,
        config=attrs.asdict(model.config),
        dtype=options.compute_dtype,
        ranks=options.num_shard or 1,
        card=device.card(machine)[0],
        software=machine.versions(("tgi", "torch", *device.compile_packages)),
        buckets=buckets,
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
    buckets: Iterable[object],
) -> Path:
    """The folder for these: its name can be read as far as that is short, and ends in a digest of all.

    `config`: the model's config.json as it is used. `buckets`: in any order; each is known by its repr.
    """
    key = [model, config, dtype, ranks, card, software, sorted(map(repr, buckets))]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    words = [Path(model).name, dtype, f"{ranks}x{card}", digest]
    return root / re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))
