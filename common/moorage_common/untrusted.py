"""The one gate for what a host, an Engine, a container, an agent or an app's folder says.

Everything of theirs that is kept, shown or sent on is bounded and cleaned here: `LIMITS` has the most of each. What is
only shown is cut and cleaned; what is a key (an id, a project's name, a directory) is taken as it is, or not at all;
past the limit of a list, an answer or a stream it is UntrustedError, and whoever talks to that host ends it. Pure but
for `Pace`, which waits.
"""

import asyncio
import json
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each. Texts in characters, data in bytes, times in seconds."""

    # Texts: what is longer is cut.
    word: int = 64
    version: int = 50
    name: int = 255
    image: int = 512
    port: int = 80
    sentence: int = 1000
    log_text: int = 64 * KIB
    # Keys: what is longer isn't taken.
    id: int = 128
    path: int = 4096
    # Lists. Ports that are more are left out; of all others more is an error.
    ports: int = 64
    containers: int = 2000
    apps: int = 5000
    projects: int = 2000
    services: int = 1000
    config_files: int = 16
    deadlines: int = 1000
    log_lines: int = 2000
    # Numbers.
    count: int = 1_000_000
    int32: int = (1 << 31) - 1
    int64: int = (1 << 63) - 1
    # One message of an agent: its bytes, and how many fields are in it.
    message: int = 4 * MIB
    message_fields: int = 150_000
    metadata: int = 16 * KIB
    # Answers.
    login_noise: int = 64 * KIB
    script: int = 1 * MIB
    script_config: int = 8 * MIB
    script_line: int = 16 * KIB
    engine_answer: int = 8 * MIB
    engine_inspection: int = 2 * MIB
    engine_event: int = 64 * KIB
    json_values: int = 250_000
    record: int = 256 * KIB
    # Streams: of a log that isn't followed, and of what an operation prints.
    log: int = 24 * MIB
    log_read: int = 64 * MIB
    log_waiting: int = 1 * MIB
    output: int = 64 * MIB
    # How fast one host may talk: bytes a second for long, and at once.
    pace: int = 2 * MIB
    burst: int = 16 * MIB
    # What each line of a log, and each change of an app or a host, costs beside its bytes.
    line_cost: int = 128
    change_cost: int = 32 * KIB


LIMITS = Limits()
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")
_UNSAFE = re.compile(
    # Unicode's categories Cc (but tab and newline), Cf with all of bidi, Cs, Zl and Zp.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_UNCLEAN = re.compile(f"[\t\n]|{_UNSAFE.pattern}")
"""What no name has that something is found by."""
_UNFIT = re.compile("[\x00\n\r\ud800-\udfff]")
"""What no path of an app has; everything else is odd, but may be somebody's, and is cleaned where it is shown."""
_CUT = "…"
_CONTINUATION = range(0x80, 0xC0)
"""Bytes that go on with a character of UTF-8."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
# To the end where one isn't closed: so it takes as much time as there are bytes.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class UntrustedError(ValueError):
    """What came breaks a limit, or can't be read at all; `str()` is a sentence that quotes nothing of it."""


def clean_text(text: str, limit: int) -> str:
    """Return text of at most `limit` characters without escape sequences, control or bidi characters.

    Tabs and line breaks stay; text that is longer ends with an ellipsis.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown = _UNSAFE.sub("", _ANSI.sub("", text[: limit * 2]))
    return shown if len(shown) <= limit and len(text) <= limit * 2 else shown[: limit - 1] + _CUT


def last_state(text: str) -> str:
    """Return text whose lines show what is left of them in the end: what comes after their last carriage return."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def cut_at(data: bytes, limit: int) -> int:
    """Return where UTF-8 of more than `limit` bytes can be cut, at the limit or just before it, between characters."""
    return next((n for n in range(limit, limit - 4, -1) if data[n] not in _CONTINUATION), limit)


def clean_line(text: str, limit: int) -> str:
    """Return text as `clean_text` does, on one line: runs of blanks, tabs and line breaks are one blank each."""
    return " ".join(clean_text(text, limit).split())


def clean_sentence(text: str) -> str:
    """Return a sentence that has words of a host in it, as it may be shown, stored and logged: on one line."""
    return clean_text(text, LIMITS.sentence).replace("\n", " ").replace("\t", " ")


def clean_code(code: str, otherwise: str) -> str:
    """Return a stable word in snake_case as it is, `otherwise` for anything else."""
    return code if _CODE.fullmatch(code) else otherwise


def known_word(word: object, known: Collection[str], otherwise: str = "unknown") -> str:
    """Return a word of a list as it is, `otherwise` for anything else."""
    return word if isinstance(word, str) and word in known else otherwise


def key_id(text: object) -> str:
    """Return an id. Raises UntrustedError for what can't be one."""
    if not isinstance(text, str) or len(text) > LIMITS.id or not _ID.fullmatch(text):
        raise UntrustedError("An id was too long, or had odd characters in it.")
    return text


def key_name(text: object) -> str:
    """Return a name that something is found by, as it is. Raises UntrustedError for a long, empty or unclean one."""
    return _key(text, LIMITS.name, _UNCLEAN)


def key_path(text: object) -> str:
    """Return an absolute path, as it is. Raises UntrustedError for what can't be one, or could break a line."""
    path = _key(text, LIMITS.path, _UNFIT)
    if not path.startswith("/"):
        raise UntrustedError("A directory was not an absolute path.")
    return path


def number(value: object, low: int, high: int) -> int:
    """Return a whole number, moved into its range. Raises UntrustedError for what is none, NaN and infinity too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UntrustedError("A number was none.")
    try:
        return min(max(int(value), low), high)
    except (ValueError, OverflowError):
        raise UntrustedError("A number was none.") from None


def number_text(text: str, low: int, high: int) -> int:
    """Return the whole number that a text is, moved into its range. Raises UntrustedError for what is none."""
    try:
        return number(float(text[: LIMITS.word]), low, high)
    except ValueError:
        raise UntrustedError("A number was none.") from None


def at_most(what: str, count: int, limit: int) -> None:
    """Raise UntrustedError where there is more than the limit; `what` is a plural of ours, as in a sentence."""
    if count > limit:
        raise UntrustedError(f"It sent more than {limit} {what}.")


def parse_json(data: str | bytes, limit: int) -> Any:  # noqa: ANN401 - JSON
    """Return what JSON of at most `limit` bytes or characters says. Raises UntrustedError, however odd it is.

    A few bytes of JSON may be a hundred in memory, so how many values there are is limited as well.
    """
    if len(data) > limit:
        raise UntrustedError(f"An answer was larger than {limit} bytes.")
    try:
        raw = data.encode() if isinstance(data, str) else data
        _check_values(raw)
        return json.loads(raw)
    except UntrustedError:
        raise
    except (ValueError, RecursionError):
        raise UntrustedError("An answer was not JSON, or was nested too deep.") from None


class ByteBudget:
    """So many bytes of a stream, and no more."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._left = limit

    def take(self, count: int) -> None:
        """Count what came. Raises UntrustedError once it is too much."""
        self._left -= count
        if self._left < 0:
            raise UntrustedError(f"{self._what} was longer than {self._limit} bytes.")


class Pace:
    """How fast one host is read: what comes faster waits there, so that it holds up nobody else here."""

    def __init__(self, rate: int = LIMITS.pace, burst: int = LIMITS.burst) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()

    async def take(self, cost: int) -> None:
        """Count what came, and wait until the host may say more; others have their turn in any case."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self._rate, self._burst) - cost
        self._at = now
        await asyncio.sleep(max(-self._left / self._rate, 0.0))


class Lines:
    """Takes a stream apart into lines; of one that is longer than the limit the beginning is told, and no more of it.

    It takes as much time as there are bytes, and never more memory than the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def take(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their breaks, and the beginning of a long one at once."""
        found = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            found += self._add(data[start:end], whole=True)
            start = end + 1
        return found + self._add(data[start:], whole=False)

    def _add(self, part: bytes, *, whole: bool) -> list[bytes]:
        told = []
        if not self._skipping:
            self._rest += part[: self._limit + 1 - len(self._rest)]
            self._skipping = len(self._rest) > self._limit
            if whole or self._skipping:
                told = [bytes(self._rest[: self._limit])]
                self._rest.clear()
        if whole:
            self._skipping = False
        return told


def _key(text: object, limit: int, unfit: re.Pattern[str]) -> str:
    if not isinstance(text, str) or not text or len(text) > limit or unfit.search(text):
        raise UntrustedError("A name or a path was too long, or had control characters in it.")
    return text


def _check_values(raw: bytes) -> None:
    if _values(raw) > LIMITS.json_values and _values(_STRINGS.sub(b"", raw)) > LIMITS.json_values:
        raise UntrustedError(f"An answer had more than {LIMITS.json_values} values.")


def _values(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{")
