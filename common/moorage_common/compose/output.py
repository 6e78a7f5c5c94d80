"""What Compose prints, for people: JSON progress as lines, everything else as it is."""

import re
from collections.abc import Iterator
from itertools import islice

from moorage_common.untrusted import UntrustedError, last_state, parse_json

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_LONGEST_ENTRY = 1 << 20
"""A longer line is no entry of Compose's."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_QUESTION = re.compile(
    r"(Volume \"[^\"\s]{1,255}\" exists but doesn't match configuration in compose file\. "
    r"Recreate \(data will be lost\)\?)"
)
"""What Compose asks, without a line break after it, of whoever isn't there to answer; it goes on as after a no."""
_VOLUME = re.compile(r'Volume "([^"\s]{1,255})" exists but doesn\'t match configuration in compose file\.')
_ENTRY = re.compile(r'\{"(?:id|parent_id|error|level|time)":')
_HINTS = {
    "project name must not be empty": ": the name of its directory has no Latin letter and no digit that Compose could "
    "make one of. Write a line `name:` with one at the top of the compose file.",
}
"""What to do about a reason that Compose only names."""
_MOST_STARTS = 8
"""So many places of a line are tried as the beginning of an entry."""
_LEFT_NETWORK = re.compile(r"Network (\S{1,255}) (?:Resource is still in use|Still in use(?: by (.{1,500}))?)")
"""As Compose says it, and as the last step of a stop does, which knows by whom."""
_CRASH = re.compile(
    # Go's own words, and after a few lines the first goroutine with its state: nobody else begins lines so.
    r"^(?:.*\(data will be lost\)\?)?((?:panic|fatal error|SIG[A-Z]{3,6}): .*)\n(?:.*\n){0,12}?"
    r"goroutine \d+ (?:gp=\S+ m=\S+ (?:mp=\S+ )?)?\[[^\]\n]+\]:$",
    re.MULTILINE,
)
_CRASH_CODES = frozenset({128 + 4, 128 + 6, 128 + 7, 128 + 8, 128 + 11})
"""Exit codes of what ended by ILL, ABRT, BUS, FPE or SEGV: nobody sends these to call something off."""


def render(raw: str) -> str:
    """Return raw output as readable lines: JSON progress as "Container x-1 Started", unknown lines unchanged.

    Terminal control sequences are taken out; of progress that overwrites its line the last state is shown. A line that
    repeats the one before it (Compose prints some twice) is shown once.
    """
    lines: list[str] = []
    for text in (text for line in raw.split("\n") for text in readable(line)):
        if not lines or lines[-1] != text:
            lines.append(text)
    return "\n".join(lines)


def render_end(data: bytes, limit: int) -> str:
    """Return the end of an output as `render` shows it: of `limit` bytes only the whole lines, behind a remark.

    Less is all of it. A line whose beginning is missing can't be read, and may begin inside a character.
    """
    if len(data) < limit:
        return render(data.decode(errors="replace"))
    _, _, whole = data[-limit:].partition(b"\n")
    return render(f"[Earlier lines are left out.]\n{whole.decode(errors='replace')}")


def readable(line: str) -> list[str]:
    """Return what `render` shows of one raw line: mostly one text, none where there is nothing to be read."""
    return [_progress_text(_json(part), part) for part in _parts(line)]


def crash(raw: str, exit_code: int) -> str | None:
    """Return what Go says of a crash of Compose itself, wherever in its output that is; None where there was none.

    A stop goes on after one, so that its exit code may be 0.
    """
    found = _CRASH.search(raw) if "\ngoroutine " in raw else None
    if found is not None:
        return " ".join(_clean(found[1]).split())
    return f"exit code {exit_code}" if exit_code in _CRASH_CODES else None


def remarks(rendered: str) -> list[str]:
    """Return, as sentences, what an operation that succeeded has not done: by its output as `render` shows it."""
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
    sentence = " ".join((final or detail or last).split())
    return sentence + _HINTS.get(sentence, "") or None


def _lines(raw: str) -> Iterator[str]:
    for line in raw.split("\n"):
        yield from _parts(line)


def _parts(line: str) -> Iterator[str]:
    """Yield what a line consists of: a question of Compose's has no line break, whatever comes after it."""
    for part in _QUESTION.split(_clean(line)):
        start = 0 if part.startswith("{") else _entry_start(part)
        for text in (part[:start].strip(), part[start:].strip()):
            if text:
                yield text


def _entry_start(part: str) -> int:
    """Return where an entry begins in a line that begins otherwise; 0 where none does."""
    for found in islice(_ENTRY.finditer(part), _MOST_STARTS):
        if _json(part[found.start() :]) is not None:
            return found.start()
    return 0


def printable(text: str) -> str:
    """Return text without terminal escape sequences and control characters; tabs and line breaks stay."""
    return _CONTROL.sub("", _ANSI.sub("", text))


def _clean(text: str) -> str:
    return printable(last_state(text)).strip()


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
        words = (str(entry[key]) for key in ("id", "text", "details") if "id" in entry and entry.get(key))
        said = " ".join(map(last_state, words))
    # A JSON string may hold what a raw line can't: it is cleaned once more.
    return _clean(said) or line
