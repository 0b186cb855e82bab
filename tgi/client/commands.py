"""The commands that talk to a server: `tgi chat`, `tgi run`, `tgi run-batch`, `tgi bench`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tgi.config import Options

Model = Annotated[
    str | None,
    Parameter(
        name="--model-id",
        env_var="MODEL_ID",
        help="Model to load in a server of its own. Default: the demo model.",
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
Seed = Annotated[int | None, Parameter(help="Seed; the same one gives the same answer again.")]


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
    """Measure a server under load: requests and tokens per second, time to and between tokens.

    Exits with code 1 if a request failed.

    Parameters
    ----------
    concurrency
        Number of requests at once; several numbers are measured one after the other.
    rate
        Number of requests that begin per second, instead of --concurrency; likewise for several.
    requests
        Number of requests for each of these.
    input_words
        Number of words in each random prompt.
    output_tokens
        Number of tokens in each answer.
    prompts
        File of prompts, one a line or in ShareGPT's format, instead of random ones.
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
    except httpx.ConnectError as error:
        place = error.request.url.copy_with(path="/")
        reason = f"no server answers at {place}: {error}; `tgi serve` starts one"
    except httpx.HTTPError as error:
        reason = f"the connection to the server was lost: {error}"
    except OSError as error:
        reason = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
    except (BatchError, BenchError, RequestError, StartError) as error:
        reason = str(error)
    print(f"tgi: {reason}", file=sys.stderr)
    return 1
