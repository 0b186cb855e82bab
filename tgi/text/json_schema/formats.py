"""Formats of strings."""

_DAYS = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
"""Two digits that are a multiple of 4, except 00."""
_DATE = f"(?:{_YEAR}-{_DAYS}|(?:{_FOURTH}00|[0-9]{{2}}{_FOURTH})-02-29)"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_HEX = "[0-9a-fA-F]{1,4}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LAST = rf"(?:{_HEX}:{_HEX}|{_BYTE}(?:\.{_BYTE}){{3}})"
"""The last 32 bits of an IPv6 address."""


def _ipv6() -> str:
    """Return the pattern of RFC 3986's `IPv6address`, which has all forms of RFC 4291, section 2.2."""
    forms = [f"(?:{_HEX}:){{6}}{_LAST}"]
    ends = [f"(?:{_HEX}:){{{count}}}{_LAST}" for count in reversed(range(6))]
    for most, end in enumerate([*ends, _HEX, ""]):
        start = f"(?:(?:{_HEX}:){{0,{most - 1}}}{_HEX})?" if most else ""
        forms.append(f"{start}::{end}")
    return f"(?:{'|'.join(forms)})"


PATTERNS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}[tT]{_TIME}", "ipv6": _ipv6()}
"""Patterns of formats that llguidance has otherwise. Dates exclude 29 February in other years than leap
years, and, as common libraries do, year 0 and leap seconds; IPv6 addresses may end in an IPv4 address."""
ENFORCED = frozenset(("duration", "email", "hostname", "ipv4", "uuid", "uri"))
"""Formats of llguidance."""
ALL = ENFORCED | PATTERNS.keys()
"""Formats that are enforced. Others are annotations, as JSON Schema allows."""
