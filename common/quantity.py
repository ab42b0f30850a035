"""The spellings of booleans, numbers, durations and sizes in environment variables (http-api.md 30).

Each function takes the text of a variable and returns a plain value, or raises ValueError with the rule it breaks,
worded to follow the variable's name ("must be …").
"""

from __future__ import annotations

import re

_SECONDS_PER_UNIT = {"ms": 0.001, "msec": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "": 0.001}
_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "kib": 1024,
    "mb": 1000**2,
    "mib": 1024**2,
    "gb": 1000**3,
    "gib": 1024**3,
}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_boolean(text: str) -> bool:
    """`false`, `0` and empty are false in any case, everything else is true."""
    return text.strip().lower() not in ("", "0", "false")


def parse_integer(text: str, low: int, high: int | None = None) -> int:
    """A whole number from `low` to `high`, both included."""
    limits = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) or not low <= int(text) <= (int(text) if high is None else high):
        raise ValueError(f"must be {limits}, not {text!r}")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds, from `<number><unit>` with ms, msec, s, sec, m or min; a bare number counts milliseconds."""
    found = _NUMBER_AND_UNIT.fullmatch(text)
    scale = _SECONDS_PER_UNIT.get(found.group(2).lower()) if found else None
    if found is None or scale is None or float(found.group(1)) <= 0:
        raise ValueError(f"must be a duration above zero such as 500ms, 30s or 2m, not {text!r}")
    return float(found.group(1)) * scale


def parse_size(text: str) -> int:
    """Bytes, from a bare number or one with B, KB, KiB, MB, MiB, GB or GiB."""
    found = _NUMBER_AND_UNIT.fullmatch(text)
    scale = _BYTES_PER_UNIT.get(found.group(2).lower()) if found else None
    if found is None or scale is None or float(found.group(1)) * scale < 1:
        raise ValueError(f"must be a size above zero such as 1048576 or 10MiB, not {text!r}")
    return int(float(found.group(1)) * scale)
