"""The command line: `tgi serve` and other commands; `text-generation-launcher` is `tgi serve`.

Only modules that --help needs are imported at the top. A user's mistake is one line on stderr, with exit code
2 if it is on the command line and 1 otherwise.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import attrs
from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError, validators
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, HelpEntry
from rich.console import RenderableType
from rich.text import Text

from tgi import __version__, flags
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

Begin with `tgi serve`, which takes a small demo model, or with `tgi serve org/name` for one of the Hugging
Face Hub. Once the log says Connected, open its address in a browser, or point a client of TGI, OpenAI,
Anthropic or Ollama at it.
"""
app = _app("tgi", _ABOUT)
for _flag in ("--help", "--version"):
    app[_flag].group = flags.LISTING
_SERVE = """Serve a model over HTTP.

Every flag has an environment variable (MAX_INPUT_TOKENS for --max-input-tokens) and a key in the file of
--config. Flags take precedence over variables, and variables over the file.

Ctrl-C or SIGTERM stops the server once running requests are finished; a second one stops it at once.
"""
_PLAN = """Estimate the memory, buckets, warm-up time and speed of a server; needs no card and no weights.

Takes the flags of `tgi serve`. --device names a card or cpu; an unknown name lists all. The folder of
--model-id needs nothing but config.json. Exits with code 1 if the memory does not suffice.
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
    """Measure scales for fp8 with texts of yours, and print the file for `tgi serve --quant-config`.

    It computes on the CPU, in the time of reading the texts.

    Parameters
    ----------
    model_id
        Folder, or id on the Hub.
    data
        Texts like those that the server will see, a line in JSON each: {"text": "…"} or {"messages": […]}.
    output
        Folder for two files.
    weights
        Measure the inputs of linear layers too, which are then served in fp8; else keys and values only.
    texts
        Number of texts that are read.
    tokens
        Number of tokens that are read of each.
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
        Write a file to send with a question: the checks, and versions of the software. It names no model.
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


Model = Annotated[
    str | None,
    Parameter(
        name="--model-id",
        env_var="MODEL_ID",
        help="Model that a server of its own loads. Default: the demo model.",
    ),
]
Url = Annotated[
    str | None,
    Parameter(help="Address of the server. Default: a server of its own, which ends with the command."),
]
Key = Annotated[str | None, Parameter(env_var=("API_KEY", "OPENAI_API_KEY"), help="API key of the server.")]
Temperature = Annotated[
    float | None, Parameter(help="0 always takes the most likely token. Default: the server's.")
]
MaxTokens = Annotated[int | None, Parameter(help="Maximum tokens of an answer. Default: what fits.")]
Seed = Annotated[int | None, Parameter(help="The same seed gives the same answer again.")]


@app.command(group=flags.ASKING)
def chat(
    url: Url = None,
    /,
    *,
    model_id: Model = None,
    system: Annotated[str | None, Parameter(help="System prompt.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    api_key: Key = None,
) -> int:
    """Chat in the terminal with a model, or with any server that speaks OpenAI's API."""
    from tgi.client.chat import chat as hold

    fields = _given(temperature=temperature, max_tokens=max_tokens, seed=seed)
    return _client(lambda: hold(url, _given(model_id=model_id), fields, api_key, system))


@app.command(group=flags.ASKING)
def run(
    prompt: Annotated[str, Parameter(help="The message.")],
    /,
    *,
    url: Url = None,
    model_id: Model = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    api_key: Key = None,
) -> int:
    """Print the model's answer to one message, as it is generated."""
    from tgi.client.chat import run as answer

    fields = _given(temperature=temperature, max_tokens=max_tokens, seed=seed)
    return _client(lambda: answer(prompt, _given(model_id=model_id), fields, url, api_key))


@app.command(group=flags.ASKING)
def run_batch(
    source: Annotated[Path, Parameter(help="File of requests.")],
    target: Annotated[Path, Parameter(help="File to write the answers to.")],
    /,
    *,
    url: Url = None,
    model_id: Model = None,
    api_key: Key = None,
) -> int:
    """Answer a file of requests, in the format of OpenAI's batches: a JSON object a line.

    Exits with code 1 if a request failed.
    """
    from tgi.client.batch import run_batch as answer

    return _client(lambda: answer(source, target, url, _given(model_id=model_id), api_key))


@app.command(group=flags.ASKING)
def bench(
    url: Annotated[str, Parameter(help="Server to measure.")] = f"http://localhost:{Options().port}",
    /,
    *,
    concurrency: Annotated[
        tuple[int, ...],
        Parameter(negative=(), consume_multiple=True, show_default=lambda given: " ".join(map(str, given))),
    ] = (1, 4, 16),
    rate: Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)] = (),
    requests: int = 64,
    input_words: int = 100,
    output_tokens: int = 100,
    prompts: Path | None = None,
    seed: int = 0,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    plot: Path | None = None,
    api_key: Key = None,
) -> int:
    """Measure a server under load: requests and tokens per second, time to first token, time between tokens.

    Exits with code 1 if a request failed.

    Parameters
    ----------
    concurrency
        Requests that run at once. Several numbers are measured one after the other.
    rate
        Requests that begin per second, instead of --concurrency; several likewise.
    requests
        Requests for each number or rate.
    input_words
        Words of each prompt, drawn at random.
    output_tokens
        Tokens of each answer.
    prompts
        File with a prompt a line, or in ShareGPT's format, instead of random prompts.
    seed
        Seed of prompts and arrivals.
    json_
        File to write the figures to, as JSON.
    plot
        File to draw latency against throughput to: .png, .svg or .pdf.
    """
    from tgi.client.bench import Work, measure, read_prompts

    def work() -> int:
        given = Work(
            input_words=input_words,
            output_tokens=output_tokens,
            requests=requests,
            seed=seed,
            prompts=[] if prompts is None else read_prompts(prompts),
        )
        levels = () if rate else concurrency
        return measure(url, given, levels, rate, key=api_key, json_file=json_, plot=plot)

    return _client(work)


@app.command(group=flags.LISTING)
def env() -> int:
    """Print what a bug report needs: versions, processor, memory, devices."""
    from tgi.client.env import print_environment

    return print_environment()


def _given(**values: object) -> dict[str, object]:
    """Return the values that are given."""
    return {name: value for name, value in values.items() if value is not None}


def _client(work: Callable[[], int]) -> int:
    """Return the exit code of work with a server, and explain what keeps it from going on."""
    import httpx2 as httpx

    from tgi.client.batch import BatchError
    from tgi.client.bench import BenchError
    from tgi.client.embedded import StartError
    from tgi.client.http import RequestError

    try:
        return work()
    except httpx.HTTPStatusError as error:
        reason = f"{error.request.url} answers {error.response.status_code}"
    except httpx.HTTPError as error:
        reason = f"the server cannot be reached: {error}"
    except (BatchError, BenchError, RequestError, StartError, OSError) as error:
        reason = str(error)
    print(f"tgi: {reason}", file=sys.stderr)
    return 1


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
        sys.exit(130)  # as shells do; once it is up, `tgi serve` handles the signal itself


def _fail(reason: str) -> NoReturn:
    print(f"tgi: {' '.join(reason.split())} --help lists all flags.", file=sys.stderr)
    sys.exit(2)
