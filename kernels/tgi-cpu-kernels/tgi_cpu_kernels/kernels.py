"""The functions of a library, as methods that take and give tensors."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from .interface import GATES, KINDS, SIGNATURES, TYPES, UNIT, Attention, Linear, Quantized
from .packed_ints import PackedInts, by_unit


class Kernels:
    """The functions of one library.

    Tensors are on the CPU, float32 or bfloat16; what the kernels cannot read in place is copied.
    """

    def __init__(self, functions: ctypes.CDLL, name: str, remark: str) -> None:
        self.name = name
        """Instruction set."""
        self.remark = remark
        """Reason why a better one is not used, if one is built and fails; or ""."""
        self._functions = functions
        for function, (result, arguments) in SIGNATURES.items():
            getattr(functions, function).restype = TYPES[result]
            getattr(functions, function).argtypes = [TYPES[letter] for letter in arguments]

    def use_threads(self, count: int) -> None:
        """Share the work among that many threads, the calling one included, from the next call on.

        They belong to the library, not to one instance. A call that comes while another one runs, from
        another thread of the program, does all its work itself.
        """
        self._functions.tgi_use_threads(count)

    def packed_size(self, dtype: torch.dtype, n: int, k: int) -> int:
        """Return how many numbers `pack` gives for a weight [n, k]."""
        return int(self._functions.tgi_packed_size(KINDS[dtype], n, k))

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight [n, k] in the order that `linear` reads, as one dimension, padded."""
        packed = weight.new_empty(self.packed_size(weight.dtype, *weight.shape))
        self.pack_rows(weight, packed, 0)
        return packed

    def pack_rows(self, rows: torch.Tensor, packed: torch.Tensor, first: int) -> None:
        """Pack the rows [m, k] of a weight from `first` on, a multiple of UNIT, into their place in `packed`.

        m is a multiple of UNIT too, unless these are the last rows.
        """
        rows = _whole_rows(rows)
        m, k = rows.shape
        place = packed[self.packed_size(rows.dtype, first, k) :]
        self._functions.tgi_pack(KINDS[rows.dtype], _place(rows), m, k, rows.stride(0), _place(place))

    def packed_rows(self, packed: torch.Tensor, n: int, k: int, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of a packed weight [n, k] by their indices, as [len(indices), k].

        They are the numbers that were packed; an index below 0 or beyond n has zeros.
        """
        indices = indices.long().contiguous()
        out = packed.new_empty(len(indices), k)
        self._functions.tgi_packed_rows(
            KINDS[packed.dtype], _place(packed), n, k, _place(indices), len(indices), _place(out)
        )
        return out

    def linear(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        n: int,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x [m, k] times the packed weight's transpose, plus bias [n] and residual [m, n], as [m, n].

        Everything is added in float32 and rounded once.
        """
        x, residual = _whole_rows(x), None if residual is None else _whole_rows(residual)
        m, k = x.shape
        y = x.new_empty(m, n)
        arguments = Linear(
            _place(x), _place(packed), _place(bias), _place(residual), _place(y),
            m, n, k, x.stride(0), 0 if residual is None else residual.stride(0), n,
        )  # fmt: skip
        self._functions.tgi_linear(KINDS[x.dtype], ctypes.byref(arguments))
        return y

    def pack_ints(
        self,
        numbers: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bits: int,
        group: int,
        shares: torch.Tensor | None = None,
        minima: torch.Tensor | None = None,
        table: Sequence[int] | None = None,
    ) -> PackedInts:
        """Return a weight (numbers - zeros) * scales in the order that `quantized_linear` reads.

        numbers [n, k] uint8 are below 2^bits, which is 2^8 or 2^4; scales [n, groups] float32 and zeros
        [n, groups] uint8 belong to `group` input features each, the last ones perhaps to fewer. Without zeros
        they are half of the range. `group` is a multiple of 8, or at least k; k is at most
        MAX_QUANTIZED_FEATURES.

        With shares [n, groups] int8, float8_e4m3fn that is not negative, or uint8 in e8m0, scales are
        [n, groups / span], rounded up, span a power of 2, and the scale of a group is the product. With
        minima, as many as scales, weights are numbers * scale - zeros * minimum. With a table of 16 integers
        of 8 bits, and neither zeros nor minima, they are table[numbers] * scale.
        """
        n, k = numbers.shape
        group = -(-min(group, k) // 8) * 8
        sizes = n, k, bits, group
        packed = numbers.new_empty(self._functions.tgi_packed_ints_size(*sizes))
        self._functions.tgi_pack_ints(_place(numbers.contiguous()), *sizes, _place(packed))
        span = 1 << (-(-k // group) // scales.shape[1] - 1).bit_length()
        zeros, shares, minima = (None if each is None else by_unit(each) for each in (zeros, shares, minima))
        values = None if table is None else torch.tensor(table, dtype=torch.int8)
        return PackedInts(packed, by_unit(scales), zeros, n, k, bits, group, shares, minima, span, values)

    def empty_ints(self, n: int, k: int, bits: int, group: int, *, symmetric: bool) -> PackedInts:
        """Return a weight [n, k] for `round_rows`, in the order that `quantized_linear` reads.

        A symmetric group of input features has 0 in the middle of its range; any other is rounded between
        its least and greatest number, 0 included. `bits` is 8 or 4, `group` and k are those of `pack_ints`.
        """
        group = -(-min(group, k) // 8) * 8
        units, groups = -(-n // UNIT), -(-k // group)
        numbers = torch.empty(self._functions.tgi_packed_ints_size(n, k, bits, group), dtype=torch.uint8)
        scales = torch.empty(units, groups, UNIT)
        zeros = None if symmetric else torch.empty(units, groups, UNIT, dtype=torch.uint8)
        return PackedInts(numbers, scales, zeros, n, k, bits, group)

    def round_rows(self, rows: torch.Tensor, weight: PackedInts, first: int) -> None:
        """Round the dense rows [m, k] of a weight from `first` on, a multiple of UNIT, into their place.

        m is a multiple of UNIT too, unless these are the last rows.
        """
        rows = _whole_rows(rows)
        m, k = rows.shape
        skipped = self._functions.tgi_packed_ints_size(first, k, weight.bits, weight.group)
        unit = first // UNIT
        self._functions.tgi_round_and_pack(
            KINDS[rows.dtype], _place(rows), m, k, rows.stride(0), weight.bits, weight.group,
            _place(weight.numbers[skipped:]), _place(weight.scales[unit:]),
            None if weight.zeros is None else _place(weight.zeros[unit:]),
        )  # fmt: skip

    def round_and_pack(self, weight: torch.Tensor, bits: int, group: int, *, symmetric: bool) -> PackedInts:
        """Round a dense weight [n, k] to integers, as in `empty_ints`."""
        n, k = weight.shape
        packed = self.empty_ints(n, k, bits, group, symmetric=symmetric)
        self.round_rows(weight, packed, 0)
        return packed

    def quantized_linear(
        self,
        x: torch.Tensor,
        weight: PackedInts,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x [m, k] times the weight's transpose, plus bias [n] and residual [m, n], as [m, n].

        x is rounded to multiples of 1/127 of the greatest number of each row and group.
        """
        x, residual = _whole_rows(x), None if residual is None else _whole_rows(residual)
        m, y = x.shape[0], x.new_empty(x.shape[0], weight.n)
        linear = Linear(
            *map(_place, (x, weight.numbers, bias, residual, y)),
            m, weight.n, weight.k, x.stride(0), 0 if residual is None else residual.stride(0), weight.n,
        )  # fmt: skip
        places = map(_place, (weight.scales, weight.zeros, weight.shares, weight.minima, weight.table))
        arguments = Quantized(linear, *places, *weight.sizes)
        self._functions.tgi_quantized_linear(KINDS[x.dtype], ctypes.byref(arguments))
        return y

    def store_kv(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Write key and value [tokens, kv_heads, size] to the slots [tokens] int32 of a layer's cache.

        A layer's cache is two tensors of blocks * BLOCK * kv_heads * size numbers in the kernels' own order.
        """
        key, value = _whole_heads(key), _whole_heads(value)
        tokens, kv_heads, size = key.shape
        self._functions.tgi_store_kv(
            KINDS[key.dtype], _place(key), _place(value), tokens, kv_heads, size,
            key.stride(0), value.stride(0), _place(slots), _place(keys), _place(values),
        )  # fmt: skip

    def attention(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kv_heads: int,
        tables: torch.Tensor,
        offsets: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        bases: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return causal attention of query [tokens, heads, size] over a layer's cache, in the same shape.

        Row r has `lengths[r]` query tokens from `offsets[r]` on, at positions from `starts[r]` on, whose keys
        and values are in the cache already. tables [rows, width] int32 are block ids; the first is that of
        position `bases[r]`, a multiple of BLOCK (0 without bases). All of these are int32, slopes and
        sinks [heads] float32. `size` is a multiple of 16, at most MAX_HEAD_SIZE. A query sees the last
        `window` tokens (0: all), or, if that is -n, those of its own chunk of n tokens. Softmax
        weights are rounded to the cache's type before they are multiplied with values.
        """
        query = _whole_heads(query)
        tokens, heads, size = query.shape
        out = query.new_empty(tokens, heads, size)
        arguments = Attention(
            *map(_place, (query, keys, values, out, tables, offsets, lengths, starts, bases, slopes)),
            lengths.shape[0], tables.shape[1], heads, kv_heads, size, query.stride(0), window, scale, softcap,
            _place(sinks),
        )  # fmt: skip
        self._functions.tgi_attention(KINDS[query.dtype], ctypes.byref(arguments))
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return x [rows, size] over the root of its mean square, times weight [size]."""
        x = _whole_rows(x)
        rows, size = x.shape
        out = x.new_empty(rows, size)
        self._functions.tgi_rms_norm(
            KINDS[x.dtype], _place(x), _place(weight), epsilon, rows, size, x.stride(0), _place(out)
        )
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up [rows, size], the halves of gate_up [rows, 2 size]."""
        gate_up = gate_up.contiguous()
        rows, both = gate_up.shape
        out = gate_up.new_empty(rows, both // 2)
        arguments = (_place(gate_up), rows, both // 2, _place(out))
        self._functions.tgi_gate(KINDS[gate_up.dtype], GATES["silu"], *arguments)
        return out

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotate the first r features of x [tokens, heads, size] in place by cos, sin [tokens, r / 2]."""
        assert _whole_heads(x) is x, "heads must follow one another"
        tokens, heads, size = x.shape
        self._functions.tgi_rotary(
            KINDS[x.dtype], _place(x), tokens, heads, size, x.stride(0),
            _place(cos), _place(sin), 2 * cos.shape[1],
        )  # fmt: skip

    def lora(self, dtype: torch.dtype, arguments: ctypes.Structure) -> None:
        """Add what `lora.LoraTable` asks for."""
        self._functions.tgi_lora(KINDS[dtype], ctypes.byref(arguments))

    def experts(self, dtype: torch.dtype, arguments: ctypes.Structure) -> None:
        """Run the experts of a layer; see `experts.Experts`."""
        self._functions.tgi_experts(KINDS[dtype], ctypes.byref(arguments))

    def decode(self, dtype: torch.dtype, layers: ctypes.Array[Any], step: ctypes.Structure) -> None:
        """Run layers of `decoder.Decoder`."""
        self._functions.tgi_decode(KINDS[dtype], ctypes.byref(layers), len(layers), ctypes.byref(step))

    def greedy(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index [rows] int64 of the greatest of scores [rows, size], and its log-probability.

        That is [rows] float32, by the softmax of each row. The first of equals wins. A row with NaN or an
        infinite maximum has NaN.
        """
        scores = _whole_rows(scores)
        rows, size = scores.shape
        best, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        self._functions.tgi_greedy(
            KINDS[scores.dtype], _place(scores), rows, size, scores.stride(0),
            _place(best), _place(logprobs),
        )  # fmt: skip
        return best, logprobs

    def log_softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of scores [rows, size] float32, the same bits as those of `greedy`."""
        scores = _whole_rows(scores)
        rows, size = scores.shape
        out = torch.empty(rows, size)
        self._functions.tgi_log_softmax(_place(scores), rows, size, scores.stride(0), _place(out))
        return out

    def draw(self, logprobs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Draw an index [rows] int64 for each row of log-probabilities [rows, size] float32.

        It is the one with the greatest log-probability - log(e), where e is exponentially distributed and
        made of a hash of the index and of the row's random bits, keys [rows] int32.
        """
        logprobs, keys = _whole_rows(logprobs), keys.contiguous()
        rows, size = logprobs.shape
        out = torch.empty(rows, dtype=torch.int64)
        self._functions.tgi_draw(_place(logprobs), rows, size, logprobs.stride(0), _place(keys), _place(out))
        return out

    def top_cut(
        self, scores: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the least score [rows, 1] that stays of each row of scores [rows, size] float32.

        Of the best top_k [rows] int32 (0: all) the fewest stay that have the share top_p [rows] float32 of
        their probability (1: all).
        """
        scores = _whole_rows(scores)
        rows, size = scores.shape
        top_k, top_p = (column if column is None else column.contiguous() for column in (top_k, top_p))
        cut = torch.empty(rows, 1)
        self._functions.tgi_top_cut(
            _place(scores), rows, size, scores.stride(0), _place(top_k), _place(top_p), _place(cut)
        )
        return cut


def _whole_rows(x: torch.Tensor) -> torch.Tensor:
    """Return x [rows, size], copied if the numbers of a row do not follow one another."""
    return x if x.stride(1) == 1 else x.contiguous()


def _whole_heads(x: torch.Tensor) -> torch.Tensor:
    """Return x [tokens, heads, size], copied if the heads of a token do not follow one another."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _place(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
