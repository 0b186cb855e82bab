"""Options: one field each, from which flags, variables, file keys and help are made.

Names, variables and defaults are those of text-generation-launcher. No other module reads the environment.
Those of HTTP and logs are in tgi/server_options.py.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
from cyclopts import Parameter

from tgi import flags
from tgi.compat_flags import HARMLESS, IgnoredFlags
from tgi.flags import (
    BATCH,
    BUCKETS,
    LIMITS,
    MEMORY,
    MODEL,
    Amount,
    Count,
    LoraSource,
    Share,
    flag,
)
from tgi.server_options import ServerOptions

DEMO_MODEL = Path(__file__).parent / "demo"
"""Folder of the checkpoint that ships with the package."""
DTYPES = {
    None: "auto",
    "auto": "auto",
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "half": "bfloat16",
}
"""Dtype that ranks compute in, by the value of --dtype (TGI's and vLLM's spellings)."""


ROUNDINGS = {"int8": 0.0004, "int4": 0.0082, "fp8": 0.0025}
"""Values of --quantize that round a dense checkpoint, with the share by which that raises the demo model's
loss on words it has not seen; other values name the format of the checkpoint."""


LORAS = 8
"""Default of --max-loras with --enable-lora."""
LORA_RANK = 16
"""Default of --max-lora-rank with --enable-lora."""


class OptionError(Exception):
    """Options contradict each other or cannot be met; the message is one line for people."""


@attrs.frozen(kw_only=True)
class Options(ServerOptions):
    """Options as the user wrote them. A flag takes precedence over its variable."""

    config: Annotated[Path | None, flag(MODEL, "TGI_CONFIG", value="FILE")] = None
    """File of options, keyed by the names of flags: YAML if its name ends in .yaml, as vLLM's does, else
    TOML."""
    model_id: Annotated[str | None, flag(MODEL, "MODEL_ID", "HF_MODEL_ID", value="ID", vllm=["--model"])] = (
        None
    )
    """Folder or Hugging Face Hub id of the model. Default: the small demo model that ships with tgi."""
    revision: Annotated[str | None, flag(MODEL, "REVISION", "HF_MODEL_REVISION", value="NAME")] = None
    """Branch, tag or commit on the Hub."""
    dtype: Annotated[
        Literal["auto", "float32", "float", "bfloat16", "float16", "half"] | None, flag(MODEL, "DTYPE")
    ] = None
    """Dtype to compute in. auto, the default, is the device's fastest. float16 is treated as bfloat16."""
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8_e4m3fn", "fp8_e5m2"] | None, flag(MODEL, "KV_CACHE_DTYPE")
    ] = None
    """Dtype of the KV cache. auto, the default, is that of --dtype. fp8_e4m3fn needs a device that supports
    it."""
    expert_parallel: Annotated[
        bool, flag(MODEL, "EXPERT_PARALLEL", "USE_EXPERT_PARALLEL", vllm=["--enable-expert-parallel"])
    ] = False
    """Give each card whole experts, instead of a part of every expert."""
    load_format: Annotated[Literal["auto", "safetensors", "dummy"], flag(MODEL, "LOAD_FORMAT")] = "auto"
    """Source of the weights. auto reads *.safetensors, and converts *.bin if there are none; safetensors
    never converts; dummy makes up random weights, for benchmarks."""
    quantize: Annotated[
        str | None,
        flag(MODEL, "QUANTIZE", "HF_MODEL_QUANTIZE", value="FORMAT", vllm=["--quantization", "-q"]),
    ] = None
    """Weight format. int8 (cpu), int4 (cpu, hpu) and fp8 (hpu) round the linear layers of an unquantized
    checkpoint while it loads, which saves memory and time. Any other format must be the checkpoint's own.
    Default: the checkpoint's."""
    quant_config: Annotated[Path | None, flag(MODEL, "QUANT_CONFIG", value="FILE")] = None
    """Scales for fp8 that `tgi calibrate` or Neural Compressor measured: the config file that names the
    measurements. They also round linear layers to fp8, unless the file's allowlist has KV caches only."""
    device: Annotated[str, flag(MODEL, "DEVICE", value="NAME")] = "cpu"
    """Device to run on. `tgi plugins` lists the installed ones."""
    threads: Annotated[Count, flag(MODEL, "THREADS")] = 0
    """CPU threads of all ranks together. 0 means one per core."""
    sharded: Annotated[Literal["true", "false"] | None, flag(MODEL, "SHARDED")] = None
    """Split the model over several ranks. true without --num-shard uses every card listed in the device's
    variables, such as CUDA_VISIBLE_DEVICES, or else every card of the machine."""
    num_shard: Annotated[
        Count | None,
        flag(MODEL, "NUM_SHARD", "SM_NUM_GPUS", vllm=["--tensor-parallel-size", "-tp"]),
    ] = None
    """Number of ranks, each a process with its own card. On a CPU they share the threads."""
    pipeline_parallel_size: Annotated[
        Count,
        flag(MODEL, "PIPELINE_PARALLEL_SIZE", vllm=["-pp"]),
    ] = 1
    """Number of stages that the layers are divided into, each on --num-shard ranks of its own."""
    executor: Annotated[
        Literal["local", "mp", "ray"],
        flag(MODEL, "EXECUTOR", vllm=["--distributed-executor-backend"]),
    ] = "local"
    """Place of the ranks: local (vLLM's mp), on this machine; or ray, on the nodes of a Ray cluster
    (docs/multi-node.md)."""
    ray_address: Annotated[str, flag(MODEL, "RAY_ADDRESS", value="ADDRESS")] = "auto"
    """Address of the Ray cluster, HOST:PORT. auto: the cluster that this machine belongs to."""
    ray_wait: Annotated[Amount, flag(MODEL, "RAY_WAIT")] = 0.0
    """Seconds to wait at the start for the Ray cluster to have resources for all ranks."""
    replicas: Annotated[Count, flag(MODEL, "REPLICAS", vllm=["--data-parallel-size", "-dp"])] = 1
    """Number of copies of the model, each with --num-shard ranks, cards and a KV cache of its own. A request
    goes to the copy that has most of its prompt cached and least to do. On a CPU they share threads and
    memory."""
    rope_scaling: Annotated[Literal["linear", "dynamic"] | None, flag(MODEL, "ROPE_SCALING")] = None
    """RoPE scaling, instead of that in config.json."""
    rope_factor: Annotated[Amount | None, flag(MODEL, "ROPE_FACTOR")] = None
    """Factor of --rope-scaling. Default: 1.0. Without --rope-scaling, the scaling is linear."""
    huggingface_hub_cache: Annotated[
        Path | None, flag(MODEL, "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE", value="FOLDER")
    ] = None
    """Folder where downloaded models are kept. Default: $HF_HOME/hub."""
    weights_cache_override: Annotated[Path | None, flag(MODEL, "WEIGHTS_CACHE_OVERRIDE", value="FOLDER")] = (
        None
    )
    """Folder with the model's files, used instead of the Hub."""
    served_model_name: Annotated[str | None, flag(MODEL, "SERVED_MODEL_NAME", value="NAME")] = None
    """Name of the model in answers. Default: --model-id."""
    tokenizer_config_path: Annotated[Path | None, flag(MODEL, "TOKENIZER_CONFIG_PATH"), flags.FILE] = None
    """File to read the chat template from instead of the model's tokenizer_config.json."""
    chat_template: Annotated[Path | None, flag(MODEL, "CHAT_TEMPLATE"), flags.FILE] = None
    """File with a Jinja chat template to use instead of the model's own."""
    lora_adapters: Annotated[
        tuple[str, ...],
        flag(MODEL, "LORA_ADAPTERS", value="NAME=PATH,…", vllm=["--lora-modules"], several=True),
    ] = ()
    """LoRA adapters that requests may name: ids on the Hub, or names with a folder or an id."""
    enable_lora: Annotated[bool, flag(MODEL, "ENABLE_LORA")] = False
    """Make room for LoRA adapters that are loaded later."""
    max_loras: Annotated[Count | None, flag(MODEL, "MAX_LORAS")] = None
    """Maximum LoRA adapters in memory, never fewer than --lora-adapters names. Default: that number, and at
    least 8 with --enable-lora."""
    max_lora_rank: Annotated[Count | None, flag(MODEL, "MAX_LORA_RANK")] = None
    """Maximum rank of a LoRA adapter; every slot has room for it. Default: the greatest rank of
    --lora-adapters, and at least 16 with --enable-lora."""
    allow_runtime_lora_updating: Annotated[
        bool, flag(MODEL, "ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    ] = False
    """Answer /v1/load_lora_adapter and /v1/unload_lora_adapter, which let clients choose files that the
    server reads and downloads."""
    watermark_gamma: Annotated[Amount, flag(MODEL, "WATERMARK_GAMMA")] = 0.5
    """Share of the vocabulary that a watermark favours."""
    watermark_delta: Annotated[float, flag(MODEL, "WATERMARK_DELTA", value="N")] = 2.0
    """Value that a watermark adds to the logits of the tokens it favours."""

    max_input_tokens: Annotated[Count | None, flag(LIMITS, "MAX_INPUT_TOKENS")] = None
    """Maximum tokens of a prompt. Default: --max-total-tokens minus 1."""
    max_input_length: Annotated[Count | None, flag(LIMITS, "MAX_INPUT_LENGTH")] = None
    """Deprecated name of --max-input-tokens."""
    max_total_tokens: Annotated[Count | None, flag(LIMITS, "MAX_TOTAL_TOKENS", vllm=["--max-model-len"])] = (
        None
    )
    """Maximum tokens of prompt and answer together. Default: 4096, or the model's own maximum if that is
    lower."""
    max_best_of: Annotated[Count, flag(LIMITS, "MAX_BEST_OF")] = 2
    """Maximum value of `best_of`."""
    max_stop_sequences: Annotated[Count, flag(LIMITS, "MAX_STOP_SEQUENCES")] = 4
    """Maximum number of stop sequences in a request."""
    max_top_n_tokens: Annotated[Count, flag(LIMITS, "MAX_TOP_N_TOKENS")] = 5
    """Maximum value of `top_n_tokens`."""
    max_client_batch_size: Annotated[Count, flag(LIMITS, "MAX_CLIENT_BATCH_SIZE")] = 4
    """Maximum number of prompts in one request."""
    disable_grammar_support: Annotated[bool, flag(LIMITS, "DISABLE_GRAMMAR_SUPPORT")] = False
    """Refuse `grammar`, `response_format` and `tools`."""
    payload_limit: Annotated[Count, flag(LIMITS, "PAYLOAD_LIMIT")] = 2_000_000
    """Maximum size of a request body, in bytes."""

    max_concurrent_requests: Annotated[Count, flag(BATCH, "MAX_CONCURRENT_REQUESTS")] = 128
    """Maximum texts that are generated or wait at one time; requests beyond that get 429."""
    max_batch_size: Annotated[Count | None, flag(BATCH, "MAX_BATCH_SIZE", vllm=["--max-num-seqs"])] = None
    """Maximum sequences in a batch. Default: 32 on a CPU; on a card as many texts of half of
    --max-total-tokens as fit in its memory, between 64 (GPUs: 128) and 256, and at most
    --max-concurrent-requests."""
    max_batch_prefill_tokens: Annotated[
        Count | None, flag(BATCH, "MAX_BATCH_PREFILL_TOKENS", vllm=["--max-num-batched-tokens"])
    ] = None
    """Maximum prompt tokens in one step; longer prompts take several steps. Default: set by the device
    (cpu: 512)."""
    max_batch_total_tokens: Annotated[Count | None, flag(BATCH, "MAX_BATCH_TOTAL_TOKENS")] = None
    """Size of the KV cache in tokens. Default: as many as fit in memory."""
    waiting_served_ratio: Annotated[Amount, flag(BATCH, "WAITING_SERVED_RATIO")] = 0.3
    """Ratio of waiting to running requests at which the running batch is interrupted for a prefill. No effect
    on the CPU, whose steps mix prefill and decode."""
    max_waiting_tokens: Annotated[Count, flag(BATCH, "MAX_WAITING_TOKENS")] = 20
    """Decode steps after which waiting requests are prefilled regardless of --waiting-served-ratio. No effect
    on the CPU, whose steps mix prefill and decode."""
    prefix_caching: Annotated[
        bool,
        flag(
            BATCH,
            "PREFIX_CACHING",
            vllm=["--enable-prefix-caching"],
            negative=["--no-prefix-caching", "--no-enable-prefix-caching"],
        ),
    ] = True
    """Reuse the KV cache of prompts that begin with the same tokens."""
    contiguous_cache: Annotated[bool, flag(BATCH, "CONTIGUOUS_CACHE", "VLLM_CONTIGUOUS_PA")] = False
    """Read the KV cache in one piece in decode steps, not block by block: faster on a Gaudi while most of the
    cache is in use. Needs --no-prefix-caching; no effect on other devices."""

    speculate: Annotated[Count, flag(BATCH, "SPECULATE")] = 0
    """Maximum tokens to guess at once for a sequence that repeats itself or its prompt, as summaries and
    edits do. Answers stay the same. No effect on devices that compile."""

    max_graphs: Annotated[Count | None, flag(BUCKETS, "MAX_GRAPHS")] = None
    """Maximum number of buckets: the shapes to which devices that compile pad their steps. Each is a graph.
    Default: 64."""
    max_waste: Annotated[Amount | None, flag(BUCKETS, "MAX_WASTE")] = None
    """Maximum time that padding may add to a step, as a share of the step. Default: 1, or more if
    --max-graphs is too low for that."""
    bucket_shapes: Annotated[Path | None, flag(BUCKETS, "BUCKET_SHAPES"), flags.FILE] = None
    """File that --record-shapes wrote; buckets are chosen for its shapes. Default: all shapes are equally
    likely."""
    record_shapes: Annotated[Path | None, flag(BUCKETS, "RECORD_SHAPES", value="FILE")] = None
    """File to which the shapes of steps are added, every minute and when the server stops."""

    memory_fraction: Annotated[
        Share | None,
        flag(MEMORY, "MEMORY_FRACTION", "HPU_MEMORY_FRACTION", vllm=["--gpu-memory-utilization"]),
    ] = None
    """Share of the memory left by the weights that may be used. Default: set by the device (cpu: 0.5,
    cards: 0.9)."""
    graph_memory_fraction: Annotated[
        Share | None,
        flag(MEMORY, "GRAPH_MEMORY_FRACTION", "TGI_GRAPH_RESERVED_MEM", "VLLM_GRAPH_RESERVED_MEM"),
    ] = None
    """Share of usable memory reserved for graphs. Default: the estimated size of all graphs."""
    warmup_timeout: Annotated[Amount, flag(MEMORY, "WARMUP_TIMEOUT")] = 900.0
    """Maximum seconds for the first step of a bucket, which compiles it."""
    warmup_budget: Annotated[Amount | None, flag(MEMORY, "WARMUP_BUDGET")] = None
    """Maximum seconds for the whole warm-up; the number of buckets is reduced to fit."""
    skip_warmup: Annotated[bool, flag(MEMORY, "SKIP_WARMUP", "VLLM_SKIP_WARMUP")] = False
    """Warm up only the largest buckets; requests wait while the others are compiled."""
    recipe_cache: Annotated[Path | None, flag(MEMORY, "RECIPE_CACHE", value="FOLDER")] = None
    """Folder on a local disk where the device keeps compiled graphs for the next start."""

    ignored: Annotated[IgnoredFlags, Parameter(name="*")] = attrs.field(factory=IgnoredFlags)

    def checked(self, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
        """Check everything that needs no model; yield a warning for each option without effect.

        Raises OptionError, in TGI's words where TGI has the same check.
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
        reasons = (*self.ignored.contradictions(), *self.ignored.refusals())
        for reason in reasons:
            raise OptionError(reason)
        self._check_keys()
        if self.tls_key is not None and self.tls_cert is None:
            raise OptionError("--tls-key needs --tls-cert")
        _ = self.objective_priorities
        room = self.room_for_loras
        if self.allow_runtime_lora_updating and not room:
            yield "--allow-runtime-lora-updating has no effect without --enable-lora or --lora-adapters"
        if self.dtype in ("float16", "half"):
            yield "float16 is slow or missing on the devices of this server: computing in bfloat16"
        if "," in str(self.recipe_cache or ""):
            raise OptionError("the folder name of --recipe-cache must not contain a comma")
        yield from self.ignored.warnings(environment)

    @property
    def loras(self) -> list[LoraSource]:
        """LoRA adapters to load at the start. Raises OptionError, in TGI's words."""
        try:
            return LoraSource.read_all(self.lora_adapters)
        except ValueError as error:
            raise OptionError(str(error)) from error

    @property
    def objective_priorities(self) -> dict[str, int]:
        """Priority of each InferenceObjective, higher first. Raises OptionError."""
        try:
            return flags.read_priorities(self.objectives)
        except ValueError as error:
            raise OptionError(f"--objectives: {error}") from error

    @property
    def room_for_loras(self) -> int:
        """Number of LoRA adapters that fit."""
        given = len(self.loras)
        if not (given or self.enable_lora):
            return 0
        return max(given, (LORAS if self.enable_lora else 0) if self.max_loras is None else self.max_loras)

    def _check_shards(self) -> None:
        if self.pipeline_parallel_size < 1:
            raise OptionError("`pipeline_parallel_size` cannot be < 1")
        if self.replicas < 1:
            raise OptionError("`replicas` must be > 0")
        if self.num_shard is None:
            return
        if self.num_shard < 1:
            raise OptionError("`num_shard` cannot be < 1")
        if self.num_shard > 1 and self.quantize == "exl2":
            raise OptionError("Sharding is currently not supported with `exl2` quantization")
        if self.num_shard == 1 and self.sharded == "true":
            raise OptionError("`sharded` is true but `num_shard` <= 1")

    @property
    def ranks(self) -> int:
        """Number of ranks that the options name; --sharded true without --num-shard may mean more."""
        return (self.num_shard or 1) * self.pipeline_parallel_size

    def _check_keys(self) -> None:
        """Refuse an empty key, and one that no client could send and that would lock everybody out."""
        for key in self.api_key:
            if not key:
                raise OptionError("an API key is empty: give a key, or leave out --api-key and API_KEY")
            if not (key.isascii() and key.isprintable()) or key != key.strip():
                raise OptionError("an API key must be printable ASCII without surrounding spaces")

    @property
    def compute_dtype(self) -> str:
        """Dtype for the ranks: "float32", "bfloat16" or "auto"."""
        return DTYPES[self.dtype]

    @property
    def quantization(self) -> str:
        """Weight format that --quantize asks for; "": that of the checkpoint."""
        return "" if self.quantize in HARMLESS else str(self.quantize)

    def config_overrides(self, config: Mapping[str, Any]) -> dict[str, object]:
        """Return the keys that replace those of the model's config.json."""
        if self.rope_scaling is None and self.rope_factor is None:
            return {}
        scaling: dict[str, object] = {
            "rope_type": self.rope_scaling or "linear",
            "factor": self.rope_factor or 1.0,
        }
        theta = (config.get("rope_parameters") or {}).get("rope_theta")
        return {"rope_scaling": scaling if theta is None else {**scaling, "rope_theta": theta}}


def map_legacy_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for huggingface_hub, which does not know these older names of HF_TOKEN."""
    if "HF_TOKEN" in environment:
        return {}
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"):
        if name in environment:
            return {"HF_TOKEN": environment[name]}
    return {}


def hub_environment() -> dict[str, str]:
    """Return the variables of a process that asks the Hub."""
    return {**os.environ, **map_legacy_variables()}


def vertex_port() -> str | None:
    """Return AIP_HTTP_PORT, which Vertex AI sets and which beats --port (R1.22); None if it is not a port."""
    text = os.environ.get("AIP_HTTP_PORT", "")
    return text if text.isdecimal() and int(text) <= 65535 else None
