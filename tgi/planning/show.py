"""`tgi plan`: makes the plan and shows it."""

import json
import sys
from pathlib import Path

from rich.console import Console

from tgi.config import OptionError, Options
from tgi.executor import EngineError
from tgi.hub import HubError
from tgi.plugins import ConfigError

from .page import as_json, page
from .picture import PictureError, draw
from .plan import Plan, read_plan


def show_plan(options: Options, *, picture: Path | None = None, as_text: bool = False) -> int:
    """Print the plan as a page, or as JSON, and draw it. Return the exit code.

    It is 1 if the plan cannot be made, or if the memory is too small.
    """
    try:
        plan = _read(options)
        if picture is not None:
            draw(plan, picture)
    except (ConfigError, EngineError, HubError, OptionError, PictureError) as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    if as_text:
        print(json.dumps(as_json(plan), indent=2))
    else:
        Console(highlight=False).print(page(plan))
    return 0 if plan.memory.refusal is None else 1


def _read(options: Options) -> Plan:
    try:
        return read_plan(options)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
