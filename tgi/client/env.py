"""`tgi env`: what a report of a fault should say about the machine."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PACKAGES = (
    "tgi-server", "tgi-cpu-kernels", "torch", "transformers", "tokenizers", "llguidance", "msgspec", "trio",
    "quart", "quart-trio", "hypercorn", "huggingface-hub", "habana-torch-plugin", "optimum-habana", "triton",
)  # fmt: skip
VARIABLES = (
    "CUDA_", "GLOO_", "HABANA_", "HF_HUB_", "HPU_", "LD_", "NCCL_", "OMP_", "PT_HPU_", "TGI_", "VLLM_",
)  # fmt: skip
"""Beginnings of the names of variables that change how a server runs."""
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def print_environment() -> int:
    """Print the facts, one a line; return the exit code."""
    for name, value in facts():
        print(f"{name}: {value}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """Yield names and values. Values of variables whose names suggest a secret are left out."""
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    yield "processor", f"{_processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} threads"
    memory = psutil.virtual_memory()
    yield "memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            yield name, "(set)" if any(word in name for word in SECRETS) else value


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()
