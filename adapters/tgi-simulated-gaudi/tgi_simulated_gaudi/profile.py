"""What the simulated cards are: sizes, peaks and costs of a generation, and what a release of the bridge
can do."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Engine = Literal["lazy", "compile"]
GIB = 1 << 30


@attrs.frozen(kw_only=True)
class Generation:
    """A kind of card. Rates are bytes or operations per second."""

    name: str
    memory_bytes: int
    """What a process sees of the memory."""
    fp8_limit: float
    """The greatest magnitude that e4m3 has."""
    bf16_flops: float
    fp8_flops: float
    hbm_rate: float
    sram_rate: float
    sram_bytes: int
    host_rate: float
    """To or from the host, one way."""
    link_rate: float
    """To the other cards of the box, one way."""
    launch_seconds: float
    """Of a step beside the roofline."""


GENERATIONS = {
    "gaudi2": Generation(
        name="gaudi2",
        memory_bytes=int(94.62 * GIB),
        fp8_limit=240.0,
        bf16_flops=432e12,
        fp8_flops=865e12,
        hbm_rate=2.46e12,
        sram_rate=6.4e12,
        sram_bytes=48 << 20,
        host_rate=32e9,
        link_rate=262.5e9,
        launch_seconds=0.8e-3,
    ),
    "gaudi3": Generation(
        name="gaudi3",
        memory_bytes=int(126.5 * GIB),
        fp8_limit=448.0,
        bf16_flops=1835e12,
        fp8_flops=1835e12,
        hbm_rate=3.67e12,
        sram_rate=12.8e12,
        sram_bytes=96 << 20,
        host_rate=64e9,
        link_rate=525e9,
        launch_seconds=1.5e-3,
    ),
}
"""Peaks of Intel's Hot Chips 2024 deck; the memory that logs show. Gaudi2's SRAM rate and Gaudi3's share of
links inside a box are estimates. The launch time is fitted to published single-row decode rates."""


@attrs.frozen(kw_only=True)
class Profile:
    """A card with a release of the bridge."""

    generation: Generation
    engine: Engine
    memory_bytes: int
    lazy_collectives: bool = False
    """Collectives are graph nodes (PT_HPU_ENABLE_LAZY_COLLECTIVES)."""
    strict_int64: bool = False
    """Refuse int64 tensors that are sent to the device or made on it, not only values that do not fit."""
    efficiency: float = 0.87
    """Share of the peaks that is reached."""
    graph_bytes: int = 10 << 20
    """What each graph keeps."""
    segment_seconds: float = 0.2
    op_seconds: float = 0.01
    """A compilation takes one of the first and one of the second per operation."""
    recipe_cache: str = ""
    """Folder in which compiled recipes outlive the process (PT_HPU_RECIPE_CACHE_CONFIG)."""

    @property
    def name(self) -> str:
        """As `of` takes it."""
        return f"{self.generation.name}-{self.engine}"

    @property
    def release(self) -> str:
        """The bridge's release whose behaviour this is."""
        return "1.21.0" if self.engine == "lazy" else "1.24.0"

    @classmethod
    def of(cls, name: str, **changes: Any) -> "Profile":
        """From "gaudi2-lazy", "gaudi3-compile", and so on. Raises ValueError for another name."""
        generation, _, engine = name.partition("-")
        if generation not in GENERATIONS or engine not in ("lazy", "compile"):
            raise ValueError(f"{name!r} is not gaudi2-lazy, gaudi2-compile, gaudi3-lazy or gaudi3-compile")
        card = GENERATIONS[generation]
        made = cls(generation=card, engine=engine, memory_bytes=card.memory_bytes)  # type: ignore[arg-type]
        return attrs.evolve(made, **changes)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], generation: str = "gaudi2") -> "Profile":
        """By the variables that the bridge itself reads."""
        lazy = environ.get("PT_HPU_LAZY_MODE", "0") == "1"
        folder = environ.get("PT_HPU_RECIPE_CACHE_CONFIG", "").split(",")[0]
        collectives = environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "").lower() in ("1", "true")
        return cls.of(
            f"{generation}-{'lazy' if lazy else 'compile'}",
            lazy_collectives=collectives,
            recipe_cache=folder,
        )
