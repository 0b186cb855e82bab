"""Options of HTTP, logs and traces: how the server listens, whom it answers, and when it stops."""

from pathlib import Path
from typing import Annotated, Literal

import attrs

from tgi import flags
from tgi.flags import HTTP, LOG, Amount, Count, Port, flag


@attrs.frozen(kw_only=True)
class ServerOptions:
    """Options that the model and its ranks do not depend on."""

    hostname: Annotated[
        str, flag(HTTP, "HOSTNAME", value="ADDRESS", vllm=["--host"], split=flags.address)
    ] = "0.0.0.0"
    """IP address or host name to listen on. :: listens on IPv4 too."""
    port: Annotated[Port, flag(HTTP, "PORT", short="-p")] = 3000
    """Port to listen on."""
    uds: Annotated[Path | None, flag(HTTP, "UDS", value="PATH")] = None
    """Unix socket to listen on instead of --hostname and --port."""
    tls_cert: Annotated[
        Path | None, flag(HTTP, "TLS_CERT", value="FILE", vllm=["--ssl-certfile"]), flags.FILE
    ] = None
    """PEM file with the certificate for HTTPS, followed by any intermediate ones. The server notices when it
    or --tls-key changes."""
    tls_key: Annotated[
        Path | None, flag(HTTP, "TLS_KEY", value="FILE", vllm=["--ssl-keyfile"]), flags.FILE
    ] = None
    """PEM file with the private key of --tls-cert, without a passphrase. Default: --tls-cert has it, too."""
    root_path: Annotated[str, flag(HTTP, "ROOT_PATH", value="PATH"), flags.ROUTE] = ""
    """Prefix under which a proxy serves this server, such as /llm. Paths work with and without it."""
    api_key: Annotated[
        tuple[str, ...], flag(HTTP, "API_KEY", "VLLM_API_KEY", value="KEY", split=flags.keys)
    ] = ()
    """Key that clients must send as `Authorization: Bearer KEY`. Repeat the flag, or separate keys in the
    variable by commas, to accept any of several."""
    cors_allow_origin: Annotated[
        tuple[str, ...], flag(HTTP, "CORS_ALLOW_ORIGIN", value="ORIGIN", split=flags.origins)
    ] = ()
    """Origin that browsers may call from; repeat the flag for several. Default: any origin."""
    graceful_termination_timeout: Annotated[
        Amount,
        flag(HTTP, "GRACEFUL_TERMINATION_TIMEOUT", short="-g", vllm=["--shutdown-timeout"]),
    ] = 90.0
    """Seconds that running requests have to finish after SIGTERM."""
    max_restarts: Annotated[Count, flag(HTTP, "MAX_RESTARTS")] = 3
    """Maximum restarts of the ranks in an hour; one loss more ends the server. Running requests go on after a
    restart."""
    while_recovering: Annotated[Literal["wait", "refuse"], flag(HTTP, "WHILE_RECOVERING")] = "wait"
    """Treatment of requests that arrive while the ranks restart: wait, or refuse with 503."""
    step_timeout: Annotated[Amount | None, flag(HTTP, "STEP_TIMEOUT")] = None
    """Seconds after which a step counts as hanging, and the ranks are restarted. Default: ten times the
    slowest step, and at least 60."""
    stall_timeout: Annotated[Amount, flag(HTTP, "STALL_TIMEOUT")] = 60.0
    """Seconds that a step may take before /health answers 503."""
    drain_delay: Annotated[Amount, flag(HTTP, "DRAIN_DELAY")] = 0.0
    """Seconds between SIGTERM, when /health starts to answer 503, and the refusal of new connections. 5 is
    a good value behind a load balancer."""
    max_queue_seconds: Annotated[Amount | None, flag(HTTP, "MAX_QUEUE_SECONDS")] = None
    """Seconds that a request may wait in the queue; after that it gets 503. Default: no limit."""
    tenant_header: Annotated[str | None, flag(HTTP, "TENANT_HEADER", value="NAME")] = None
    """Header that names the tenant of a request. Tenants get fair shares of the server. Default: the API key
    names it, if there are several keys or --tenants is set. Let a proxy set the header: a client could choose
    any."""
    tenants: Annotated[Path | None, flag(HTTP, "TENANTS", value="FILE"), flags.FILE] = None
    """TOML file with weights and limits of tenants (docs/reliability.md). The server notices when it
    changes."""
    objectives: Annotated[
        tuple[str, ...], flag(HTTP, "OBJECTIVES", value="NAME=PRIORITY,…", several=True)
    ] = ()
    """Priorities of the InferenceObjectives that requests may name in the header
    x-gateway-inference-objective; higher comes first. `priority` in a body takes precedence."""
    keep_alive_timeout: Annotated[Amount, flag(HTTP, "KEEP_ALIVE_TIMEOUT")] = 75.0
    """Seconds after which an idle connection is closed. Keep it above the load balancer's own limit."""
    aip_predict_route: Annotated[str | None, flag(HTTP, "AIP_PREDICT_ROUTE", value="PATH"), flags.ROUTE] = (
        None
    )
    """Second path for /vertex. Vertex AI sets this variable, AIP_HEALTH_ROUTE and AIP_HTTP_PORT."""
    aip_health_route: Annotated[str | None, flag(HTTP, "AIP_HEALTH_ROUTE", value="PATH"), flags.ROUTE] = None
    """Second path for /health."""
    compute_type: Annotated[str, flag(HTTP, "COMPUTE_TYPE", value="TEXT")] = "gpu+optimized"
    """Value of the response header x-compute-type."""

    json_output: Annotated[bool, flag(LOG, "JSON_OUTPUT")] = False
    """Log JSON, one object per line."""
    log_level: Annotated[str, flag(LOG, "LOG_LEVEL", "VLLM_LOGGING_LEVEL", value="LEVEL")] = "info"
    """Minimum level of log messages: debug, info, warn or error."""
    env: Annotated[bool, flag(LOG, short="-e")] = False
    """Log the versions of the main packages at start."""
    trace_plugins: Annotated[bool, flag(LOG, "TRACE_PLUGINS")] = False
    """Log every call of a plugin hook and its result."""
    metrics_names: Annotated[Literal["tgi", "vllm", "both"], flag(LOG, "METRICS_NAMES")] = "tgi"
    """Names of the metrics: TGI's, vLLM's, or both. Dashboards, autoscalers and gateways made for vLLM read
    vLLM's (docs/observability.md)."""
    otlp_endpoint: Annotated[str | None, flag(LOG, "OTLP_ENDPOINT", value="URL")] = None
    """URL of the OpenTelemetry collector to send a trace of every request to."""
    otlp_service_name: Annotated[str, flag(LOG, "OTLP_SERVICE_NAME", value="NAME")] = (
        "text-generation-inference.router"
    )
    """Name of this server in traces."""
