"""Checks of a processor that computes the model."""

import re
from collections.abc import Iterator

from tgi.config import Options
from tgi.plugins.check import Check, Doctor, ok, warn
from tgi.plugins.machine import Machine


class CpuDoctor(Doctor):
    """Checks of instructions and memory pages."""

    def checks(self, machine: Machine, options: Options) -> Iterator[Check]:
        """Yield all checks."""
        del options
        yield check_bfloat16(machine)
        yield check_huge_pages(machine)


def check_bfloat16(machine: Machine) -> Check:
    """Check that the processor multiplies bfloat16."""
    flags = set(re.findall(r"\w+", machine.text("/proc/cpuinfo")))
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")):
        if flag in flags:
            return ok("bfloat16", f"The CPU multiplies bfloat16 with {name}.")
    advice = "Use --dtype float32 if there is enough memory: nothing is rounded then."
    return warn("bfloat16", "The CPU has no instructions for bfloat16.", advice)


def check_huge_pages(machine: Machine) -> Check:
    """Check that ranks get the huge pages they ask for: weights are read faster from them."""
    modes = machine.text("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes:
        return ok("huge pages", "The system has no transparent huge pages.")
    mode = modes.partition("[")[2].partition("]")[0]
    found = f"Transparent huge pages are set to {mode}."
    if mode == "never":
        advice = (
            "Write madvise into /sys/kernel/mm/transparent_hugepage/enabled: weights are read faster then."
        )
        return warn("huge pages", found, advice)
    return ok("huge pages", found)
