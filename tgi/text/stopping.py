"""When a generation ends: length, end-of-sequence token, stop string, in this order (tgi-behaviour S40-S44)."""

import enum


class FinishReason(enum.Enum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"
