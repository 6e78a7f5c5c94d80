"""Parsing of flags, durations and times in a query, in the forms of Docker's command line."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

FLAGS: Mapping[str, bool] = {
    "true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False,
}  # fmt: skip
"""Flag words, in lower case."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(h|ms|m|s|us|µs|ns)")
_DURATION = re.compile(f"(?:{_AMOUNT.pattern})+")
_EPOCH = re.compile(r"\d{1,15}|\d{1,11}\.\d{1,9}")
_LONGEST = timedelta(days=36_500)
_FIRST_MILLIS = 10**11
"""Smaller numbers are seconds. In seconds this is the year 5138, in milliseconds 1973."""


def duration(text: str) -> timedelta | None:
    """Parse a duration in Docker's form (`10m`, `1h30m`, `1.5h`), capped at a century; None for anything else."""
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(found[1]) * _UNITS[found[2]] for found in _AMOUNT.finditer(text))
    return timedelta(seconds=min(seconds, _LONGEST.total_seconds()))


def moment(text: str) -> datetime:
    """Parse a time: ISO 8601 (UTC without a zone), epoch seconds, also with a fraction, or epoch milliseconds.

    Raises ValueError, OverflowError, OSError for anything else.
    """
    if _EPOCH.fullmatch(text):
        return datetime.fromtimestamp(float(text) / (1 if float(text) < _FIRST_MILLIS else 1000), UTC)
    # An unescaped plus in a query is decoded as a space.
    found = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
