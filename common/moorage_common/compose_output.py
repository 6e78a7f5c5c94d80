"""What Compose prints, for people: JSON progress as lines, everything else as it is."""

import re
from collections.abc import Iterator

from moorage_common.untrusted import UntrustedError, parse_json

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_LONGEST_ENTRY = 1 << 20
"""A longer line is no entry of Compose's."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def render(raw: str) -> str:
    """Return raw output as readable lines: JSON progress as "Container x-1 Started", unknown lines unchanged.

    Terminal control sequences are taken out. A line that repeats the one before it (Compose prints some twice) is
    shown once.
    """
    lines: list[str] = []
    for text in map(readable, raw.splitlines()):
        if text and (not lines or lines[-1] != text):
            lines.append(text)
    return "\n".join(lines)


def readable(line: str) -> str:
    """Return one raw line as `render` shows it; empty where there is nothing to be read."""
    clean = _clean(line)
    return _progress_text(_json(clean), clean) if clean else ""


def error_sentence(raw: str) -> str | None:
    """Return what Compose gave as the reason of a failure, None where it printed nothing at all.

    The last `{"error":true}` message, else the last detail of a step in error, else the last line.
    """
    final = detail = last = ""
    for line in _lines(raw):
        entry = _json(line)
        if entry is not None and entry.get("error") is True:
            final = _clean(str(entry.get("message") or "")) or final
        elif entry is not None and entry.get("status") == "Error":
            detail = _clean(": ".join(str(entry[key]) for key in ("id", "details") if entry.get(key))) or detail
        last = _progress_text(entry, line)
    return " ".join((final or detail or last).split()) or None


def _lines(raw: str) -> Iterator[str]:
    for line in raw.splitlines():
        clean = _clean(line)
        if clean:
            yield clean


def printable(text: str) -> str:
    """Return text without terminal escape sequences and control characters; tabs and line breaks stay."""
    return _CONTROL.sub("", _ANSI.sub("", text))


def _clean(text: str) -> str:
    return printable(text).strip()


def _json(line: str) -> dict[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = parse_json(line, _LONGEST_ENTRY)
    except UntrustedError:
        return None
    return entry if isinstance(entry, dict) else None


def _progress_text(entry: dict[str, object] | None, line: str) -> str:
    """Return an entry as text, or the line itself where the entry says nothing. Never empty."""
    if entry is None:
        return line
    if entry.get("error") is True or "level" in entry:
        said = str(entry.get("message") or entry.get("msg") or "")
    else:
        said = " ".join(str(entry[key]) for key in ("id", "text", "details") if "id" in entry and entry.get(key))
    # A JSON string may hold what a raw line can't: it is cleaned once more.
    return _clean(said) or line
