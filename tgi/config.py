"""Options and limits: TGI's flags and environment variables. The only reader of the environment.

`Options` is what a user wrote, `Limits` what a running server keeps to; `resolve_limits` makes one of the
other once the model and the device are known. The names, variables and defaults of the flags are those of
text-generation-launcher. How a flag is spelt and explained is written at its field, and nowhere else:
the command line, its help and the variables are all made from the fields.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
from cyclopts import Group, Parameter, validators

DEMO_MODEL = Path(__file__).parent / "demo"
"""The checkpoint that comes with the package."""
DEFAULT_TOTAL_TOKENS = 4096

_MODEL = Group("Model", sort_key=1)
_LIMITS = Group("Limits of a request", sort_key=2)
_BATCH = Group("Batching", sort_key=3)
_HTTP = Group("HTTP", sort_key=4)
_LOG = Group("Logs", sort_key=5)
_NONE = Group("Accepted for scripts written for text-generation-launcher; without effect", sort_key=6)
_REFUSED = Group("Known, and refused for now", sort_key=7)


class OptionError(Exception):
    """Options that contradict each other or ask for what there is not; the message is one line for people."""


def _flag(group: Group, variable: str, *more: str, short: str | None = None) -> Parameter:
    """A flag of `group`, read from the first of the given variables that is set."""
    return Parameter(alias=short, group=group, env_var=(variable, *more), negative=())


@attrs.frozen(kw_only=True)
class Options:
    """Everything that can be set from outside, as it was written. A flag beats its variable."""

    model_id: Annotated[str | None, _flag(_MODEL, "MODEL_ID", "HF_MODEL_ID")] = None
    """A folder or an id on the Hugging Face Hub. Without it, the small demo model that comes with tgi."""
    revision: Annotated[str | None, _flag(_MODEL, "REVISION", "HF_MODEL_REVISION")] = None
    """Branch, tag or commit on the Hub."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, _flag(_MODEL, "DTYPE")] = None
    """What to compute in. Without it, what the device is fastest at. float16 is taken for bfloat16."""
    device: Annotated[str, _flag(_MODEL, "DEVICE")] = "cpu"
    """What to compute on; plugins offer more."""
    threads: Annotated[int, _flag(_MODEL, "THREADS")] = 0
    """CPU threads. 0: as many as there are cores."""
    sharded: Annotated[Literal["true", "false"] | None, _flag(_MODEL, "SHARDED")] = None
    """Whether to split the model over several ranks."""
    num_shard: Annotated[int | None, _flag(_MODEL, "NUM_SHARD", "SM_NUM_GPUS")] = None
    """Over how many; only 1 for now."""
    rope_scaling: Annotated[Literal["linear", "dynamic"] | None, _flag(_MODEL, "ROPE_SCALING")] = None
    """Replaces the RoPE scaling of the model's config.json."""
    rope_factor: Annotated[float | None, _flag(_MODEL, "ROPE_FACTOR")] = None
    """Its factor. Alone: linear scaling. Without it: 1.0."""
    huggingface_hub_cache: Annotated[Path | None, _flag(_MODEL, "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE")] = (
        None
    )
    """Where models are kept. Without it, $HF_HOME/hub."""
    weights_cache_override: Annotated[Path | None, _flag(_MODEL, "WEIGHTS_CACHE_OVERRIDE")] = None
    """A folder with the model's files, used instead of the Hub."""
    served_model_name: Annotated[str | None, _flag(_MODEL, "SERVED_MODEL_NAME")] = None
    """Name of the model in answers. Without it, --model-id."""
    tokenizer_config_path: Annotated[Path | None, _flag(_MODEL, "TOKENIZER_CONFIG_PATH")] = None
    """A file that replaces the model's tokenizer_config.json when a chat template is looked for."""
    chat_template: Annotated[Path | None, _flag(_MODEL, "CHAT_TEMPLATE")] = None
    """A file with a Jinja template that replaces the model's own."""
    watermark_gamma: Annotated[float, _flag(_MODEL, "WATERMARK_GAMMA")] = 0.5
    """Share of the vocabulary that a watermark favours."""
    watermark_delta: Annotated[float, _flag(_MODEL, "WATERMARK_DELTA")] = 2.0
    """What a watermark adds to their logits."""

    max_input_tokens: Annotated[int | None, _flag(_LIMITS, "MAX_INPUT_TOKENS")] = None
    """Longest prompt. Without it, --max-total-tokens less 1."""
    max_input_length: Annotated[int | None, _flag(_LIMITS, "MAX_INPUT_LENGTH")] = None
    """The old name of --max-input-tokens."""
    max_total_tokens: Annotated[int | None, _flag(_LIMITS, "MAX_TOTAL_TOKENS")] = None
    """Longest prompt and answer together. Without it, 4096, or less where the model was made for less."""
    max_best_of: Annotated[int, _flag(_LIMITS, "MAX_BEST_OF")] = 2
    """Largest `best_of`."""
    max_stop_sequences: Annotated[int, _flag(_LIMITS, "MAX_STOP_SEQUENCES")] = 4
    """Most stop sequences."""
    max_top_n_tokens: Annotated[int, _flag(_LIMITS, "MAX_TOP_N_TOKENS")] = 5
    """Largest `top_n_tokens`."""
    max_client_batch_size: Annotated[int, _flag(_LIMITS, "MAX_CLIENT_BATCH_SIZE")] = 4
    """Most prompts in one request."""
    disable_grammar_support: Annotated[bool, _flag(_LIMITS, "DISABLE_GRAMMAR_SUPPORT")] = False
    """Refuse grammars, `response_format` and tools that are required."""
    payload_limit: Annotated[int, _flag(_LIMITS, "PAYLOAD_LIMIT")] = 2_000_000
    """Largest body of a request, in bytes."""

    max_concurrent_requests: Annotated[int, _flag(_BATCH, "MAX_CONCURRENT_REQUESTS")] = 128
    """Requests at once, waiting ones included; one more is answered 429."""
    max_batch_size: Annotated[int | None, _flag(_BATCH, "MAX_BATCH_SIZE")] = None
    """Sequences that are computed together. Without it, what suits the device (cpu: 32)."""
    max_batch_prefill_tokens: Annotated[int | None, _flag(_BATCH, "MAX_BATCH_PREFILL_TOKENS")] = None
    """Prompt tokens of one step; longer ones take several. Without it, what suits the device (cpu: 512)."""
    max_batch_total_tokens: Annotated[int | None, _flag(_BATCH, "MAX_BATCH_TOTAL_TOKENS")] = None
    """Tokens in the KV cache. Without it, as many as there is memory for."""
    waiting_served_ratio: Annotated[float, _flag(_BATCH, "WAITING_SERVED_RATIO")] = 0.3
    """Waiting requests, as a share of the running ones, that interrupt these for a prefill."""
    max_waiting_tokens: Annotated[int, _flag(_BATCH, "MAX_WAITING_TOKENS")] = 20
    """Steps after which any waiting request does."""
    prefix_caching: Annotated[bool, Parameter(group=_BATCH, env_var="PREFIX_CACHING")] = True
    """Keep what was computed of a prompt for others that begin alike."""

    hostname: Annotated[str, _flag(_HTTP, "HOSTNAME")] = "0.0.0.0"
    """IP address to listen on. What is not an address is taken for 0.0.0.0: containers set HOSTNAME."""
    port: Annotated[
        int, _flag(_HTTP, "PORT", short="-p"), Parameter(validator=validators.Number(gte=0, lte=65535))
    ] = 3000
    """Port to listen on."""
    api_key: Annotated[tuple[str, ...], _flag(_HTTP, "API_KEY")] = ()
    """What clients must send as `Authorization: Bearer …`; can be given again, each will do."""
    cors_allow_origin: Annotated[tuple[str, ...], _flag(_HTTP, "CORS_ALLOW_ORIGIN")] = ()
    """An origin that browsers may call from; can be given again. Without it, any."""
    graceful_termination_timeout: Annotated[
        float, _flag(_HTTP, "GRACEFUL_TERMINATION_TIMEOUT", short="-g")
    ] = 90.0
    """Seconds that running requests have to finish after SIGTERM."""
    drain_delay: Annotated[float, _flag(_HTTP, "DRAIN_DELAY")] = 0.0
    """Seconds from SIGTERM, when /health turns to 503, until new connections are refused. A load balancer
    needs some 5."""
    keep_alive_timeout: Annotated[float, _flag(_HTTP, "KEEP_ALIVE_TIMEOUT")] = 75.0
    """Seconds after which an idle connection is closed; more than a load balancer's."""
    compute_type: Annotated[str, _flag(_HTTP, "COMPUTE_TYPE")] = "gpu+optimized"
    """Value of the header x-compute-type."""

    json_output: Annotated[bool, _flag(_LOG, "JSON_OUTPUT")] = False
    """Log in JSON, one object a line."""
    log_level: Annotated[str, _flag(_LOG, "LOG_LEVEL")] = "info"
    """debug, info, warn or error."""
    env: Annotated[bool, Parameter(alias="-e", group=_LOG, negative=())] = False
    """Log the versions of everything first."""
    otlp_endpoint: Annotated[str | None, _flag(_LOG, "OTLP_ENDPOINT")] = None
    """URL of an OpenTelemetry collector that gets a trace of every request."""
    otlp_service_name: Annotated[str, _flag(_LOG, "OTLP_SERVICE_NAME")] = "text-generation-inference.router"
    """The name of this server in traces."""

    validation_workers: Annotated[str | None, _flag(_NONE, "VALIDATION_WORKERS")] = None
    trust_remote_code: Annotated[bool, _flag(_NONE, "TRUST_REMOTE_CODE", "HF_MODEL_TRUST_REMOTE_CODE")] = (
        False
    )
    cuda_graphs: Annotated[str | None, _flag(_NONE, "CUDA_GRAPHS")] = None
    prometheus_port: Annotated[str | None, _flag(_NONE, "PROMETHEUS_PORT")] = None
    shard_uds_path: Annotated[str | None, _flag(_NONE, "SHARD_UDS_PATH")] = None
    master_addr: Annotated[str | None, _flag(_NONE, "MASTER_ADDR")] = None
    master_port: Annotated[str | None, _flag(_NONE, "MASTER_PORT")] = None
    disable_custom_kernels: Annotated[bool, _flag(_NONE, "DISABLE_CUSTOM_KERNELS")] = False
    cuda_memory_fraction: Annotated[str | None, _flag(_NONE, "CUDA_MEMORY_FRACTION")] = None
    enable_prefill_logprobs: Annotated[bool, _flag(_NONE, "ENABLE_PREFILL_LOGPROBS")] = False
    usage_stats: Annotated[str | None, _flag(_NONE, "USAGE_STATS")] = None

    quantize: Annotated[str | None, _flag(_REFUSED, "QUANTIZE")] = None
    kv_cache_dtype: Annotated[str | None, _flag(_REFUSED, "KV_CACHE_DTYPE")] = None
    speculate: Annotated[str | None, _flag(_REFUSED, "SPECULATE")] = None
    lora_adapters: Annotated[str | None, _flag(_REFUSED, "LORA_ADAPTERS")] = None

    def checked(self) -> Iterator[str]:
        """Check what can be checked before the model is known; yields a warning for each oddity.

        Raises OptionError, with TGI's text where TGI has the same check.
        """
        for name in ("quantize", "kv_cache_dtype", "speculate", "lora_adapters"):
            if getattr(self, name) not in (None, "", "0", "none"):
                raise OptionError(f"--{name.replace('_', '-')} is not supported yet; start without it")
        self._check_shards()
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise OptionError(
                f"Both `max_input_tokens` ({self.max_input_tokens}) and `max_input_length` "
                f"({self.max_input_length}) are set. Please define only `max_input_tokens` as "
                "`max_input_length` is deprecated for naming consistency."
            )
        if self.validation_workers == "0":
            raise OptionError("`validation_workers` must be > 0")
        if self.max_batch_size is not None and self.max_batch_size <= 0:
            raise OptionError("`max_batch_size` must be > 0")
        if self.dtype == "float16":
            yield "float16 is slow or missing on the devices of this server: computing in bfloat16"
        if self.trust_remote_code:
            yield "--trust-remote-code has no effect: no code of a model is ever run"
        if not _is_address(self.hostname):
            yield f"the host name {self.hostname!r} is no IP address: listening on 0.0.0.0"

    def _check_shards(self) -> None:
        shards = 1 if self.num_shard is None else self.num_shard
        if shards < 1:
            raise OptionError("`num_shard` cannot be < 1")
        if shards == 1 and self.sharded == "true":
            raise OptionError("`sharded` is true but `num_shard` <= 1")
        if shards > 1:
            raise OptionError(f"{shards} ranks are not supported yet; start with --num-shard 1")

    @property
    def address(self) -> str:
        """Where to listen."""
        return self.hostname if _is_address(self.hostname) else "0.0.0.0"

    @property
    def compute_dtype(self) -> str:
        """As a rank understands it: "float32", "bfloat16" or "auto"."""
        return {None: "auto", "float16": "bfloat16"}.get(self.dtype, str(self.dtype))

    def config_overrides(self, config: Mapping[str, Any]) -> dict[str, object]:
        """Keys that replace those of the model's config.json."""
        if self.rope_scaling is None and self.rope_factor is None:
            return {}
        scaling: dict[str, object] = {
            "rope_type": self.rope_scaling or "linear",
            "factor": self.rope_factor or 1.0,
        }
        theta = (config.get("rope_parameters") or {}).get("rope_theta")
        return {"rope_scaling": scaling if theta is None else {**scaling, "rope_theta": theta}}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of a running server, all of them known."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_batch_prefill_tokens: int = 512
    """Padded query tokens of one prefill step; longer prompts are prefilled in chunks."""
    max_batch_size: int = 32
    """Rows of one decode step."""
    max_batch_total_tokens: int | None = None
    """Tokens in the KV cache; None: as many as there is memory for, up to max_batch_size full sequences."""
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    block_size: int = 16
    """Tokens in a KV block; the device's."""
    max_client_batch_size: int = 4
    payload_limit: int = 2_000_000
    """Bytes of a request's body."""


def resolve_limits(
    options: Options, *, max_position: int, block_size: int, batch_size: int, prefill_tokens: int
) -> Limits:
    """What the options mean for a model made for `max_position` tokens on a device with these defaults.

    Raises OptionError with TGI's texts. There is no check of the prefill budget against the longest
    prompt: longer prompts are prefilled in chunks. --max-total-tokens may exceed `max_position`.
    """
    wanted = options.max_input_tokens if options.max_input_length is None else options.max_input_length
    total = options.max_total_tokens
    if total is None:
        total = min(max_position, max(DEFAULT_TOTAL_TOKENS, 0 if wanted is None else wanted + 1))
    longest_prompt = total - 1 if wanted is None else wanted
    if longest_prompt >= total or longest_prompt < 1:
        raise OptionError(f"`max_input_tokens`({longest_prompt}) must be < `max_total_tokens`({total})")
    batch_total = options.max_batch_total_tokens
    if batch_total is not None and total > batch_total:
        raise OptionError(
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch_total}"
        )
    return Limits(
        max_concurrent_requests=options.max_concurrent_requests,
        max_best_of=options.max_best_of,
        max_stop_sequences=options.max_stop_sequences,
        max_top_n_tokens=options.max_top_n_tokens,
        max_input_tokens=longest_prompt,
        max_total_tokens=total,
        max_batch_prefill_tokens=options.max_batch_prefill_tokens or prefill_tokens,
        max_batch_size=options.max_batch_size or batch_size,
        max_batch_total_tokens=batch_total,
        waiting_served_ratio=options.waiting_served_ratio,
        max_waiting_tokens=options.max_waiting_tokens,
        block_size=block_size,
        max_client_batch_size=options.max_client_batch_size,
        payload_limit=options.payload_limit,
    )


def map_legacy_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that huggingface_hub, which reads the environment itself, lacks under these older names."""
    if "HF_TOKEN" in environment:
        return {}
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"):
        if name in environment:
            return {"HF_TOKEN": environment[name]}
    return {}
