"""GET routes: health, information and metrics."""

from quart import Blueprint, Response

from tgi.api.answers import empty, json_answer
from tgi.api.service import TOKENIZING_THREADS, VERSION, Engine, Service
from tgi.errors import ApiError, Unavailable
from tgi.lifecycle import Phase
from tgi.metrics import CONTENT_TYPE


def routes(service: Service) -> Blueprint:
    """`/health`, `/ping` and GET `/`; `/info`; `/metrics`."""
    blueprint = Blueprint("info", __name__)

    @blueprint.get("/")
    @blueprint.get("/ping")
    @blueprint.get("/health")
    async def health() -> Response:
        try:
            service.ready_engine()
        except Unavailable as error:
            return json_answer(_progress(service, error), error.status, error.headers)
        return empty(200)

    if service.options.aip_health_route is not None:
        blueprint.get(service.options.aip_health_route)(health)

    @blueprint.get("/info")
    async def info() -> Response:
        return json_answer(_describe(service.loaded_engine()))

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        if service.engine is not None:
            _take_over_statistics(service, service.engine)
        return Response(service.metrics.render(), 200, {"content-type": CONTENT_TYPE})

    return blueprint


def _progress(service: Service, error: ApiError) -> dict[str, object]:
    lifecycle = service.lifecycle
    body: dict[str, object] = {
        "error": str(error),
        "error_type": "healthcheck",
        "status": lifecycle.phase.value,
    }
    if lifecycle.phase is Phase.STARTING:
        body |= {
            "stage": lifecycle.stage,
            "done": lifecycle.done,
            "total": lifecycle.total,
            "seconds_left": lifecycle.seconds_left(),
        }
    return body


def _describe(engine: Engine) -> dict[str, object]:
    """TGI's keys in its order (3.9), then ours."""
    limits, model = engine.limits, engine.model
    return {
        "model_id": model.model_id,
        "model_sha": model.sha,
        "model_pipeline_tag": model.pipeline_tag,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": TOKENIZING_THREADS,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "text-generation-router",
        "version": VERSION,
        "sha": None,
        "docker_label": None,
        "max_input_length": limits.max_input_tokens,
        "model_dtype": model.dtype,
        "model_device_type": model.device,
    }


def _take_over_statistics(service: Service, engine: Engine) -> None:
    """What the scheduler counts by itself."""
    statistics, metrics = engine.scheduler.statistics(), service.metrics
    blocks = statistics.blocks
    metrics.kv_blocks.set(blocks.used, state="used")
    metrics.kv_blocks.set(blocks.cached, state="cached")
    metrics.kv_blocks.set(blocks.total - blocks.used - blocks.cached, state="free")
    metrics.batch_max_total_tokens.set(blocks.total * engine.limits.block_size)
    metrics.prefix_cache_hit_tokens.set(statistics.prefix_hit_tokens)
    metrics.prefix_cache_query_tokens.set(statistics.prefix_query_tokens)
    metrics.preemptions.set(statistics.preemptions)
