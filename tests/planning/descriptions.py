"""Descriptions of models for tests that need no model."""

from typing import Any

from tgi.protocol import CacheGroup


def make_group(**changed: Any) -> CacheGroup:
    """A layer group with full attention and 8 key/value heads, unless told otherwise."""
    defaults: dict[str, Any] = {
        "window": None,
        "layers": [0],
        "kv_heads": 8,
        "all_kv_heads": 8,
        "head_dim": 8,
        "token_bytes": 64,
    }
    return CacheGroup(**{**defaults, **changed})
