"""Limits of a running server: the options, resolved for a model on a device."""

import attrs

from .config import OptionError, Options

DEFAULT_TOTAL_TOKENS = 4096


@attrs.frozen(kw_only=True)
class Limits:
    """Limits of a running server, all of them known."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_batch_prefill_tokens: int = 512
    """Maximum query tokens of a prefill step, padding included; longer prompts are prefilled in chunks."""
    max_batch_size: int = 32
    """Maximum rows of a decode step."""
    max_batch_total_tokens: int | None = None
    """Tokens in the KV cache; None: as memory allows, up to `max_batch_size` full sequences."""
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    block_size: int = 16
    """Tokens in a KV block of the device."""
    window: int | None = None
    """Tokens that a token sees, itself included, in the layers that see most; None: the whole sequence."""
    max_client_batch_size: int = 4
    payload_limit: int = 2_000_000
    """Maximum bytes of a request's body."""

    @property
    def longest_chunk(self) -> int:
        """Query tokens of the largest chunk of one prompt."""
        return min(self.max_batch_prefill_tokens, self.max_total_tokens)

    @property
    def sequence_tokens(self) -> int:
        """Maximum tokens of a sequence in the KV cache at once: a chunk of it and the window before."""
        if self.window is None:
            return self.max_total_tokens
        return min(self.max_total_tokens, self.window - 1 + self.max_batch_prefill_tokens)

    @property
    def sequence_blocks(self) -> int:
        """Maximum KV blocks of a sequence at once."""
        return self.seen_blocks(self.max_batch_prefill_tokens)

    def group_blocks(self, window: int | None) -> int:
        """Return the maximum KV blocks of a sequence at once in layers with that window."""
        return seen_blocks(self.max_total_tokens, self.max_batch_prefill_tokens, window, self.block_size)

    def seen_blocks(self, queries: int) -> int:
        """Return the maximum KV blocks that `queries` consecutive tokens of a sequence are in or see."""
        return seen_blocks(self.max_total_tokens, queries, self.window, self.block_size)


def seen_blocks(tokens: int, queries: int, window: int | None, block_size: int) -> int:
    """Return how many KV blocks of `tokens` tokens at most `queries` consecutive ones are in or see."""
    blocks = -(-tokens // block_size)
    return blocks if window is None else min(blocks, span(window + queries - 1, block_size))


def span(tokens: int, block_size: int) -> int:
    """Return the maximum KV blocks that `tokens` consecutive tokens lie in, wherever they begin."""
    return (tokens + block_size - 2) // block_size + 1


def first_block(position: int, window: int | None, block_size: int) -> int:
    """Return the number of the first KV block that the token at this position sees; window None: all."""
    return 0 if window is None else max(position + 1 - window, 0) // block_size


def resolve_limits(
    options: Options,
    *,
    max_position: int,
    block_size: int,
    batch_size: int,
    prefill_tokens: int,
    window: int | None = None,
    learned_positions: int | None = None,
) -> Limits:
    """Resolve the options for a model made for `max_position` tokens, on a device with these defaults.

    Raises OptionError with TGI's texts. The prefill budget may be below the longest prompt, which is then
    prefilled in chunks. --max-total-tokens may exceed `max_position`, but not the number of positions of a
    model that has learned each of them (`learned_positions`).
    """
    wanted = options.max_input_tokens if options.max_input_length is None else options.max_input_length
    total = options.max_total_tokens
    if total is None:
        total = min(max_position, max(DEFAULT_TOTAL_TOKENS, 0 if wanted is None else wanted + 1))
    if learned_positions is not None and total > learned_positions:
        raise OptionError(
            f"`max_total_tokens` must be <= {learned_positions}, how many positions this model has. "
            f"Given: {total}"
        )
    longest_prompt = total - 1 if wanted is None else wanted
    if longest_prompt >= total or longest_prompt < 1:
        raise OptionError(f"`max_input_tokens`({longest_prompt}) must be < `max_total_tokens`({total})")
    limits = Limits(
        max_concurrent_requests=options.max_concurrent_requests,
        max_best_of=options.max_best_of,
        max_stop_sequences=options.max_stop_sequences,
        max_top_n_tokens=options.max_top_n_tokens,
        max_input_tokens=longest_prompt,
        max_total_tokens=total,
        max_batch_prefill_tokens=options.max_batch_prefill_tokens or prefill_tokens,
        max_batch_size=options.max_batch_size or batch_size,
        max_batch_total_tokens=options.max_batch_total_tokens,
        waiting_served_ratio=options.waiting_served_ratio,
        max_waiting_tokens=options.max_waiting_tokens,
        block_size=block_size,
        window=None if window is None or window >= total else window,
        max_client_batch_size=options.max_client_batch_size,
        payload_limit=options.payload_limit,
    )
    batch_total, needed = limits.max_batch_total_tokens, limits.sequence_tokens
    if batch_total is not None and needed > batch_total:
        raise OptionError(
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch_total}"
            if needed == total
            else f"`max_batch_total_tokens` must be >= {needed}, a part of a prompt and the window before "
            f"it. Given: {batch_total}"
        )
    return limits
