"""GET routes about the server: health, `/info`, `/v1/models`, `/metrics`, and the documentation."""

import importlib.util
import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import trio
from msgspec import UNSET, UnsetType
from quart import Response, request
from werkzeug.exceptions import NotFound

from tgi.errors import Unavailable, UnknownModel
from tgi.lifecycle import Phase
from tgi.metrics import CONTENT_TYPE, Metrics, render
from tgi.scheduler import Replica, SchedulerStatistics

from .call import VERSION, Call, empty_answer, get, json_answer
from .service import Service
from .turns import THREADS
from .vllm_metrics import lora_families, vllm_families

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
PAGE_FOLDER = Path(__file__).parent.parent / "page"
"""The page for people: a chat, and the engine at work."""
PAGE_FILES = frozenset(file.name for file in PAGE_FOLDER.iterdir())
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'",
    "cache-control": "no-cache",
}
SWAGGER = importlib.util.find_spec("swagger_ui_bundle")
DOCS_FILES = "swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"
"""Files of the Swagger UI that its page loads."""
PLAIN_DOCS_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Text Generation Inference</title>
<p>The routes are described in <a href="../api-doc/openapi.json">a document of OpenAPI</a>.
<p>This page tries them out after <code>pip install 'tgi-server[docs]'</code>, which brings the Swagger UI.
</html>
"""
DOCS_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Text Generation Inference</title>
<link rel="stylesheet" href="swagger-ui.css">
<link rel="icon" href="favicon-32x32.png">
<div id="page"></div>
<script src="swagger-ui-bundle.js"></script>
<script>
  SwaggerUIBundle({url: "../api-doc/openapi.json", dom_id: "#page", deepLinking: true})
</script>
</html>
"""


class HealthResponse(msgspec.Struct):
    """The progress of a server that is not ready."""

    error: str
    error_type: str
    status: str
    """Phase of the server."""
    seconds: float
    """Time in this phase."""
    stage: str | UnsetType = UNSET
    done: int | UnsetType = UNSET
    total: int | UnsetType = UNSET
    seconds_left: float | UnsetType | None = UNSET


class Info(msgspec.Struct, kw_only=True):
    """The model, the server and its limits: TGI's keys in its order (3.9), then ours."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int = THREADS
    max_client_batch_size: int
    router: str = "text-generation-router"
    version: str = VERSION
    sha: str | None = None
    docker_label: str | None = None
    max_input_length: int
    model_dtype: str
    model_device_type: str


class ModelInfo(msgspec.Struct):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """Folder or id from which the model was loaded."""
    max_model_len: int
    """Maximum number of tokens of a prompt and its answer."""
    parent: str | None = None
    """Model that a LoRA adapter changes."""


class ModelList(msgspec.Struct):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelInfo]


class Version(msgspec.Struct):
    """The answer of `/version`."""

    version: str


class Load(msgspec.Struct):
    """The answer of `/load`."""

    server_load: int
    """Number of texts that are being generated, or wait for it."""


async def health(call: Call[None]) -> Response:
    """Answer `/health`: empty if the server is ready, its progress otherwise."""
    try:
        call.service.check_health()
    except Unavailable as error:
        return json_answer(_progress(call.service, str(error)), error.status, error.headers)
    return empty_answer(200)


async def live(_call: Call[None]) -> Response:
    """Answer `/health/live`: the process answers, which is all that a restart of it could mend."""
    return empty_answer(200)


async def startup(call: Call[None]) -> Response:
    """Answer `/health/startup`: empty once the server has been ready, its progress before."""
    service = call.service
    if service.lifecycle.phase is not Phase.STARTING:
        return empty_answer(200)
    error = Unavailable(f"starting: {service.lifecycle.stage}")
    return json_answer(_progress(service, str(error)), error.status, error.headers)


def _progress(service: Service, reason: str) -> HealthResponse:
    lifecycle = service.lifecycle
    seconds = round(time.monotonic() - lifecycle.phase_started, 1)
    progress = HealthResponse(reason, "healthcheck", lifecycle.phase.value, seconds)
    if lifecycle.phase in (Phase.STARTING, Phase.RECOVERING):
        progress.stage = lifecycle.stage
        progress.done, progress.total = lifecycle.done, lifecycle.total
        progress.seconds_left = lifecycle.seconds_left()
    return progress


async def info(call: Call[None]) -> Response:
    """Answer `/info`."""
    served = call.service.loaded()
    limits, model = served.limits, served.model
    facts = {
        "model_id": model.model_id,
        "model_sha": model.sha,
        "model_pipeline_tag": model.pipeline_tag,
        "model_dtype": model.dtype,
        "model_device_type": model.device,
        "max_input_length": limits.max_input_tokens,
    }
    return json_answer(msgspec.convert(attrs.asdict(limits) | facts, Info))


async def models(call: Call[None]) -> Response:
    """Answer `/v1/models`: the model and its LoRA adapters."""
    return json_answer(ModelList("list", _served_models(call)))


async def model(call: Call[None]) -> Response:
    """Answer `/v1/models/<model>` if the model has this name."""
    name = call.arguments["model"]
    served = next((one for one in _served_models(call) if one.id == name), None)
    if served is None:
        raise UnknownModel(name)
    return json_answer(served)


def _served_models(call: Call[None]) -> list[ModelInfo]:
    loaded, engine = call.service.loaded(), call.service.engine
    base, length = loaded.model, loaded.limits.max_total_tokens
    served = [ModelInfo(base.served_name, "model", 0, base.served_name, base.model_id, length)]
    return served + [
        ModelInfo(lora.name, "model", 0, base.served_name, lora.source, length, base.served_name)
        for lora in (() if engine is None else engine.scheduler.loras)
    ]


async def version(_call: Call[None]) -> Response:
    """Answer `/version`, as vLLM does."""
    return json_answer(Version(VERSION))


async def load(call: Call[None]) -> Response:
    """Answer `/load`, as vLLM does."""
    return json_answer(Load(call.service.in_flight))


async def metrics(call: Call[None]) -> Response:
    """Answer `/metrics`, with the schedulers' own counts as of now, under the names that are asked for."""
    service = call.service
    names = request.args.get("names", service.options.metrics_names)
    metrics, engine = service.metrics, service.engine
    text = b""
    if engine is not None:
        size, replicas = engine.limits.block_size, engine.scheduler.replicas
        _count_state(metrics, engine.scheduler.statistics(), size)
        if len(replicas) > 1:
            _count_replicas(metrics, replicas)
        if names != "tgi":
            each = [replica.scheduler.statistics() for replica in replicas]
            families = vllm_families(metrics, each, engine.model.served_name, size)
            text = render([*families, *lora_families(engine.scheduler)])
    if names != "vllm":
        text = metrics.render() + text
    return Response(text, 200, {"content-type": CONTENT_TYPE})


def _count_state(metrics: Metrics, statistics: SchedulerStatistics, block_size: int) -> None:
    """Set the metrics whose values the schedulers keep."""
    blocks = statistics.blocks
    metrics.queue_size.set(statistics.waiting)
    metrics.batch_current_size.set(statistics.running)
    metrics.batch_current_max_tokens.set(blocks.used * block_size)
    metrics.batch_max_total_tokens.set(blocks.total * block_size)
    metrics.kv_blocks.set(blocks.used, state="used")
    metrics.kv_blocks.set(blocks.cached, state="cached")
    metrics.kv_blocks.set(blocks.total - blocks.used - blocks.cached, state="free")
    metrics.prefix_cache_hit_tokens.set(statistics.prefix_hit_tokens)
    metrics.prefix_cache_query_tokens.set(statistics.prefix_query_tokens)
    metrics.preemptions.set(statistics.preemptions)


def _count_replicas(metrics: Metrics, replicas: Items[Replica]) -> None:
    """Set the metrics of each replica."""
    for number, replica in enumerate(replicas):
        one, label = replica.scheduler.statistics(), str(number)
        metrics.replica_serving.set(replica.serving, replica=label)
        metrics.replica_queue_size.set(one.waiting, replica=label)
        metrics.replica_batch_size.set(one.running, replica=label)
        metrics.replica_kv_blocks_used.set(one.blocks.used, replica=label)
        metrics.replica_prefix_cache_hit_tokens.set(one.prefix_hit_tokens, replica=label)
        metrics.replica_prefix_cache_query_tokens.set(one.prefix_query_tokens, replica=label)


async def root(call: Call[None]) -> Response:
    """Answer `/`: browsers get the page, every other client what `/health` answers."""
    if "text/html" not in request.accept_mimetypes.values():
        return await health(call)
    page = await _asset(PAGE_FOLDER / "index.html", PAGE_HEADERS)
    text = (await page.get_data(as_text=True)).replace('"page/', f'"{_prefix(call)}/page/')
    page.set_data(text)  # the address may be /llm, without the slash that makes relative links right
    return page


async def page_asset(call: Call[None]) -> Response:
    """Answer with a file of the page. Raises NotFound."""
    name = call.arguments["name"]
    if name not in PAGE_FILES:
        raise NotFound
    return await _asset(PAGE_FOLDER / name, PAGE_HEADERS)


async def _asset(file: Path, headers: Mapping[str, str] | None = None) -> Response:
    data = await trio.Path(file).read_bytes()
    return Response(data, 200, {"content-type": MEDIA_TYPES[file.suffix], **(headers or {})})


async def docs(call: Call[None]) -> Response:
    """Answer `/docs`."""
    return empty_answer(303, {"location": f"{_prefix(call)}/docs/"})


def _prefix(call: Call[None]) -> str:
    return call.service.options.root_path.rstrip("/")


async def docs_page(_call: Call[None]) -> Response:
    """Answer `/docs/`: the Swagger UI, or where the document is if that is not installed."""
    return Response(
        DOCS_PAGE if SWAGGER else PLAIN_DOCS_PAGE, 200, {"content-type": "text/html; charset=utf-8"}
    )


async def docs_asset(call: Call[None]) -> Response:
    """Answer with a file of the Swagger UI."""
    name = call.arguments["name"]
    if SWAGGER is None or name not in DOCS_FILES:
        raise NotFound
    from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

    return await _asset(Path(swagger_ui_path) / name)


ROUTES = (
    get("/", "root_health", "Whether the server is ready; for browsers, a page", root, errors=(503,)),
    get("/health", "health", "Whether the server is ready", health, errors=(503,)),
    get("/health/live", "live", "Whether the process answers", live),
    get("/health/startup", "startup", "Whether the start is over", startup, errors=(503,)),
    get("/ping", "ping", "Whether the server is ready, for SageMaker", health, errors=(503,)),
    get("/info", "get_model_info", "The model and the limits", info, answer=Info, errors=(503,)),
    get(
        "/v1/models", "openai_get_model_info", "The model that is served, and its LoRA adapters", models,
        answer=ModelList, errors=(404, 503),
    ),
    get(
        "/v1/models/<path:model>", "openai_get_model", "The model, if it has this name", model,
        answer=ModelInfo, errors=(404, 503),
    ),
    get("/version", "version", "The version of the server", version, answer=Version),
    get("/load", "load", "How many texts are being generated", load, answer=Load),
    get("/metrics", "metrics", "Metrics for Prometheus", metrics, text=True),
    get("/page/<name>", "page_asset", "A file of the page", page_asset, documented=False),
    get("/docs", "docs", "Documentation", docs, documented=False),
    get("/docs/", "docs_page", "Documentation", docs_page, documented=False),
    get("/docs/<name>", "docs_asset", "A file of the documentation", docs_asset, documented=False),
)  # fmt: skip
