"""What a user types: `tgi serve` and other commands; `text-generation-launcher` is `tgi serve`.

Only what --help needs is imported at the top; the server comes with its first use. An error of the user is
one line on stderr: exit code 2 where the command line is to blame, 1 otherwise.
"""

import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import attrs
from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, HelpEntry
from rich.console import RenderableType
from rich.text import Text

from tgi import flags
from tgi.config import Options, map_legacy_variables
from tgi.foreign import foreign_flags
from tgi.limits import Limits
from tgi.sources import add_sources


def _name(entry: HelpEntry) -> RenderableType:
    """What to type for an option. vLLM's names are left to docs/options.md."""
    if entry.positional_label:
        return entry.positional_label
    short = "".join(f"{name}, " for name in entry.positive_shorts if len(name) == 2)
    name = entry.positive_names[0]
    if entry.negative_names:
        name = name.replace("--", "--[no-]", 1)
    return Text(" ".join(word for word in (short + name, entry.metavar) if word))


def _description(entry: HelpEntry) -> RenderableType:
    default = None if entry.default in ("False", "True", "()") else entry.default
    return DescriptionRenderer()(attrs.evolve(entry, default=default))


_COLUMNS = (
    ColumnSpec(renderer=_name, style="cyclopts.name", min_width=30, max_width=30, overflow="fold"),
    ColumnSpec(renderer=_description, overflow="fold"),
)


def _app(name: str, about: str) -> App:
    return App(
        name=name,
        help=about,
        version=f"{name} {importlib.metadata.version('tgi')}",
        version_flags=("--version", "-V"),
        result_action="return_value",
        config=add_sources,
        help_formatter=DefaultFormatter(column_specs=_COLUMNS),
    )


app = _app("tgi", "A text-generation server: the drop-in successor of Hugging Face TGI.")
_SERVE = """Serve a model over HTTP.

Every flag has an environment variable, MAX_INPUT_TOKENS for --max-input-tokens, and a key in the file of
--config. A flag beats a variable, and a variable beats the file.

Ctrl-C or SIGTERM ends the server when the running requests are done, a second one at once.
"""
_PLAN = """Show what a server needs and reaches, with neither a card nor weights.

Takes the flags of `tgi serve`. --device is gaudi2, gaudi3 or cpu; --model-id may be a folder with nothing but
config.json. Prints how the memory is divided, which buckets there are, how long their warm-up takes, and what
speed the card allows. Ends with exit code 1 if the memory does not do.
"""
_DOCTOR = """Check this machine and its cards, and say in a sentence what to do about each fault.

Takes the flags of `tgi serve`, and looks at what a server with these needs: --device, --num-shard, --port,
--recipe-cache. Opens the device and tries it. Ends with exit code 1 if a server would not run.
"""
launcher_app = _app("text-generation-launcher", _SERVE)
launcher_app.help_epilogue = foreign_flags()


@app.command(help=_SERVE, help_epilogue=foreign_flags(), sort_key=0)
def serve(
    model: Annotated[str | None, Parameter(group=flags.MODEL, help="The same as --model-id.")] = None,
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),  # noqa: B008
) -> int:
    """`tgi serve`. Returns the exit code."""
    return launch(options=options if model is None else attrs.evolve(options, model_id=model))


@launcher_app.default
def launch(*, options: Annotated[Options, Parameter(name="*")] = Options()) -> int:  # noqa: B008
    """`text-generation-launcher`. Returns the exit code."""
    from tgi.server import run

    return run(options)


@app.command
def download_weights(
    model_id: str,
    *,
    revision: Annotated[str | None, Parameter(env_var="REVISION")] = None,
    extension: str = ".safetensors",
    huggingface_hub_cache: Annotated[
        Path | None, Parameter(env_var=("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"))
    ] = None,
) -> int:
    """Fetch a model into the cache and convert old formats, so that serving it needs no network.

    Parameters
    ----------
    model_id
        An id on the Hugging Face Hub, or a folder.
    revision
        Branch, tag or commit.
    extension
        Which weight files to prefer; others are converted to .safetensors.
    huggingface_hub_cache
        Where models are kept. Without it, $HF_HOME/hub.
    """
    from tgi.hub import HubError, Source, find_model

    os.environ.update(map_legacy_variables())
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        folder = find_model(Source(model_id, revision, huggingface_hub_cache, extension))
    except HubError as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


@app.command(help=_PLAN)
def plan(
    model: Annotated[str | None, Parameter(group=flags.MODEL, help="The same as --model-id.")] = None,
    /,
    *,
    plot: Annotated[Path | None, Parameter(group=flags.PLAN, metavar="FILE", negative="")] = None,
    json_: Annotated[bool, Parameter(group=flags.PLAN, name="--json", negative="")] = False,
    options: Annotated[Options, Parameter(name="*")] = Options(),  # noqa: B008
) -> int:
    """Show a plan.

    Parameters
    ----------
    plot
        Draw it as a picture, .png, .svg or .pdf.
    json_
        Print it as JSON.
    """
    from tgi.planning.show import show_plan

    given = options if model is None else attrs.evolve(options, model_id=model)
    return show_plan(given, picture=plot, as_text=json_)


@app.command(help=_DOCTOR)
def doctor(
    *,
    json_: Annotated[bool, Parameter(group=flags.DOCTOR, name="--json", negative="")] = False,
    options: Annotated[Options, Parameter(name="*")] = Options(),  # noqa: B008
) -> int:
    """Check a machine.

    Parameters
    ----------
    json_
        Print the checks as JSON.
    """
    from tgi.doctor.show import show_checks

    return show_checks(options, as_json=json_)


@app.command
def plugins(*, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """List the plugins that are installed, what they offer, and what is wrong with them.

    Ends with exit code 1 if anything is wrong.

    Parameters
    ----------
    json_
        Print it as JSON.
    """
    from tgi.plugins.show import show_plugins

    return show_plugins(as_json=json_)


@app.command
def print_schema() -> int:
    """Print the OpenAPI document of a server with the default limits, as text-generation-router does."""
    from tgi.api.openapi import document

    print(json.dumps(document(Limits()), indent=2))
    return 0


def parse_options(arguments: Sequence[str] = ()) -> Options:
    """What text-generation-launcher would start with. Raises CycloptsError, whose text is one line."""
    _, bound, _ = launcher_app.parse_args(arguments, exit_on_error=False, print_error=False)
    options: Options = bound.arguments.get("options", Options())
    return options


def options_from_environment() -> Options:
    """The options that the environment alone gives. Exits with code 2 and one line when it is wrong."""
    with _usage_errors():
        return parse_options()


def main() -> None:
    """Entry point of `tgi`."""
    _run(app)


def launcher() -> None:
    """Entry point of `text-generation-launcher`."""
    _run(launcher_app)


def _run(command: App) -> None:
    with _usage_errors():
        sys.exit(command(exit_on_error=False, print_error=False))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except UnusedCliTokensError as error:
        unexpected = (error.unused_tokens or [""])[0]
        _fail(f'Unexpected argument "{unexpected}".')
    except CycloptsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it; `tgi serve` takes the signal itself once it is up


def _fail(reason: str) -> NoReturn:
    print(f"tgi: {' '.join(reason.split())} --help lists all flags.", file=sys.stderr)
    sys.exit(2)
