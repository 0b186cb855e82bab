"""An adapter of Mixtral, as small as they can be; installed by test_moe.py."""

from typing import Any

import attrs
from torch import nn

from tgi.layers import Build, GatedMLP, LlamaDecoder, MixtureOfExperts
from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, read_llama_config


@attrs.frozen(kw_only=True)
class MixtralConfig(LlamaConfig):
    experts: int
    top: int


def read_config(get: JsonReader) -> MixtralConfig:
    common = attrs.asdict(read_llama_config(get), recurse=False)
    return MixtralConfig(**common, experts=get.size("num_local_experts"), top=get.size("num_experts_per_tok"))


class Mixtral(LlamaDecoder):
    def make_mlp(self, config: Any, build: Build, name: str) -> nn.Module:
        hidden, inner, moe = config.hidden_size, config.intermediate_size, f"{name}.block_sparse_moe"
        experts = [
            GatedMLP(build, f"{moe}.experts.{number}", hidden, inner, names=("w1", "w3", "w2"))
            for number in range(config.experts)
        ]
        return MixtureOfExperts(build, f"{moe}.gate", experts, hidden, config.top)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    return [Architecture("MixtralForCausalLM", f"{__name__}:Mixtral", read_config)]
