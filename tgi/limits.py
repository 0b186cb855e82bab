"""Limits of a running server, and the blocks that tokens lie in. Ranks import this module, so it is small."""

import attrs


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
    """Maximum sequences that run at once."""
    max_batch_total_tokens: int | None = None
    """Tokens in the KV cache; None: as memory allows."""
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    speculate: int = 0
    """Maximum tokens that are guessed for a sequence in a step; 0: none are."""
    stages: int = 1
    """Stages of the pipeline: running sequences divide into as many steps, so that each stage has one."""
    block_size: int = 16
    """Tokens in a KV block of the device."""
    window: int | None = None
    """Tokens that a token sees, itself included, in the layers that see most; None: the whole sequence."""
    contiguous: bool = False
    """Whether decode steps read the KV cache in one piece, up to the highest block that one of their rows
    has. Each block then belongs to one sequence, and the lowest free ones are handed out first."""
    max_client_batch_size: int = 4
    payload_limit: int = 2_000_000
    """Maximum bytes of a request's body."""

    @property
    def decode_rows(self) -> int:
        """Maximum rows of a decode step: all running sequences, or the share of a stage."""
        return -(-self.max_batch_size // self.stages)

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
