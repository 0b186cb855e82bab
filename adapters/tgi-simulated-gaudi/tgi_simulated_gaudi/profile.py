"""Simulated cards: sizes, peaks and costs of a generation, and the abilities of a release of the bridge."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Engine = Literal["lazy", "compile"]
GIB = 1 << 30


@attrs.frozen(kw_only=True)
class Generation:
    """A kind of card. Rates are bytes or operations per second."""

    name: str
    """"gaudi2" or "gaudi3"."""
    memory_bytes: int
    """Bytes of memory that a process can use."""
    fp8_limit: float
    """Largest magnitude of e4m3."""
    bf16_flops: float
    """Peak rate of matrix products in bfloat16."""
    fp8_flops: float
    """Peak rate of matrix products in fp8."""
    hbm_rate: float
    """Rate of the memory on the card."""
    sram_rate: float
    """Rate of the memory on the die."""
    sram_bytes: int
    """Bytes of memory on the die."""
    host_rate: float
    """Rate to or from the host, one way."""
    link_rate: float
    """Rate to all other cards of the box together, one way."""
    launch_seconds: float
    """Fixed seconds of a step, besides the roofline."""


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
"""Generations by name: peaks of Intel's Hot Chips 2024 deck, memory as logs show it. Gaudi2's SRAM rate and
Gaudi3's share of links inside a box are estimates. The launch time is fitted to published single-row decode
rates."""


@attrs.frozen(kw_only=True)
class Profile:
    """A card with a release of the bridge."""

    generation: Generation
    engine: Engine
    """Mode of the bridge."""
    memory_bytes: int
    """Bytes of memory that the process can use."""
    lazy_collectives: bool = False
    """Whether collectives are graph nodes in lazy mode (PT_HPU_ENABLE_LAZY_COLLECTIVES)."""
    strict_int64: bool = False
    """Whether to refuse int64 tensors that the host sends, besides values that do not fit into 32 bits."""
    efficiency: float = 0.87
    """Share of the peak rates that operations reach."""
    graph_bytes: int = 10 << 20
    """Bytes that each graph keeps, besides tensors."""
    segment_seconds: float = 0.2
    """Fixed seconds of a compilation."""
    op_seconds: float = 0.01
    """Seconds of a compilation per operation."""
    refused: frozenset[str] = frozenset()
    """Names of the bridge's own kernels that this release has, and that fail on this card."""
    recipe_cache: str = ""
    """Folder in which compiled recipes outlive the process (PT_HPU_RECIPE_CACHE_CONFIG); "" for none."""

    @property
    def name(self) -> str:
        """Name that `Profile.of` takes."""
        return f"{self.generation.name}-{self.engine}"

    @property
    def release(self) -> str:
        """Release of the bridge that is simulated."""
        return "1.21.0" if self.engine == "lazy" else "1.24.0"

    @classmethod
    def of(cls, name: str, **changes: Any) -> "Profile":
        """Return the profile "gaudi2-lazy", "gaudi3-compile" and so on. Raises ValueError for other names."""
        generation, _, engine = name.partition("-")
        if generation not in GENERATIONS or engine not in ("lazy", "compile"):
            raise ValueError(f"{name!r} is not gaudi2-lazy, gaudi2-compile, gaudi3-lazy or gaudi3-compile")
        card = GENERATIONS[generation]
        made = cls(generation=card, engine=engine, memory_bytes=card.memory_bytes)  # type: ignore[arg-type]
        return attrs.evolve(made, **changes)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], generation: str = "gaudi2") -> "Profile":
        """Return the profile for the variables that the bridge itself reads."""
        lazy = environ.get("PT_HPU_LAZY_MODE", "0") == "1"
        folder = environ.get("PT_HPU_RECIPE_CACHE_CONFIG", "").split(",")[0]
        collectives = environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "").lower() in ("1", "true")
        return cls.of(
            f"{generation}-{'lazy' if lazy else 'compile'}",
            lazy_collectives=collectives,
            recipe_cache=folder,
        )
