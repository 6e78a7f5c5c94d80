"""Compose's output in readable form: JSON progress as lines, everything else unchanged."""

import re
from collections.abc import Iterator
from itertools import islice

from moorage_common.untrusted import UntrustedError, last_state, parse_json

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_LONGEST_ENTRY = 1 << 20
"""A longer line isn't an entry of Compose."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_QUESTION = re.compile(
    r"(Volume \"[^\"\s]{1,255}\" exists but doesn't match configuration in compose file\. "
    r"Recreate \(data will be lost\)\?)"
)
"""Compose's interactive question, without a line break after it; unanswered, Compose continues as after a no."""
_VOLUME = re.compile(r'Volume "([^"\s]{1,255})" exists but doesn\'t match configuration in compose file\.')
_ENTRY = re.compile(r'\{"(?:id|parent_id|error|level|time)":')
_HINTS = {
    "project name must not be empty": ": the name of its directory has no Latin letter and no digit that Compose could "
    "make one of. Write a line `name:` with one at the top of the compose file.",
}
"""Advice for a reason that Compose only names."""
_MOST_STARTS = 8
"""The number of offsets in a line that are tried as the beginning of an entry."""
_LEFT_NETWORK = re.compile(r"Network (\S{1,255}) (?:Resource is still in use|Still in use(?: by (.{1,500}))?)")
"""The line of Compose, and of the last step of a stop, which adds the users."""
_CRASH = re.compile(
    # The Go runtime's message, and after a few lines the first goroutine with its state: a unique combination.
    r"^(?:.*\(data will be lost\)\?)?((?:panic|fatal error|SIG[A-Z]{3,6}): .*)\n(?:.*\n){0,12}?"
    r"goroutine \d+ (?:gp=\S+ m=\S+ (?:mp=\S+ )?)?\[[^\]\n]+\]:$",
    re.MULTILINE,
)
_CRASH_CODES = frozenset({128 + 4, 128 + 6, 128 + 7, 128 + 8, 128 + 11})
"""Exit codes of an end by ILL, ABRT, BUS, FPE or SEGV: none of these is sent to cancel a command."""


def render(raw: str) -> str:
    """Return raw output as readable lines: JSON progress as "Container x-1 Started", unknown lines unchanged.

    Terminal control sequences are removed; progress that overwrites its line is reduced to the last state. A line that
    repeats the previous one (Compose prints some twice) is shown once.
    """
    lines: list[str] = []
    for text in (text for line in raw.split("\n") for text in readable(line)):
        if not lines or lines[-1] != text:
            lines.append(text)
    return "\n".join(lines)


def render_end(data: bytes, limit: int) -> str:
    """Render the end of an output: the complete lines within its last `limit` bytes, after a remark.

    A shorter output is rendered whole. A line without its beginning is unreadable, and may begin inside a character.
    """
    if len(data) < limit:
        return render(data.decode(errors="replace"))
    _, _, whole = data[-limit:].partition(b"\n")
    return render(f"[Earlier lines are left out.]\n{whole.decode(errors='replace')}")


def readable(line: str) -> list[str]:
    """Render one raw line: usually one text, none if it has nothing readable."""
    return [_progress_text(_json(part), part) for part in _parts(line)]


def crash(raw: str, exit_code: int) -> str | None:
    """Return Go's message of a crash of Compose itself, anywhere in its output; None if there was none.

    A stop continues after a crash, so its exit code may be 0.
    """
    found = _CRASH.search(raw) if "\ngoroutine " in raw else None
    if found is not None:
        return " ".join(_clean(found[1]).split())
    return f"exit code {exit_code}" if exit_code in _CRASH_CODES else None


def remarks(rendered: str) -> list[str]:
    """Return sentences about the parts that a successful operation has not done, from its rendered output."""
    lines = rendered.split("\n")
    volumes = dict.fromkeys(found[1] for line in lines if (found := _VOLUME.match(line)))
    sentences = [
        f"The change of the volume {name} was not applied, since that would delete its data: remove the volume on the "
        "host, then start the app again, if the data may go."
        for name in volumes
    ]
    left: dict[str, str] = {}
    for line in lines:
        found = _LEFT_NETWORK.fullmatch(line)
        if found is not None:
            left[found[1]] = found[2] or left.get(found[1], "")
        elif line.startswith("Network ") and line.endswith(" Removed"):
            left.pop(line.split()[1], None)
    return sentences + [
        f"The network {name} was left, since it is used by {users or 'what is not part of the app'}: to be rid of it, "
        f"disconnect what uses it, then run `docker network rm {name}` on the host."
        for name, users in left.items()
    ]


def error_sentence(raw: str) -> str | None:
    """Return Compose's reason for a failure, None if it printed nothing.

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
    sentence = " ".join((final or detail or last).split())
    return sentence + _HINTS.get(sentence, "") or None


def _lines(raw: str) -> Iterator[str]:
    for line in raw.split("\n"):
        yield from _parts(line)


def _parts(line: str) -> Iterator[str]:
    """Split a line into its parts: a question of Compose has no line break before the next output."""
    for part in _QUESTION.split(_clean(line)):
        start = 0 if part.startswith("{") else _entry_start(part)
        for text in (part[:start].strip(), part[start:].strip()):
            if text:
                yield text


def _entry_start(part: str) -> int:
    """Return the offset of an entry in a line that begins with other text; 0 if there is none."""
    for found in islice(_ENTRY.finditer(part), _MOST_STARTS):
        if _json(part[found.start() :]) is not None:
            return found.start()
    return 0


def _clean(text: str) -> str:
    """Return the last state of text, without terminal escape sequences and control characters."""
    return _CONTROL.sub("", _ANSI.sub("", last_state(text))).strip()


def _json(line: str) -> dict[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = parse_json(line, _LONGEST_ENTRY)
    except UntrustedError:
        return None
    return entry if isinstance(entry, dict) else None


def _progress_text(entry: dict[str, object] | None, line: str) -> str:
    """Return an entry as text, or the line itself if the entry has no text. Never empty."""
    if entry is None:
        return line
    if entry.get("error") is True or "level" in entry:
        said = str(entry.get("message") or entry.get("msg") or "")
    else:
        words = (str(entry[key]) for key in ("id", "text", "details") if "id" in entry and entry.get(key))
        said = " ".join(map(last_state, words))
    # A JSON string may contain characters that a raw line can't: it is cleaned again.
    return _clean(said) or line
