"""`tgi plan`: makes the plan and shows it."""

import json
import sys
from pathlib import Path

from rich.console import Console

from tgi.config import OptionError, Options
from tgi.hub import HubError
from tgi.plugins import ConfigError

from .page import as_json, page
from .picture import PictureError, draw
from .plan import make_plan
from .setup import read_setup


def show_plan(options: Options, *, picture: Path | None = None, as_text: bool = False) -> int:
    """Print the page, or JSON. Returns the exit code: 1 where there can be no plan, or too little memory."""
    try:
        plan = make_plan(read_setup(options))
        if picture is not None:
            draw(plan, picture)
    except (ConfigError, HubError, OptionError, PictureError) as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    if as_text:
        print(json.dumps(as_json(plan), indent=2))
    else:
        Console(highlight=False).print(page(plan))
    return 0 if plan.refusal is None else 1
