"""Flags and variables of text-generation-launcher and vLLM that do nothing here, each with the reason.

Scripts written for those servers must start this one. What can be left out without harm is accepted, and said
to have no effect; what would change the answers is refused.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, get_args

import attrs
from cyclopts import Parameter

from tgi.flags import REFUSED, refused, unused

HARMLESS = (None, False, "", "0", "none", "auto")
"""Values that ask a refused option for nothing."""
UNUSED_VARIABLES = {
    "ATTENTION": "the device has one kind, over pages",
    "DUMP_STACK": "tracebacks are in the log",
    "ENABLE_HPU_GRAPH": "PT_HPU_LAZY_MODE chooses between graphs and torch.compile",
    "FLASH_ATTENTION_RECOMPUTE": "prompts always use the fused kernel where it is faster",
    "LIMIT_HPU_GRAPH": "graphs of prompts keep no tensors, and take little memory",
    "PREFILL_CHUNKING": "long prompts are always split",
    "REQUEST_LOGPROBS": "they are always computed",
    "SKIP_TOKENIZER_IN_TGI": "the ranks never have a tokenizer",
    "TEXT_GENERATION_SERVER_IGNORE_EOS_TOKEN": "a request can say ignore_eos",
    "TGI_WIGGLE_ROOM": "--memory-fraction says how much memory is used",
    "USE_EXPERT_PARALLEL": "there are no models with experts yet",
    "USE_FLASH_ATTENTION": "prompts always use the fused kernel where it is faster",
    "VLLM_CONTIGUOUS_PA": "blocks are shared between sequences, and so are gathered",
    "VLLM_EXPONENTIAL_BUCKETING": "--bucketing says how buckets are chosen",
    "VLLM_GRAPH_PROMPT_RATIO": "all graphs share one part of the memory",
}
"""Variables without a flag that TGI's images set or read (tgi-behaviour 6.5), scripts for TGI on Gaudi set
(users-and-ecosystem 4.1), and vLLM on Gaudi reads; each with the reason why it does nothing."""
REFUSED_VARIABLES = {
    "QUANT_CONFIG": "checkpoints in fp8 are served as they are, others are not quantized yet"
}

_Text = str | None
_Switch = bool | None


@attrs.frozen(kw_only=True)
class Foreign:
    """What was given of these flags. Their meaning is the reason why they have none."""

    trust_remote_code: Annotated[
        bool,
        unused(
            "TRUST_REMOTE_CODE",
            "HF_MODEL_TRUST_REMOTE_CODE",
            why="no code that comes with a model is ever run",
        ),
    ] = False
    validation_workers: Annotated[
        _Text, unused("VALIDATION_WORKERS", why="prompts are tokenised in as many threads as it takes")
    ] = None
    cuda_graphs: Annotated[
        _Text, unused("CUDA_GRAPHS", why="--max-graphs says how many graphs there are")
    ] = None
    cuda_memory_fraction: Annotated[
        _Text,
        unused(
            "CUDA_MEMORY_FRACTION",
            why="--memory-fraction says how much of what the weights leave is used",
        ),
    ] = None
    disable_custom_kernels: Annotated[
        bool, unused("DISABLE_CUSTOM_KERNELS", why="the device knows its kernels")
    ] = False
    enable_prefill_logprobs: Annotated[
        bool, unused("ENABLE_PREFILL_LOGPROBS", why="whoever asks for them gets them")
    ] = False
    prometheus_port: Annotated[_Text, unused("PROMETHEUS_PORT", why="/metrics is on --port")] = None
    shard_uds_path: Annotated[
        _Text, unused("SHARD_UDS_PATH", why="the sockets of the ranks have no path")
    ] = None
    master_shard_uds_path: Annotated[
        _Text, unused("MASTER_SHARD_UDS_PATH", why="the sockets of the ranks have no path")
    ] = None
    master_addr: Annotated[_Text, unused("MASTER_ADDR", why="all ranks are on this machine")] = None
    master_port: Annotated[_Text, unused("MASTER_PORT", why="all ranks are on this machine")] = None
    usage_stats: Annotated[_Text, unused("USAGE_STATS", why="no statistics are ever sent")] = None
    tokenizer_name: Annotated[_Text, unused("TOKENIZER_NAME", why="the tokenizer is the model's own")] = None
    max_image_fetch_size: Annotated[_Text, unused("MAX_IMAGE_FETCH_SIZE", why="no image is ever fetched")] = (
        None
    )
    ngrok: Annotated[bool, unused("NGROK", why="run the tunnel beside the server")] = False
    ngrok_authtoken: Annotated[_Text, unused("NGROK_AUTHTOKEN", why="run the tunnel beside the server")] = (
        None
    )
    ngrok_edge: Annotated[_Text, unused("NGROK_EDGE", why="run the tunnel beside the server")] = None

    enforce_eager: Annotated[_Switch, unused(why="the device knows whether steps are graphs")] = None
    enable_chunked_prefill: Annotated[_Switch, unused(why="long prompts are always split")] = None
    enable_auto_tool_choice: Annotated[_Switch, unused(why="tools are always on offer")] = None
    tool_call_parser: Annotated[_Text, unused(why="the chat template tells how the model calls tools")] = None
    reasoning_parser: Annotated[_Text, unused(why="the model's reasoning stays in its answer")] = None
    seed: Annotated[_Text, unused(why="a request has its own seed, or a random one")] = None
    block_size: Annotated[_Text, unused(why="the device knows the size of its blocks")] = None
    swap_space: Annotated[_Text, unused(why="what has to make room is computed again")] = None
    disable_log_requests: Annotated[_Switch, unused(why="a request is one line, without its text")] = None
    max_num_queued_reqs: Annotated[
        _Text, unused(why="--max-concurrent-requests counts the waiting and the running")
    ] = None

    quantize: Annotated[
        _Text,
        refused(
            "QUANTIZE",
            "HF_MODEL_QUANTIZE",
            why="checkpoints in fp8 are served as they are, others are not quantized yet",
            vllm=["--quantization", "-q"],
        ),
    ] = None
    speculate: Annotated[_Text, refused("SPECULATE", why="no speculation yet")] = None
    speculative_config: Annotated[_Text, refused(why="no speculation yet")] = None
    lora_adapters: Annotated[_Text, refused("LORA_ADAPTERS", why="no LoRA adapters yet")] = None
    enable_lora: Annotated[_Switch, refused(why="no LoRA adapters yet")] = None
    lora_modules: Annotated[_Text, refused(why="no LoRA adapters yet")] = None

    def contradictions(self, shards: int) -> Iterator[str]:
        """What TGI's launcher refuses, in its words."""
        if self.validation_workers == "0":
            yield "`validation_workers` must be > 0"
        if self.ngrok and self.ngrok_authtoken is None:
            yield "`ngrok-authtoken` must be set when using ngrok tunneling"
        if self.ngrok and self.ngrok_edge is None:
            yield "`ngrok-edge` must be set when using ngrok tunneling"
        if self.quantize == "exl2" and shards > 1:
            yield "Sharding is currently not supported with `exl2` quantization"
        for adapter in (self.lora_adapters or "").split(","):
            if adapter.count("@") > 1:
                yield f"Invalid LoRA adapter format: {adapter}"

    def refusals(self, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
        """Why the server cannot start with this."""
        for name, is_refused, why in described():
            if is_refused and getattr(self, name) not in HARMLESS:
                yield f"{_spelt(name)} is not supported: {why}"
        for name, why in REFUSED_VARIABLES.items():
            if environment.get(name, "") not in HARMLESS:
                yield f"{name} is not supported: {why}"

    def warnings(self, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
        """What was given in vain."""
        for name, is_refused, why in described():
            if not is_refused and getattr(self, name) != getattr(Foreign(), name):
                yield f"{_spelt(name)} has no effect: {why}"
        if names := sorted(UNUSED_VARIABLES.keys() & environment.keys()):
            told = ", ".join(f"{name} ({UNUSED_VARIABLES[name]})" for name in names)
            yield f"variables without effect: {told}"


def described() -> Iterator[tuple[str, bool, str]]:
    """Of each of these options its name, whether it is refused, and why."""
    for field in attrs.fields(Foreign):
        parameter: Parameter = get_args(field.type)[1]
        yield field.name, parameter.group == (REFUSED,), str(parameter.help)


def foreign_flags() -> str:
    """What the help says of all these."""
    accepted = ", ".join(_spelt(name) for name, is_refused, _ in described() if not is_refused)
    turned_down = ", ".join(_spelt(name) for name, is_refused, _ in described() if is_refused)
    return (
        f"Flags of text-generation-launcher and vLLM that are accepted without effect: {accepted}.\n\n"
        f"Flags that are refused for now: {turned_down}.\n\n"
        "Why, and what vLLM's names for the options above are: docs/options.md."
    )


def _spelt(name: str) -> str:
    return f"--{name.replace('_', '-')}"
