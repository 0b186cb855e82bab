"""Options and limits: TGI's flags and environment variables. The only reader of the environment.

`Options` is what a user wrote, `Limits` what a running server keeps to; `resolve_limits` makes one of the
other once the model and the device are known. The names, variables and defaults of the flags are those of
text-generation-launcher. How a flag is spelt and explained is written at its field, and nowhere else:
the command line, its help, the variables and the keys of a file are all made from the fields.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
from cyclopts import Parameter

from tgi import flags
from tgi.flags import BATCH, BUCKETS, HTTP, LIMITS, LOG, MEMORY, MODEL, Amount, Count, Port, Share, flag
from tgi.foreign import Foreign

DEMO_MODEL = Path(__file__).parent / "demo"
"""The checkpoint that comes with the package."""
BUCKET_VARIABLES = {
    "BATCH_BUCKET_SIZE": ("DECODE_BS", 1),
    "PREFILL_BATCH_BUCKET_SIZE": ("PROMPT_BS", 1),
    "PAD_SEQUENCE_TO_MULTIPLE_OF": ("PROMPT_QUERY", 1),
    **{
        f"VLLM_{name}_BUCKET_{bound}": (name.replace("SEQ", "QUERY"), place)
        for name in ("PROMPT_BS", "PROMPT_SEQ", "PROMPT_QUERY", "PROMPT_CTX", "DECODE_BS", "DECODE_BLOCK")
        for place, bound in enumerate(("MIN", "STEP", "MAX"))
    },
}
"""Variable of TGI or vLLM on Gaudi -> dimension of buckets, and which of its first size, step and last size.
Where several mean the same, the last one counts."""
DTYPES = {
    None: "auto",
    "auto": "auto",
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "half": "bfloat16",
}
"""Value of --dtype (TGI's, vLLM's) -> what a rank is told."""


class OptionError(Exception):
    """Options that contradict each other or ask for what there is not; the message is one line for people."""


@attrs.frozen(kw_only=True)
class Options:
    """Everything that can be set from outside, as it was written. A flag beats its variable."""

    config: Annotated[Path | None, flag(MODEL, "TGI_CONFIG", value="FILE")] = None
    """A TOML file with options, named as the flags are. Its variable is TGI_CONFIG."""
    model_id: Annotated[str | None, flag(MODEL, "MODEL_ID", "HF_MODEL_ID", value="ID", vllm=["--model"])] = (
        None
    )
    """A folder or an id on the Hugging Face Hub. Without it, the small demo model that comes with tgi."""
    revision: Annotated[str | None, flag(MODEL, "REVISION", "HF_MODEL_REVISION", value="NAME")] = None
    """Branch, tag or commit on the Hub."""
    dtype: Annotated[
        Literal["auto", "float32", "float", "bfloat16", "float16", "half"] | None, flag(MODEL, "DTYPE")
    ] = None
    """What to compute in. auto, and without it: what the device is fastest at. float16 is taken for
    bfloat16."""
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8_e4m3fn", "fp8_e5m2"] | None, flag(MODEL, "KV_CACHE_DTYPE")
    ] = None
    """What the KV cache is kept in. auto, and without it: as --dtype. fp8_e4m3fn is for Gaudi."""
    load_format: Annotated[Literal["auto", "safetensors", "dummy"], flag(MODEL, "LOAD_FORMAT")] = "auto"
    """What the weights are read from. auto: *.safetensors, made of *.bin where there are none. safetensors:
    these only. dummy: nothing; they are made up, to measure with."""
    device: Annotated[str, flag(MODEL, "DEVICE", value="NAME")] = "cpu"
    """What to compute on; plugins offer more."""
    threads: Annotated[Count, flag(MODEL, "THREADS")] = 0
    """CPU threads. 0: as many as there are cores."""
    sharded: Annotated[Literal["true", "false"] | None, flag(MODEL, "SHARDED")] = None
    """Whether to split the model over several ranks. true without --num-shard: over all cards that
    HABANA_VISIBLE_MODULES or HABANA_VISIBLE_DEVICES lists, or else there are."""
    num_shard: Annotated[
        Count | None,
        flag(MODEL, "NUM_SHARD", "SM_NUM_GPUS", vllm=["--tensor-parallel-size", "-tp"]),
    ] = None
    """Over how many ranks, each a process with a card of its own. On a CPU they share its threads."""
    rope_scaling: Annotated[Literal["linear", "dynamic"] | None, flag(MODEL, "ROPE_SCALING")] = None
    """Replaces the RoPE scaling of the model's config.json."""
    rope_factor: Annotated[Amount | None, flag(MODEL, "ROPE_FACTOR")] = None
    """Its factor. Alone: linear scaling. Without it: 1.0."""
    huggingface_hub_cache: Annotated[
        Path | None, flag(MODEL, "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE", value="FOLDER")
    ] = None
    """Where models are kept. Without it, $HF_HOME/hub."""
    weights_cache_override: Annotated[Path | None, flag(MODEL, "WEIGHTS_CACHE_OVERRIDE", value="FOLDER")] = (
        None
    )
    """A folder with the model's files, used instead of the Hub."""
    served_model_name: Annotated[str | None, flag(MODEL, "SERVED_MODEL_NAME", value="NAME")] = None
    """Name of the model in answers. Without it, --model-id."""
    tokenizer_config_path: Annotated[Path | None, flag(MODEL, "TOKENIZER_CONFIG_PATH"), flags.FILE] = None
    """A file that replaces the model's tokenizer_config.json when a chat template is looked for."""
    chat_template: Annotated[Path | None, flag(MODEL, "CHAT_TEMPLATE"), flags.FILE] = None
    """A file with a Jinja template that replaces the model's own."""
    watermark_gamma: Annotated[Amount, flag(MODEL, "WATERMARK_GAMMA")] = 0.5
    """Share of the vocabulary that a watermark favours."""
    watermark_delta: Annotated[float, flag(MODEL, "WATERMARK_DELTA", value="N")] = 2.0
    """What a watermark adds to their logits."""

    max_input_tokens: Annotated[Count | None, flag(LIMITS, "MAX_INPUT_TOKENS")] = None
    """Longest prompt. Without it, --max-total-tokens less 1."""
    max_input_length: Annotated[Count | None, flag(LIMITS, "MAX_INPUT_LENGTH")] = None
    """The old name of --max-input-tokens."""
    max_total_tokens: Annotated[Count | None, flag(LIMITS, "MAX_TOTAL_TOKENS", vllm=["--max-model-len"])] = (
        None
    )
    """Longest prompt and answer together. Without it, 4096, or less where the model was made for less."""
    max_best_of: Annotated[Count, flag(LIMITS, "MAX_BEST_OF")] = 2
    """Largest `best_of`."""
    max_stop_sequences: Annotated[Count, flag(LIMITS, "MAX_STOP_SEQUENCES")] = 4
    """Most stop sequences."""
    max_top_n_tokens: Annotated[Count, flag(LIMITS, "MAX_TOP_N_TOKENS")] = 5
    """Largest `top_n_tokens`."""
    max_client_batch_size: Annotated[Count, flag(LIMITS, "MAX_CLIENT_BATCH_SIZE")] = 4
    """Most prompts in one request."""
    disable_grammar_support: Annotated[bool, flag(LIMITS, "DISABLE_GRAMMAR_SUPPORT")] = False
    """Refuse `grammar`, `response_format` and `tools`."""
    payload_limit: Annotated[Count, flag(LIMITS, "PAYLOAD_LIMIT")] = 2_000_000
    """Largest body of a request, in bytes."""

    max_concurrent_requests: Annotated[Count, flag(BATCH, "MAX_CONCURRENT_REQUESTS")] = 128
    """Texts that are asked for at once, waiting ones included; a request for more is answered 429."""
    max_batch_size: Annotated[Count | None, flag(BATCH, "MAX_BATCH_SIZE", vllm=["--max-num-seqs"])] = None
    """Sequences that are computed together. Without it, what suits the device (cpu: 32)."""
    max_batch_prefill_tokens: Annotated[
        Count | None, flag(BATCH, "MAX_BATCH_PREFILL_TOKENS", vllm=["--max-num-batched-tokens"])
    ] = None
    """Prompt tokens of one step; longer ones take several. Without it, what suits the device (cpu: 512)."""
    max_batch_total_tokens: Annotated[Count | None, flag(BATCH, "MAX_BATCH_TOTAL_TOKENS")] = None
    """Tokens in the KV cache. Without it, as many as there is memory for."""
    waiting_served_ratio: Annotated[Amount, flag(BATCH, "WAITING_SERVED_RATIO")] = 0.3
    """Waiting requests, as a share of the running ones, that interrupt these for a prefill."""
    max_waiting_tokens: Annotated[Count, flag(BATCH, "MAX_WAITING_TOKENS")] = 20
    """Steps after which any waiting request does."""
    prefix_caching: Annotated[
        bool,
        flag(
            BATCH,
            "PREFIX_CACHING",
            vllm=["--enable-prefix-caching"],
            negative=["--no-prefix-caching", "--no-enable-prefix-caching"],
        ),
    ] = True
    """Keep what was computed of a prompt for others that begin alike."""

    bucketing: Annotated[
        Literal["optimal", "linear", "exponential", "padding-aware"],
        flag(BUCKETS, "BUCKETING", "VLLM_BUCKETING_STRATEGY", split=flags.strategy),
    ] = "optimal"
    """How the shapes that steps are padded to are chosen, on a device that compiles them: for the least
    padding, or as vLLM does on Gaudi."""
    max_graphs: Annotated[Count | None, flag(BUCKETS, "MAX_GRAPHS")] = None
    """Most shapes, each of which is a graph. Without it, 64 if they are chosen for the least padding."""
    max_waste: Annotated[Amount | None, flag(BUCKETS, "MAX_WASTE")] = None
    """Most that padding may add to the time of a step, as a share of it, if shapes are chosen for the least
    padding. Without it, 1, and more where the graphs are too few for that."""
    bucket_shapes: Annotated[Path | None, flag(BUCKETS, "BUCKET_SHAPES"), flags.FILE] = None
    """A file that --record-shapes has written: what to choose shapes for. Without it, for all alike."""
    record_shapes: Annotated[Path | None, flag(BUCKETS, "RECORD_SHAPES", value="FILE")] = None
    """Every minute and when the server ends, add the shapes of its steps to this file."""

    memory_fraction: Annotated[
        Share | None,
        flag(MEMORY, "MEMORY_FRACTION", "HPU_MEMORY_FRACTION", vllm=["--gpu-memory-utilization"]),
    ] = None
    """Share of the memory beside the weights that may be used. Without it, what suits the device (cpu: 1)."""
    graph_memory_fraction: Annotated[
        Share | None,
        flag(MEMORY, "GRAPH_MEMORY_FRACTION", "TGI_GRAPH_RESERVED_MEM", "VLLM_GRAPH_RESERVED_MEM"),
    ] = None
    """Share of that which is kept for graphs. Without it, what as many of them are expected to take."""
    warmup_timeout: Annotated[Amount, flag(MEMORY, "WARMUP_TIMEOUT")] = 900.0
    """Seconds that the first step of a bucket may take, which compiles it."""
    warmup_budget: Annotated[Amount | None, flag(MEMORY, "WARMUP_BUDGET")] = None
    """Seconds that the warm-up may take in all: there are as few buckets as that takes."""
    skip_warmup: Annotated[bool, flag(MEMORY, "SKIP_WARMUP", "VLLM_SKIP_WARMUP")] = False
    """Warm up the largest buckets only; the others are compiled while requests wait for them."""
    recipe_cache: Annotated[Path | None, flag(MEMORY, "RECIPE_CACHE", value="FOLDER")] = None
    """A folder on a local disk where a Gaudi keeps what it has compiled for the next start."""

    hostname: Annotated[
        str, flag(HTTP, "HOSTNAME", value="ADDRESS", vllm=["--host"], split=flags.address)
    ] = "0.0.0.0"
    """IP address to listen on, or localhost. Any other name is taken for 0.0.0.0."""
    port: Annotated[Port, flag(HTTP, "PORT", short="-p")] = 3000
    """Port to listen on."""
    api_key: Annotated[
        tuple[str, ...], flag(HTTP, "API_KEY", "VLLM_API_KEY", value="KEY", split=flags.keys)
    ] = ()
    """What clients must send as `Authorization: Bearer …`. Can be given again, in the variable with a comma
    between: any of them will do."""
    cors_allow_origin: Annotated[
        tuple[str, ...], flag(HTTP, "CORS_ALLOW_ORIGIN", value="ORIGIN", split=flags.origins)
    ] = ()
    """An origin that browsers may call from. Can be given again. *, and without it: any."""
    graceful_termination_timeout: Annotated[
        Amount,
        flag(HTTP, "GRACEFUL_TERMINATION_TIMEOUT", short="-g", vllm=["--shutdown-timeout"]),
    ] = 90.0
    """Seconds that running requests have to finish after SIGTERM."""
    drain_delay: Annotated[Amount, flag(HTTP, "DRAIN_DELAY")] = 0.0
    """Seconds from SIGTERM, when /health turns to 503, until new connections are refused. A load balancer
    needs some 5."""
    keep_alive_timeout: Annotated[Amount, flag(HTTP, "KEEP_ALIVE_TIMEOUT")] = 75.0
    """Seconds after which an idle connection is closed; more than a load balancer's."""
    aip_predict_route: Annotated[str | None, flag(HTTP, "AIP_PREDICT_ROUTE", value="PATH"), flags.ROUTE] = (
        None
    )
    """Another path for /vertex. Vertex AI sets this and the next, and with AIP_HTTP_PORT the port."""
    aip_health_route: Annotated[str | None, flag(HTTP, "AIP_HEALTH_ROUTE", value="PATH"), flags.ROUTE] = None
    """Another path for /health."""
    compute_type: Annotated[str, flag(HTTP, "COMPUTE_TYPE", value="TEXT")] = "gpu+optimized"
    """Value of the header x-compute-type."""

    json_output: Annotated[bool, flag(LOG, "JSON_OUTPUT")] = False
    """Log in JSON, one object a line."""
    log_level: Annotated[str, flag(LOG, "LOG_LEVEL", "VLLM_LOGGING_LEVEL", value="LEVEL")] = "info"
    """debug, info, warn or error."""
    env: Annotated[bool, flag(LOG, short="-e")] = False
    """Log the versions of everything first."""
    trace_plugins: Annotated[bool, flag(LOG, "TRACE_PLUGINS")] = False
    """Log every hook of a plugin that is called, and its result. `tgi plugins` lists what is installed."""
    otlp_endpoint: Annotated[str | None, flag(LOG, "OTLP_ENDPOINT", value="URL")] = None
    """URL of an OpenTelemetry collector that gets a trace of every request."""
    otlp_service_name: Annotated[str, flag(LOG, "OTLP_SERVICE_NAME", value="NAME")] = (
        "text-generation-inference.router"
    )
    """The name of this server in traces."""

    foreign: Annotated[Foreign, Parameter(name="*")] = attrs.field(factory=Foreign)

    def checked(self, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
        """Check what can be checked before the model is known; yields a warning for each oddity.

        Raises OptionError, with TGI's text where TGI has the same check.
        """
        self._check_shards()
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise OptionError(
                f"Both `max_input_tokens` ({self.max_input_tokens}) and `max_input_length` "
                f"({self.max_input_length}) are set. Please define only `max_input_tokens` as "
                "`max_input_length` is deprecated for naming consistency."
            )
        if self.max_batch_size == 0:
            raise OptionError("`max_batch_size` must be > 0")
        reasons = (*self.foreign.contradictions(self.num_shard or 1), *self.foreign.refusals(environment))
        for reason in reasons:
            raise OptionError(reason)
        self._check_keys()
        if self.dtype in ("float16", "half"):
            yield "float16 is slow or missing on the devices of this server: computing in bfloat16"
        if self.hostname != "localhost" and not flags.is_address(self.hostname):
            yield f"the host name {self.hostname!r} is no IP address: listening on 0.0.0.0"
        if "," in str(self.recipe_cache or ""):
            raise OptionError("the folder of --recipe-cache must have no comma in its name")
        if self.recipe_cache is not None and "PT_HPU_RECIPE_CACHE_CONFIG" in environment:
            yield "--recipe-cache has no effect: PT_HPU_RECIPE_CACHE_CONFIG says where recipes are kept"
        yield from self.foreign.warnings(environment)
        if (names := _bucket_variables(environment)) and self.bucketing == "optimal":
            yield f"variables without effect on --bucketing optimal: {', '.join(names)}"

    def _check_shards(self) -> None:
        if self.num_shard is None:
            return
        if self.num_shard < 1:
            raise OptionError("`num_shard` cannot be < 1")
        if self.num_shard == 1 and self.sharded == "true":
            raise OptionError("`sharded` is true but `num_shard` <= 1")

    def _check_keys(self) -> None:
        """A key that no client could send would lock everybody out, and an empty one is no key."""
        for key in self.api_key:
            if not key:
                raise OptionError("an API key is empty: give a key, or leave out --api-key and API_KEY")
            if not (key.isascii() and key.isprintable()) or key != key.strip():
                raise OptionError("an API key must be printable ASCII, without spaces around it")

    @property
    def address(self) -> str:
        """Where to listen."""
        if self.hostname == "localhost":
            return "127.0.0.1"
        return self.hostname if flags.is_address(self.hostname) else "0.0.0.0"

    @property
    def compute_dtype(self) -> str:
        """As a rank understands it: "float32", "bfloat16" or "auto"."""
        return DTYPES[self.dtype]

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


def map_legacy_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that huggingface_hub, which reads the environment itself, lacks under these older names."""
    if "HF_TOKEN" in environment:
        return {}
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"):
        if name in environment:
            return {"HF_TOKEN": environment[name]}
    return {}


def bucket_ranges(environment: Mapping[str, str] = os.environ) -> dict[str, list[int | None]]:
    """First size, step and last size of each dimension: VLLM_DECODE_BS_BUCKET_STEP=16. Raises OptionError."""
    ranges: dict[str, list[int | None]] = {}
    for name in _bucket_variables(environment):
        if not environment[name].isdecimal():
            raise OptionError(f"{name} must be a whole number. Given: {environment[name]!r}")
        dimension, place = BUCKET_VARIABLES[name]
        ranges.setdefault(dimension, [None, None, None])[place] = int(environment[name])
    return ranges


def _bucket_variables(environment: Mapping[str, str]) -> list[str]:
    return [name for name in BUCKET_VARIABLES if name in environment]


def vertex_port(environment: Mapping[str, str] = os.environ) -> str | None:
    """The port that Vertex AI wants a server on, which beats every other (R1.22); None when it is no port."""
    text = environment.get("AIP_HTTP_PORT", "")
    return text if text.isdecimal() and int(text) <= 65535 else None
