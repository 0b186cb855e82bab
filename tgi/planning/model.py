"""What is known of a model before it is loaded: who runs it, and on which device."""

import logging
from pathlib import Path

import attrs

from tgi.config import OptionError, Options
from tgi.plugins import Architecture, DeviceSpec, ModelConfig, devices, load_plugins

from .setup import read_architecture

log = logging.getLogger(__name__)
DEMO_ID = "tgi-demo"
"""What `/info` calls the model that comes with the package."""


@attrs.frozen
class Model:
    """What is known of a model before it is loaded."""

    folder: Path
    architecture: Architecture
    config: ModelConfig
    device: DeviceSpec
    overrides: dict[str, object]
    """Keys of config.json that the options replace."""


def describe_model(folder: Path, options: Options) -> Model:
    """Read config.json and find the plugins for it. Raises ConfigError or OptionError."""
    plugins = load_plugins()
    for problem in plugins.problems:
        log.warning("%s", problem)
    architecture, config, overrides = read_architecture(folder, options)
    found = devices(plugins)
    if options.device not in found:
        raise OptionError(f"there is no device {options.device!r}; there are {', '.join(sorted(found))}")
    return Model(folder, architecture, config, found[options.device], overrides)


def prefix_limit(model: Model, options: Options) -> int | None:
    """How many tokens of a prompt may come from another's cache; None: all."""
    return model.config.prefix_limit if options.prefix_caching else 0
