"""The command line: `tgi serve` and other commands; `text-generation-launcher` is `tgi serve`.

Only modules that --help needs are imported at the top. A user's mistake is one line on stderr, with exit code
2 if it is on the command line and 1 otherwise.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import attrs
from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError, validators
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, HelpEntry
from rich.console import RenderableType
from rich.text import Text

from tgi import __version__, flags
from tgi.client import commands
from tgi.compat_flags import compat_help
from tgi.config import Options, map_legacy_variables
from tgi.limits import Limits
from tgi.sources import add_sources


def _name(entry: HelpEntry) -> RenderableType:
    """Return the names of an option for --help, without vLLM's, which docs/options.md lists."""
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
        version=f"{name} {__version__}",
        version_flags=("--version", "-V"),
        result_action="return_value",
        config=add_sources,
        help_formatter=DefaultFormatter(column_specs=_COLUMNS),
    )


_ABOUT = """Serve large language models over HTTP: a drop-in successor of Hugging Face TGI.

Begin with `tgi serve`, which serves a small demo model, or `tgi serve org/name` for a model on the Hugging
Face Hub. Once the log says Connected, open the address in a browser, or point a client of TGI, OpenAI,
Anthropic or Ollama at it.
"""
app = _app("tgi", _ABOUT)
for _flag in ("--help", "--version"):
    app[_flag].group = flags.LISTING
_SERVE = """Serve a model over HTTP.

Every flag has an environment variable (MAX_INPUT_TOKENS for --max-input-tokens) and a key in the file of
--config. Flags take precedence over variables, and variables over the file.

Ctrl-C or SIGTERM stops the server once running requests have finished; a second one stops it at once.
"""
_PLAN = """Estimate the memory, buckets, warm-up time and speed of a server; needs no card and no weights.

Takes the flags of `tgi serve`. --device names a card, or cpu; an unknown name lists them all. The folder of
--model-id needs nothing but config.json. Exits with code 1 if the memory is too small.
"""
_DOCTOR = """Check this machine and its cards, and say how to fix what is wrong.

Takes the flags of `tgi serve` and checks everything that a server with these flags needs, by running small
programs on the device. Exits with code 1 if a server would not run.
"""
launcher_app = _app("text-generation-launcher", _SERVE)
launcher_app.help_epilogue = compat_help()


@app.command(help=_SERVE, help_epilogue=compat_help(), group=flags.SERVING, sort_key=0)
def serve(
    model: Annotated[str | None, Parameter(group=flags.MODEL, help="Same as --model-id.")] = None,
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),  # noqa: B008
) -> int:
    """Run `tgi serve`; return the exit code."""
    return launch(options=options if model is None else attrs.evolve(options, model_id=model))


@launcher_app.default
def launch(*, options: Annotated[Options, Parameter(name="*")] = Options()) -> int:  # noqa: B008
    """Run `text-generation-launcher`; return the exit code."""
    from tgi.server import run

    return run(options)


@app.command(group=flags.SERVING)
def download_weights(
    model_id: str,
    *,
    revision: Annotated[str | None, Parameter(env_var="REVISION")] = None,
    extension: str = ".safetensors",
    huggingface_hub_cache: Annotated[
        Path | None, Parameter(env_var=("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"))
    ] = None,
) -> int:
    """Download a model into the cache and convert old formats, so that serving needs no network.

    Parameters
    ----------
    model_id
        Hugging Face Hub id, or a folder.
    revision
        Branch, tag or commit.
    extension
        Preferred extension of weight files; others are converted to .safetensors.
    huggingface_hub_cache
        Folder where models are kept. Default: $HF_HOME/hub.
    """
    from tgi.hub import Source, find_model
    from tgi.hub_errors import HubError

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


@app.command(help=_PLAN, group=flags.SERVING)
def plan(
    model: Annotated[str | None, Parameter(group=flags.MODEL, help="Same as --model-id.")] = None,
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
        File to draw the plan to: .png, .svg or .pdf.
    json_
        Print JSON.
    """
    from tgi.planning.page import show_plan

    given = options if model is None else attrs.evolve(options, model_id=model)
    return show_plan(given, picture=plot, as_text=json_)


@app.command(group=flags.SERVING)
def calibrate(
    model_id: str,
    *,
    data: Annotated[Path, flags.FILE],
    output: Path = Path("scales"),
    weights: Annotated[bool, Parameter(negative="")] = False,
    texts: Annotated[flags.Count, Parameter(validator=validators.Number(gte=1))] = 128,
    tokens: Annotated[flags.Count, Parameter(validator=validators.Number(gte=1))] = 2048,
    revision: Annotated[str | None, Parameter(env_var="REVISION")] = None,
) -> int:
    """Measure scales for fp8 on your own texts, and print the name of the file for --quant-config.

    It reads the texts with the model on the CPU, once.

    Parameters
    ----------
    model_id
        Folder, or id on the Hub.
    data
        Texts like those that the server will see, one JSON object a line: {"text": "…"} or {"messages": […]}.
    output
        Folder to write the two files to.
    weights
        Measure the inputs of linear layers too, so that these are served in fp8; else keys and values only.
    texts
        Maximum number of texts to read.
    tokens
        Maximum number of tokens to read of each.
    revision
        Branch, tag or commit on the Hub.
    """
    from tgi.calibrate import calibrate as measure
    from tgi.hub import Source

    return measure(Source(model_id, revision), data, output, weights=weights, texts=texts, tokens=tokens)


@app.command(help=_DOCTOR, group=flags.SERVING)
def doctor(
    *,
    json_: Annotated[bool, Parameter(group=flags.DOCTOR, name="--json", negative="")] = False,
    report: Annotated[Path | None, Parameter(group=flags.DOCTOR)] = None,
    options: Annotated[Options, Parameter(name="*")] = Options(),  # noqa: B008
) -> int:
    """Check a machine.

    Parameters
    ----------
    json_
        Print JSON.
    report
        File to attach to a question: the checks, and the versions of the software. It names no model.
    """
    from tgi.doctor.show import show_checks

    return show_checks(options, as_json=json_, report=report)


@app.command(group=flags.LISTING)
def plugins(*, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """List the installed plugins: their models and devices, and what is wrong with broken ones.

    Exits with code 1 if a plugin is broken.

    Parameters
    ----------
    json_
        Print JSON.
    """
    from tgi.plugins.show import show_plugins

    return show_plugins(as_json=json_)


for _command in (commands.chat, commands.run, commands.run_batch, commands.bench):
    app.command(_command, group=flags.ASKING)


@app.command(group=flags.LISTING)
def env() -> int:
    """Print what a bug report needs: versions, processor, memory, devices."""
    from tgi.client.env import print_environment

    return print_environment()


@app.command(group=flags.LISTING)
def print_schema() -> int:
    """Print the OpenAPI document of a server with default limits."""
    from tgi.api.openapi import document

    print(json.dumps(document(Limits()), indent=2))
    return 0


def parse_options(arguments: Sequence[str] = ()) -> Options:
    """Return the options of a text-generation-launcher command line.

    Raises CycloptsError, whose text is one line.
    """
    _, bound, _ = launcher_app.parse_args(arguments, exit_on_error=False, print_error=False)
    options: Options = bound.arguments.get("options", Options())
    return options


def options_from_environment() -> Options:
    """Return the options that the environment sets. Exits with code 2 and one line if they are wrong."""
    with usage_errors():
        return parse_options()


def main() -> None:
    """Entry point of `tgi`."""
    _run(app)


def launcher() -> None:
    """Entry point of `text-generation-launcher`."""
    _run(launcher_app)


def _run(command: App) -> None:
    with usage_errors():
        sys.exit(command(exit_on_error=False, print_error=False))


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Exit with code 2 and one line if options are wrong."""
    try:
        yield
    except UnusedCliTokensError as error:
        unexpected = (error.unused_tokens or [""])[0]
        _fail(f'Unexpected argument "{unexpected}".')
    except CycloptsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells do; once it is up, `tgi serve` handles the signal itself


def _fail(reason: str) -> NoReturn:
    print(f"tgi: {' '.join(reason.split())} --help lists all flags.", file=sys.stderr)
    sys.exit(2)
