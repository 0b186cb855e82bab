"""What a user types: `tgi serve`, `tgi download-weights`; `text-generation-launcher` is `tgi serve`.

Only what --help needs is imported at the top; the server comes with its first use. An error of the user is
one line on stderr: exit code 2 where the command line is to blame, 1 otherwise.
"""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from tgi.config import Options, map_legacy_variables


def _app(name: str, about: str) -> App:
    return App(
        name=name,
        help=about,
        version=f"{name} {importlib.metadata.version('tgi')}",
        version_flags=("--version", "-V"),
        result_action="return_value",
    )


app = _app("tgi", "A text-generation server: the drop-in successor of Hugging Face TGI.")
launcher_app = _app("text-generation-launcher", "Serve a model over HTTP: another name of `tgi serve`.")


@app.command
@launcher_app.default
def serve(*, options: Annotated[Options, Parameter(name="*")] = Options()) -> int:  # noqa: B008
    """Serve a model over HTTP.

    Every flag can also be given as the environment variable beside it. Ctrl-C or SIGTERM ends the server
    when the running requests are done; a second one ends it at once.
    """
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


def options_from_environment() -> Options:
    """The options that the environment alone gives. Exits with code 2 and one line when it is wrong."""
    with _usage_errors():
        _, bound, _ = launcher_app.parse_args([], exit_on_error=False, print_error=False)
    options: Options = bound.arguments.get("options", Options())
    return options


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
    except CycloptsError as error:
        print(f"tgi: {' '.join(str(error).split())} --help lists all flags.", file=sys.stderr)
        sys.exit(2)
