"""Description of a device: facts as data, and the names of functions that are imported where they are
needed."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .check import Doctor
from .machine import Machine


@attrs.frozen(kw_only=True)
class Card:
    """Model of a card: its size and its peak rates, for plans and for the choice of buckets."""

    memory_bytes: int = 0
    """Memory that a process can use, in bytes; 0: the memory of this machine, shared by its ranks."""
    flops: float = 0.0
    """Peak rate of matrix products in bfloat16, in operations per second; 0: unknown, so no time is
    planned."""
    bandwidth: float = 0.0
    """Peak rate of reading the card's memory, in bytes per second."""
    start: float = 0.0
    """Fixed time of a step, in seconds."""
    link: float = 0.0
    """Rate of a card's links to all other cards of a box together, one way, in bytes per second."""
    network: float = 0.0
    """Rate at which a card reaches cards of other boxes, one way, in bytes per second."""
    box: int = 8
    """Number of cards in a box."""


REFERENCE = Card(memory_bytes=96 << 30, flops=432e12, bandwidth=2.46e12, start=0.8e-3)
"""Card that is assumed for a device without `cards`: only the ratios of these rates matter to its buckets."""


@attrs.frozen(kw_only=True)
class DeviceSpec:
    """A kind of device that ranks can run on.

    A "module:name" is imported when it is needed: `implementation` in ranks, which may import torch, the
    others in the server, which may not.
    """

    name: str
    """Value of --device."""
    implementation: str
    """"module:Class" of a `tgi.device.base.Device`, called with the number of threads."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """Variables that rank processes are started with, unless they are set already."""
    block_size: int
    """Tokens in a KV block."""
    batch_size: int
    """Default of --max-batch-size, the rows of the largest decode step; the least one if `fills_memory`."""
    prefill_tokens: int
    """Default of --max-batch-prefill-tokens: query tokens, padding included, of the largest prefill step."""
    compiles: bool
    """Whether a step is a program of static shape: every bucket costs a compilation, so buckets are few,
    padded in all dimensions, and warmed up. If false, the bucket of a step is its exact shape."""
    flat: bool = False
    """Form of block tables on a device that compiles. True: one list of the blocks of all rows in decode, and
    in prefill a table per row of the blocks before the step; a bucket counts these blocks. False: a table per
    row that includes the blocks of the step."""
    contiguous: bool = False
    """Whether a device with `flat` can read the KV cache in one piece in decode, without a list of blocks."""
    mixes_rows: bool = False
    """Whether a step may hold decode rows and chunks of prompts at once; not on a device that compiles."""
    card_variables: Sequence[str] = ()
    """Variables that list the cards a server may use; the first that is set counts."""
    card_files: str = ""
    """Pattern of the device files of all cards; counted where no variable lists cards."""
    node_resources: Mapping[str, float] = attrs.field(factory=lambda: {"CPU": 1.0})
    """Resources of a Ray node that a rank takes, by Ray's names for them."""
    interface_variables: Sequence[str] = ()
    """Variables that name the network interface over which ranks on several nodes find each other."""
    cache_dtypes: frozenset[str] = frozenset()
    """Values of --kv-cache-dtype that the device supports, besides the model's dtype."""
    roundings: frozenset[str] = frozenset()
    """Values of --quantize by which the device can round a dense checkpoint while it is loaded."""
    keeps: frozenset[str] = frozenset()
    """Weights of a checkpoint that are multiplied as they are; others are made dense at loading. "tied": a
    head that is the embedding, too, is kept once."""
    memory_fraction: float = 1.0
    """Default of --memory-fraction: share of the free memory, after weights and workspace, that is used."""
    fills_memory: bool = False
    """Whether the KV cache takes all of that share by default, to keep prefixes in what no running sequence
    needs. If false, it is as large as a full batch needs."""
    cards: Mapping[str, Card] = attrs.field(factory=dict)
    """Models of the card, by the names that `tgi plan --device` takes."""
    installed: str = ""
    """"module:function", from a `Machine` to the names in `cards` of the cards in it; "": the first of
    `cards`."""
    costs: str = "tgi.device.costs:Costs.of"
    """"module:function", from a `ModelSize`, a `Card` and the block size to a `tgi.device.costs.Costs`."""
    compile_cache: str = ""
    """"module:function", from a folder to the variables that make ranks keep in it what they compile; "":
    they cannot."""
    compile_packages: Sequence[str] = ()
    """Distributions, besides tgi and torch, whose versions decide whether a compiled program can be
    reused."""
    doctor: str = "tgi.plugins.check:Doctor"
    """"module:Class" of a `tgi.plugins.check.Doctor`."""

    def installed_cards(self, machine: Machine) -> Sequence[str]:
        """Return the names of the cards in this machine, as far as they are known."""
        cards: Sequence[str] = pkgutil.resolve_name(self.installed)(machine) if self.installed else ()
        return cards

    def card(self, machine: Machine) -> tuple[str, Card]:
        """Return the name and the model of the card in this machine, or of the most usual one if it is
        unknown."""
        names = (*self.installed_cards(machine), *self.cards)
        name = next((name for name in names if name in self.cards), self.name)
        return name, self.cards.get(name, REFERENCE)

    def step_costs(self, size: Any, card: Card, block_size: int) -> Any:
        """Return the `Costs` of steps of a model of that `ModelSize` on a card."""
        return pkgutil.resolve_name(self.costs)(size, card, block_size)

    def compile_variables(self, folder: Path) -> Mapping[str, str]:
        """Return the variables that make ranks keep compiled programs in a folder."""
        function: Callable[[Path], Mapping[str, str]] = pkgutil.resolve_name(self.compile_cache)
        return function(folder)

    def open_doctor(self) -> Doctor:
        """Return the checks of this device."""
        doctor: Doctor = pkgutil.resolve_name(self.doctor)()
        return doctor
