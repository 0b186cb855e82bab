"""Flags and variables of text-generation-launcher and vLLM without effect here, each with the reason.

Scripts written for those servers must start this one. A flag that is harmless to leave out is accepted with a
warning; one that would change answers is refused.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, get_args

import attrs
from cyclopts import Parameter

from tgi.flags import REFUSED, refused, unused

HARMLESS = (None, False, "", "0", "none", "auto")
"""Values with which a refused option is accepted, because they ask for nothing."""
OTHER_BUCKETS = "buckets are chosen by cost: see --max-graphs, --max-waste and --bucket-shapes"
UNUSED_VARIABLES = {
    "ATTENTION": "each device has one implementation of paged attention",
    "DUMP_STACK": "tracebacks are in the log",
    "ENABLE_HPU_GRAPH": "PT_HPU_LAZY_MODE chooses between graphs and torch.compile",
    "FLASH_ATTENTION_RECOMPUTE": "prompts always use the fused kernel where it is faster",
    "LIMIT_HPU_GRAPH": "prefill graphs keep no tensors and take little memory",
    "PREFILL_CHUNKING": "long prompts are always prefilled in chunks",
    "REQUEST_LOGPROBS": "log-probabilities are always computed",
    "SKIP_TOKENIZER_IN_TGI": "ranks never load a tokenizer",
    "TEXT_GENERATION_SERVER_IGNORE_EOS_TOKEN": "requests can set ignore_eos",
    "TGI_WIGGLE_ROOM": "--memory-fraction sets the share of memory that is used",
    "USE_FLASH_ATTENTION": "prompts always use the fused kernel where it is faster",
    "VLLM_GRAPH_PROMPT_RATIO": "all graphs share one memory reserve",
    **dict.fromkeys(
        (
            "BATCH_BUCKET_SIZE",
            "PAD_SEQUENCE_TO_MULTIPLE_OF",
            "PREFILL_BATCH_BUCKET_SIZE",
            "VLLM_BUCKETING_STRATEGY",
            "VLLM_EXPONENTIAL_BUCKETING",
        ),
        OTHER_BUCKETS,
    ),
    **{
        f"VLLM_{dimension}_BUCKET_{bound}": OTHER_BUCKETS
        for dimension in (
            "PROMPT_BS",
            "PROMPT_SEQ",
            "PROMPT_QUERY",
            "PROMPT_CTX",
            "DECODE_BS",
            "DECODE_BLOCK",
        )
        for bound in ("MIN", "STEP", "MAX")
    },
}
"""Reason why a variable without a flag has no effect, by its name. TGI's images, its Gaudi backend and vLLM
on Gaudi set or read these."""

_Text = str | None
_Switch = bool | None


@attrs.frozen(kw_only=True)
class IgnoredFlags:
    """Values given for flags without effect. The help of a field is the reason why it has none."""

    trust_remote_code: Annotated[
        bool,
        unused(
            "TRUST_REMOTE_CODE",
            "HF_MODEL_TRUST_REMOTE_CODE",
            why="code from model repositories is never run",
        ),
    ] = False
    validation_workers: Annotated[
        _Text, unused("VALIDATION_WORKERS", why="tokenisation uses as many threads as needed")
    ] = None
    cuda_graphs: Annotated[_Text, unused("CUDA_GRAPHS", why="--max-graphs limits the number of graphs")] = (
        None
    )
    cuda_memory_fraction: Annotated[
        _Text,
        unused(
            "CUDA_MEMORY_FRACTION",
            why="--memory-fraction sets the share of memory left by the weights",
        ),
    ] = None
    disable_custom_kernels: Annotated[
        bool, unused("DISABLE_CUSTOM_KERNELS", why="the device chooses its kernels")
    ] = False
    enable_prefill_logprobs: Annotated[
        bool, unused("ENABLE_PREFILL_LOGPROBS", why="requests that ask for them always get them")
    ] = False
    prometheus_port: Annotated[_Text, unused("PROMETHEUS_PORT", why="/metrics is on --port")] = None
    shard_uds_path: Annotated[
        _Text, unused("SHARD_UDS_PATH", why="ranks are connected by unnamed sockets")
    ] = None
    master_shard_uds_path: Annotated[
        _Text, unused("MASTER_SHARD_UDS_PATH", why="ranks are connected by unnamed sockets")
    ] = None
    master_addr: Annotated[_Text, unused("MASTER_ADDR", why="all ranks run on this machine")] = None
    master_port: Annotated[_Text, unused("MASTER_PORT", why="all ranks run on this machine")] = None
    usage_stats: Annotated[_Text, unused("USAGE_STATS", why="usage statistics are never sent")] = None
    tokenizer_name: Annotated[_Text, unused("TOKENIZER_NAME", why="the model's own tokenizer is used")] = None
    max_image_fetch_size: Annotated[_Text, unused("MAX_IMAGE_FETCH_SIZE", why="images are not supported")] = (
        None
    )
    ngrok: Annotated[bool, unused("NGROK", why="run the tunnel separately")] = False
    ngrok_authtoken: Annotated[_Text, unused("NGROK_AUTHTOKEN", why="run the tunnel separately")] = None
    ngrok_edge: Annotated[_Text, unused("NGROK_EDGE", why="run the tunnel separately")] = None

    task: Annotated[_Text, unused(why="the model's files tell whether it gives embeddings")] = None
    runner: Annotated[_Text, unused(why="the model's files tell whether it gives embeddings")] = None
    convert: Annotated[_Text, unused(why="the model's files tell whether it gives embeddings")] = None
    enforce_eager: Annotated[_Switch, unused(why="the device decides whether steps run as graphs")] = None
    enable_chunked_prefill: Annotated[_Switch, unused(why="always on")] = None
    enable_auto_tool_choice: Annotated[_Switch, unused(why="tool calls are always enabled")] = None
    tool_call_parser: Annotated[_Text, unused(why="the format is recognised from the chat template")] = None
    reasoning_parser: Annotated[_Text, unused(why="the format is recognised from the chat template")] = None
    seed: Annotated[_Text, unused(why="each request has its own seed")] = None
    speculative_config: Annotated[_Text, unused(why="--speculate guesses tokens, without another model")] = (
        None
    )
    block_size: Annotated[_Text, unused(why="the device sets the block size")] = None
    swap_space: Annotated[_Text, unused(why="preempted sequences are recomputed")] = None
    disable_log_requests: Annotated[_Switch, unused(why="the text of requests is never logged")] = None
    max_num_queued_reqs: Annotated[
        _Text, unused(why="--max-concurrent-requests counts waiting and running requests")
    ] = None

    enable_ssl_refresh: Annotated[
        _Switch, unused(why="changed files of --tls-cert and --tls-key are always read again")
    ] = None

    ssl_ca_certs: Annotated[
        _Text, refused(why="clients cannot be asked for certificates: let a proxy do it, or use --api-key")
    ] = None
    ssl_cert_reqs: Annotated[
        _Text, refused(why="clients cannot be asked for certificates: let a proxy do it, or use --api-key")
    ] = None
    max_cpu_loras: Annotated[
        _Text, unused(why="every LoRA adapter is in the device's memory: --max-loras counts them")
    ] = None
    lora_dtype: Annotated[_Text, unused(why="LoRA adapters are in the model's dtype")] = None
    specialize_active_lora: Annotated[
        _Switch, unused(why="steps without LoRA adapters always have programs of their own")
    ] = None
    default_mm_loras: Annotated[_Text, refused(why="images and sounds are not supported")] = None
    fully_sharded_loras: Annotated[
        _Switch, unused(why="LoRA adapters are always divided over the ranks as their layers are")
    ] = None

    def contradictions(self) -> Iterator[str]:
        """Yield the combinations that TGI's launcher refuses, in its words."""
        if self.validation_workers == "0":
            yield "`validation_workers` must be > 0"
        if self.ngrok and self.ngrok_authtoken is None:
            yield "`ngrok-authtoken` must be set when using ngrok tunneling"
        if self.ngrok and self.ngrok_edge is None:
            yield "`ngrok-edge` must be set when using ngrok tunneling"

    def refusals(self) -> Iterator[str]:
        """Yield a message for each flag that the server refuses to start with."""
        for name, is_refused, why in reasons():
            if is_refused and getattr(self, name) not in HARMLESS:
                yield f"{_spelt(name)} is not supported: {why}"

    def warnings(self, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
        """Yield a warning for each flag and variable that is given without effect."""
        for name, is_refused, why in reasons():
            if not is_refused and getattr(self, name) != getattr(IgnoredFlags(), name):
                yield f"{_spelt(name)} has no effect: {why}"
        if names := sorted(UNUSED_VARIABLES.keys() & environment.keys()):
            listed = ", ".join(f"{name} ({UNUSED_VARIABLES[name]})" for name in names)
            yield f"variables without effect: {listed}"


def reasons() -> Iterator[tuple[str, bool, str]]:
    """Yield the name of each flag, whether it is refused, and the reason."""
    for field in attrs.fields(IgnoredFlags):
        parameter: Parameter = get_args(field.type)[1]
        yield field.name, parameter.group == (REFUSED,), str(parameter.help)


def compat_help() -> str:
    """Return the paragraphs of --help about these flags."""
    accepted = ", ".join(_spelt(name) for name, is_refused, _ in reasons() if not is_refused)
    refused_names = ", ".join(_spelt(name) for name, is_refused, _ in reasons() if is_refused)
    return (
        f"Flags of text-generation-launcher and vLLM that are accepted without effect: {accepted}.\n\n"
        f"Flags that are refused: {refused_names}.\n\n"
        "docs/options.md has the reasons, and vLLM's names of the options above."
    )


def _spelt(name: str) -> str:
    return f"--{name.replace('_', '-')}"
