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
PATTERNS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}[tT]{_TIME}"}
"""Patterns of formats that are narrower than llguidance's: they exclude 29 February in other years than leap
years, and, as common libraries do, year 0 and leap seconds."""
ENFORCED = frozenset(("duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
"""Formats of llguidance."""
ALL = ENFORCED | PATTERNS.keys()
"""Formats that are enforced. Others are annotations, as JSON Schema allows."""
