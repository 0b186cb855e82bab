"""A text-generation server for large language models on accelerator cards and CPUs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgi.llm import LLM, SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what programs use only when they do, so that `tgi --help` stays quick."""
    if name in ("LLM", "SamplingParams"):
        from tgi import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
