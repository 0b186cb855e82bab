"""docs/gaudi.md tells of every variable that scripts for a Gaudi set (users-and-ecosystem 4.1, tgi-behaviour
6.5, gaudi.md 3.1) what really becomes of it."""

import re
from pathlib import Path

import pytest

from tgi.cli import launcher_app
from tgi.compat_flags import OTHER_BUCKETS, UNUSED_VARIABLES

PAGE = (Path(__file__).parents[1] / "docs" / "gaudi.md").read_text("utf-8")
LEFT = "left to the software that reads it"
KNOWN = """
    ATTENTION BATCH_BUCKET_SIZE DUMP_STACK ENABLE_HPU_GRAPH FLASH_ATTENTION_RECOMPUTE
    HABANA_VISIBLE_DEVICES HPU_MEMORY_FRACTION LIMIT_HPU_GRAPH MAX_BATCH_SIZE
    OMPI_MCA_btl_vader_single_copy_mechanism PAD_SEQUENCE_TO_MULTIPLE_OF PREFILL_BATCH_BUCKET_SIZE
    PREFILL_CHUNKING PREFIX_CACHING PT_HPU_ENABLE_LAZY_COLLECTIVES PT_HPU_LAZY_MODE
    PT_HPU_RECIPE_CACHE_CONFIG PT_HPU_WEIGHT_SHARING QUANT_CONFIG REQUEST_LOGPROBS SKIP_TOKENIZER_IN_TGI
    TEXT_GENERATION_SERVER_IGNORE_EOS_TOKEN TGI_GRAPH_RESERVED_MEM TGI_WIGGLE_ROOM USE_EXPERT_PARALLEL
    USE_FLASH_ATTENTION VLLM_*_BUCKET_* VLLM_BUCKETING_STRATEGY VLLM_CONTIGUOUS_PA
    VLLM_EXPONENTIAL_BUCKETING VLLM_GRAPH_PROMPT_RATIO VLLM_GRAPH_RESERVED_MEM VLLM_SKIP_WARMUP
""".split()


def fates() -> dict[str, str]:
    """The table, as it is written."""
    _, _, section = PAGE.partition("\n## Variables\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {name.strip("`"): fate for name, fate in rows}


def options() -> dict[str, str]:
    """Flags by the variables that they have besides the one of their name."""
    found = {}
    for argument in launcher_app.assemble_argument_collection():
        for variable in argument.parameter.env_var or ():
            found[str(variable)] = argument.name
    return found


@pytest.mark.parametrize("variable", KNOWN)
def test_a_known_variable_is_told_of(variable: str) -> None:
    fate, flag = fates()[variable], options().get(variable)
    if variable in UNUSED_VARIABLES:
        assert fate == f"no effect: {UNUSED_VARIABLES[variable]}"
    elif variable == "VLLM_*_BUCKET_*":
        assert fate == f"no effect: {OTHER_BUCKETS}"
    elif flag is not None:
        assert fate == f"`{flag}`"
    else:
        assert fate.startswith(LEFT)


def test_nothing_else_is_told_of() -> None:
    assert fates().keys() == set(KNOWN)
    names = {re.sub("^VLLM_.*_BUCKET_.*", "VLLM_*_BUCKET_*", name) for name in UNUSED_VARIABLES}
    assert names <= set(KNOWN)
