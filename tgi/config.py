"""Options and limits: TGI's flags and environment variables. The only reader of the environment."""

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of a running server, all of them known."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_batch_prefill_tokens: int = 512
    """Padded query tokens of one prefill step; longer prompts are prefilled in chunks."""
    max_batch_size: int = 32
    """Rows of one decode step."""
    max_batch_total_tokens: int | None = None
    """Tokens in the KV cache; None: as many as there is memory for, up to max_batch_size full sequences."""
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    block_size: int = 16
    """Tokens in a KV block; the device's."""
