"""What Compose prints, for people: JSON progress as lines, everything else as it is."""

import json
import re
from collections.abc import Iterator

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def render(raw: str) -> str:
    """Return raw output as readable lines: JSON progress as "Container x-1 Started", unknown lines unchanged.

    Terminal control sequences are taken out. A line that repeats the one before it (Compose prints some twice) is
    shown once.
    """
    lines: list[str] = []
    for line in _lines(raw):
        text = _progress_text(_json(line), line)
        if not lines or lines[-1] != text:
            lines.append(text)
    return "\n".join(lines)


def error_sentence(raw: str) -> str | None:
    """Return what Compose gave as the reason of a failure, None where it printed nothing at all.

    The last `{"error":true}` message, else the last detail of a step in error, else the last line.
    """
    final = detail = last = None
    for line in _lines(raw):
        entry = _json(line)
        if entry is not None and entry.get("error") is True and entry.get("message"):
            final = str(entry["message"])
        elif entry is not None and entry.get("status") == "Error":
            detail = ": ".join(str(entry[key]) for key in ("id", "details") if entry.get(key))
        last = _progress_text(entry, line) or last
    found = final or detail or last
    return None if found is None else " ".join(found.split())


def _lines(raw: str) -> Iterator[str]:
    for line in raw.splitlines():
        clean = _CONTROL.sub("", _ANSI.sub("", line)).rstrip()
        if clean:
            yield clean


def _json(line: str) -> dict[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _progress_text(entry: dict[str, object] | None, line: str) -> str:
    if entry is None:
        return line
    if entry.get("error") is True or "level" in entry:
        return str(entry.get("message") or entry.get("msg") or line)
    if "id" not in entry:
        return line
    words = (entry["id"], entry.get("text"), entry.get("details"))
    return " ".join(str(word) for word in words if word)
