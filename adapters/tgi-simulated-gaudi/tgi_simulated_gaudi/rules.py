"""Rules that the simulated card enforces, and the ledger of broken ones.

README.md has the same table. A broken rule raises GaudiRuleError, unless it has a budget (`Ledger.allow`):
then that many cases are counted, and only the next one raises.
"""

import contextlib
import functools
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import attrs

_PASSED_OVER = (str(Path(__file__).parent), contextlib.__file__, functools.__file__, "<")


@attrs.frozen
class Rule:
    """A restriction of the card that a CPU does not have."""

    id: str
    """Number of the rule, "S1"."""
    title: str
    """The rule itself."""
    why: str
    """Consequence on a card."""
    detected: str
    """Evidence by which the simulation finds a violation."""
    remedy: str
    """Advice for code that breaks the rule."""


class GaudiRuleError(RuntimeError):
    """Code broke a rule. The message names the rule, the operation and the place, and says what to do."""

    def __init__(self, rule: Rule, op: str, place: str, detail: str) -> None:
        super().__init__(f"{rule.id} {rule.title}: {detail} [{op} at {place}]. To do: {rule.remedy}.")
        self.rule, self.op, self.place = rule.id, op, place


@attrs.frozen
class Violation:
    """One case of a broken rule."""

    rule: str
    """Id of the rule."""
    op: str
    """Name of the operation or graph."""
    place: str
    """File and line of the code that broke the rule."""
    detail: str
    """Values that broke the rule."""


@attrs.define
class Ledger:
    """Violations in order, and counts of other events."""

    counters: Counter[str] = attrs.field(factory=Counter)
    """Number of events by name, and of violations by rule."""
    violations: list[Violation] = attrs.field(factory=list)
    _budgets: dict[str, float] = attrs.field(factory=dict)
    """Number of cases left before a rule raises."""

    def allow(self, rule: str, cases: float = float("inf")) -> None:
        """Only count the next `cases` violations of a rule."""
        self._budgets[_known(rule).id] = cases

    def violate(self, rule: str, op: str, detail: str) -> None:
        """Record a violation, and raise GaudiRuleError unless the rule has a budget left."""
        known, place = _known(rule), place_in_code()
        self.violations.append(Violation(rule, op, place, detail))
        self.counters[rule] += 1
        left = self._budgets.get(rule, 0)
        if left > 0:
            self._budgets[rule] = left - 1
            return
        raise GaudiRuleError(known, op, place, detail)


def place_in_code() -> str:
    """Return file and line of the innermost code that is neither torch's nor the simulation's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_PASSED_OVER) and "/torch/" not in name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown place"


def _known(rule: str) -> Rule:
    if rule not in RULES:
        raise KeyError(f"there is no rule {rule!r}")
    return RULES[rule]


_TABLE = (
    Rule(
        "S1",
        "nothing compiles after warm-up",
        "a new shape costs seconds while users wait",
        "every graph and every recipe has a key; after `seal()` an unknown one is refused",
        "warm up this shape, or pad it to one that was warmed up",
    ),
    Rule(
        "S2",
        "only tensors cross the border of a graph",
        "the bridge hashes scalars by value and objects by identity, and leaves the dtype out of its key",
        "an argument that is not a tensor takes a second value, or a shape comes with a second dtype",
        "pass the value as a tensor of one dtype, or make a function for each value",
    ),
    Rule(
        "S3",
        "shapes do not depend on data",
        "an operation whose output size is known only after it ran cannot be part of a graph",
        "a table of operations (nonzero, unique, boolean indices, …); outside of graphs they are counted",
        "use `where` or a mask of fixed shape",
    ),
    Rule(
        "S4",
        "no value is read on the host in a graph, and outside at most once in a step",
        "the host waits for the card, and a capture fails",
        "`item`, copies to the CPU, `equal`, printing; outside of graphs `step()` holds a budget",
        "keep the value on the device, or return it from the graph and read it once with all results",
    ),
    Rule(
        "S5",
        "no Python control flow on tensor values in a graph",
        "the branch taken at capture is taken for ever",
        "`bool(tensor)` while a graph is captured",
        "compute both branches and choose with `where`",
    ),
    Rule(
        "S6",
        "no CPU tensor among the arguments of a device operation",
        "an implicit copy; a capture fails, or bakes the value in",
        "a plain tensor with dimensions as an argument, or any copy from the host within a capture",
        "copy the tensor to the device before the graph, and pass it as an argument",
    ),
    Rule(
        "S7",
        "no memory beyond the plan",
        "the process dies under load",
        "every allocation is counted against the card's memory, also temporary ones of pending lazy work, "
        "and tensors that a lazy graph makes without a value and then writes, as `zeros` does; "
        "after `seal()` against a budget per step",
        "allocate before `seal()`, free tensors of earlier steps, launch pending work with `mark_step`, and "
        "let a graph compute the tensors that it writes, by `new_zeros` or `repeat`",
    ),
    Rule(
        "S8",
        "a graph's outputs are one static buffer",
        "the next replay overwrites what the last one returned",
        "outputs of an earlier replay, and views of them, cannot be used",
        "copy the output, or fetch it, before the next replay",
    ),
    Rule(
        "S9",
        "a graph's inputs are static buffers",
        "an input kept past the call shows the data of later calls",
        "a tensor that the captured code got as an argument cannot be used after the capture",
        "keep a copy that is made in the graph and returned from it",
    ),
    Rule(
        "S10",
        "Python runs only at capture",
        "later calls never enter the function: what it leaves in Python objects stays as it was",
        "the body runs once; replays run what it recorded; a tensor computed within cannot be kept",
        "return the tensor from the graph",
    ),
    Rule(
        "S11",
        "integers fit into 32 bits",
        "int64 is silently int32 on the device (PT_ENABLE_INT64_SUPPORT is off in lazy mode)",
        "values of int64 tensors are checked where they arise; `strict_int64` refuses the tensors",
        "use int32, and keep larger numbers on the host",
    ),
    Rule(
        "S12",
        "no float64, complex, sparse or unsigned 16 to 64 bit tensors",
        "not supported; float16 is, slowly, and counted",
        "the dtype and layout of every new tensor",
        "use float32, bfloat16 or int32",
    ),
    Rule(
        "S13",
        "fp8 is e4m3 up to 240 (Gaudi2) or 448 (Gaudi3)",
        "Gaudi2 has another range than the dtype's name says",
        "casts saturate there; an fp8 tensor from the host with greater values, and e5m2, are refused",
        "halve the values and double their scale, or convert the tensor on the device",
    ),
    Rule(
        "S14",
        "kernels exist for some dtypes only",
        "matrix products of integers or float16, sorts of integers and the like run on the host",
        "a table of dtypes per operation; an error in a graph, else counted as CPU fallback",
        "convert to a dtype that has a kernel, float32 or bfloat16 in most cases",
    ),
    Rule(
        "S15",
        "every operation has a kernel",
        "an unknown one runs on the host, and aborts a capture",
        "a list of operations; an error in a graph, else counted as CPU fallback",
        "write it with operations that have a kernel",
    ),
    Rule(
        "S16",
        "indices are in range and not negative",
        "the device checks nothing and reads or writes elsewhere",
        "values of indices are checked at every run and every replay",
        "clamp the indices, or give padding a place of its own",
    ),
    Rule(
        "S17",
        "no native one_hot",
        "-1 gives a row of zeros on the device and an error on the CPU",
        "`torch.nn.functional.one_hot` is refused",
        "compare the indices with `arange`",
    ),
    Rule(
        "S18",
        "captures do not nest",
        "fatal on the device, as is a replay within a capture or an end on another stream",
        "the recorder knows whether, and on which stream, a capture is running",
        "capture the outer function only, and end the capture on its stream",
    ),
    Rule(
        "S19",
        "all ranks issue the same collectives, in graphs only where they are graph nodes",
        "another order or size hangs all ranks; lazy mode needs PT_HPU_ENABLE_LAZY_COLLECTIVES",
        "ranks exchange a hash of name, shape and dtype before each collective and each replay",
        "let no collective depend on the rank; set PT_HPU_ENABLE_LAZY_COLLECTIVES=true for graphs in "
        "lazy mode",
    ),
    Rule(
        "S20",
        "collectives are sum, min and max of float32 or bfloat16",
        "other dtypes are silently converted to float32, product and average do not exist",
        "arguments of the collective",
        "convert before the collective; divide a sum for an average",
    ),
    Rule(
        "S21",
        "inputs of graphs and tensors that graphs use are changed as a whole",
        "in-place updates of views are not captured faithfully; in lazy mode those outside of graphs go to "
        "another place, and graphs that were captured before read what was",
        "an operation in place on a part or a view of a tensor from outside, or on an input (but for "
        "index_copy_); outside of graphs, in lazy mode, on a view of a tensor that a graph uses",
        "keep the tensor in the shape that is written, and write with `index_copy_` or `scatter_`",
    ),
    Rule(
        "S22",
        "the KV cache is written by owners, and holds no NaN",
        "silent corruption of another request",
        "`KVGuard.watch` names the cache and its pad block, `own` the owners; reads and writes are checked",
        "correct the slots or the block table of the step; write zeros for padding",
    ),
    Rule(
        "S23",
        "the contiguous layout has no shared block",
        "an entry has one owner; wrong rows otherwise",
        "`KVGuard.check_layout` of the metadata that the host built",
        "turn off sharing of prefixes, or use the layout with a list of blocks",
    ),
    Rule(
        "S24",
        "no random generator within a graph",
        "a shared generator makes seeds depend on neighbours",
        "random operations in a graph; outside they are counted",
        "pass random numbers as an input, or compute them from a seed and a counter",
    ),
    Rule(
        "S25",
        "compilation costs time and memory",
        "a warm-up of minutes to hours, and graphs that eat the memory",
        "each new recipe adds to the simulated clock and to the memory in use; `compile_budget` refuses more",
        "use fewer shapes, or keep recipes in a folder",
    ),
    Rule(
        "S26",
        "no fork after the device was opened",
        "the child hangs",
        "a hook of the process: the child cannot use the device",
        "start the child with spawn, or before the device is opened",
    ),
    Rule(
        "S27",
        "the work of another stream is waited for",
        "races",
        "streams have vector clocks; a host buffer holds rubbish until an event after the copy (if it is not "
        "pinned, until all is synchronised), and is not used again before",
        "wait for an event after the work before the memory is used, and copy to the host into pinned memory",
    ),
    Rule(
        "S28",
        "releases differ",
        "HPU graphs exist in lazy mode only, int64 and collectives differ",
        "the profile: what a release does not have is missing, or refused",
        "look for the function before it is used, as code for a card must",
    ),
    Rule(
        "S29",
        "no bit-casts in a graph",
        "`view(dtype)` keeps the old dtype in a lazy graph, so that bits are read as numbers; compiled, it "
        "runs on the host",
        "`view` to another dtype while a graph is captured",
        "pass integers and floats as tensors of their own",
    ),
    Rule(
        "S30",
        "layers that are alike are traced once",
        "in compile mode Dynamo takes a fifth of a second for each layer, and the compiler behind it more: a "
        "warm-up that grows with the number of layers",
        "the operations and shapes of each compiled function: at most three functions may have the same",
        "pass the layer as an argument of one function, and let it have no number of its own",
    ),
    Rule(
        "S31",
        "no operation on a tensor without elements in a graph",
        "the bridge leaves empty tensors of one dimension out of a `cat` only; of all others it makes nodes "
        "that the graph compiler may refuse",
        "arguments and results while a graph is captured",
        "leave the operation out, and the tensor",
    ),
)
RULES = {rule.id: rule for rule in _TABLE}
"""All rules by their ids."""
