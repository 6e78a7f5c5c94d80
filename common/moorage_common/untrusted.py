"""Validation of all input from hosts, Engines, containers, agents and apps' folders.

All input that is stored, shown or sent on is bounded and cleaned here: `LIMITS` has the limits. Display text is cut
and cleaned; a key (an id, a project's name, a directory) is taken unchanged or rejected; a list, an answer or a stream
past its limit raises UntrustedError, and the caller ends the connection to that host. Pure functions, except for
`Pace`, which waits.
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
    """The limits. Texts in characters, data in bytes, times in seconds."""

    # Texts: longer ones are cut.
    word: int = 64
    version: int = 50
    name: int = 255
    image: int = 512
    port: int = 80
    sentence: int = 1000
    log_text: int = 64 * KIB
    # Keys: longer ones are rejected.
    id: int = 128
    path: int = 4096
    # Lists. Excess ports are left out; for all other lists excess items are an error.
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
    # Streams: of a log that isn't followed, and of an operation's output.
    log: int = 24 * MIB
    log_read: int = 64 * MIB
    log_waiting: int = 1 * MIB
    output: int = 64 * MIB
    # The rate of one host: sustained bytes per second, and the burst in bytes.
    pace: int = 2 * MIB
    burst: int = 16 * MIB
    # The cost of each log line, and of each change of an app or a host, in addition to its bytes.
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
"""Characters that no name used as a key contains."""
_UNFIT = re.compile("[\x00\n\r\ud800-\udfff]")
"""Characters that no path of an app contains; all others are possible in real paths, and cleaned for display."""
_CUT = "…"
_CONTINUATION = range(0x80, 0xC0)
"""Continuation bytes of UTF-8."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
# To the end if one isn't terminated: so the time is linear in the bytes.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class UntrustedError(ValueError):
    """Input that exceeds a limit or can't be parsed; `str()` is a sentence that doesn't quote it."""


def clean_text(text: str, limit: int) -> str:
    """Return text of at most `limit` characters without escape sequences, control or bidi characters.

    Tabs and line breaks stay; longer text ends with an ellipsis.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown = _UNSAFE.sub("", _ANSI.sub("", text[: limit * 2]))
    return shown if len(shown) <= limit and len(text) <= limit * 2 else shown[: limit - 1] + _CUT


def last_state(text: str) -> str:
    """Return text with only the final state of each line: the part after its last carriage return."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def cut_at(data: bytes, limit: int) -> int:
    """Return the offset for a cut of UTF-8 longer than `limit` bytes: a character boundary at or just before it."""
    return next((n for n in range(limit, limit - 4, -1) if data[n] not in _CONTINUATION), limit)


def clean_line(text: str, limit: int) -> str:
    """Return text as `clean_text` does, on one line: runs of blanks, tabs and line breaks are one blank each."""
    return " ".join(clean_text(text, limit).split())


def clean_sentence(text: str) -> str:
    """Return a sentence with words of a host, cleaned for display, storage and logs: on one line."""
    return clean_text(text, LIMITS.sentence).replace("\n", " ").replace("\t", " ")


def clean_code(code: str, otherwise: str) -> str:
    """Return a stable word in snake_case unchanged, `otherwise` for anything else."""
    return code if _CODE.fullmatch(code) else otherwise


def known_word(word: object, known: Collection[str], otherwise: str = "unknown") -> str:
    """Return a word of a list unchanged, `otherwise` for anything else."""
    return word if isinstance(word, str) and word in known else otherwise


def key_id(text: object) -> str:
    """Return a valid id. Raises UntrustedError for anything else."""
    if not isinstance(text, str) or len(text) > LIMITS.id or not _ID.fullmatch(text):
        raise UntrustedError("An id was too long, or had odd characters in it.")
    return text


def key_name(text: object) -> str:
    """Return a name used as a key, unchanged. Raises UntrustedError for a long, empty or unclean one."""
    return _key(text, LIMITS.name, _UNCLEAN)


def key_path(text: object) -> str:
    """Return an absolute path, unchanged. Raises UntrustedError for an invalid one, or one that could break a line."""
    path = _key(text, LIMITS.path, _UNFIT)
    if not path.startswith("/"):
        raise UntrustedError("A directory was not an absolute path.")
    return path


def number(value: object, low: int, high: int) -> int:
    """Return an integer, clamped to its range. Raises UntrustedError for anything else, NaN and infinity too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UntrustedError("A number was none.")
    try:
        return min(max(int(value), low), high)
    except (ValueError, OverflowError):
        raise UntrustedError("A number was none.") from None


def number_text(text: str, low: int, high: int) -> int:
    """Parse an integer and clamp it to its range. Raises UntrustedError for other text."""
    try:
        return number(float(text[: LIMITS.word]), low, high)
    except ValueError:
        raise UntrustedError("A number was none.") from None


def at_most(what: str, count: int, limit: int) -> None:
    """Raise UntrustedError past the limit; `what` is our own plural noun for the sentence."""
    if count > limit:
        raise UntrustedError(f"It sent more than {limit} {what}.")


def parse_json(data: str | bytes, limit: int) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON of at most `limit` bytes or characters. Raises UntrustedError for any invalid input.

    A few bytes of JSON may be a hundred in memory, so the number of values is limited as well.
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
    """A limit of a stream's bytes."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._left = limit

    def take(self, count: int) -> None:
        """Count received bytes. Raises UntrustedError past the limit."""
        self._left -= count
        if self._left < 0:
            raise UntrustedError(f"{self._what} was longer than {self._limit} bytes.")


class Pace:
    """Rate limiter for reading from one host: excess data waits on the host and doesn't delay others here."""

    def __init__(self, rate: int = LIMITS.pace, burst: int = LIMITS.burst) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()

    async def take(self, cost: int) -> None:
        """Count the cost, and wait until the host may send more; yields to the event loop in any case."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self._rate, self._burst) - cost
        self._at = now
        await asyncio.sleep(max(-self._left / self._rate, 0.0))


class Lines:
    """Splits a stream into lines; of a line over the limit only the beginning is returned.

    Its time is linear in the bytes, and its memory is bounded by the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def take(self, data: bytes) -> list[bytes]:
        """Return the complete lines, without line breaks, and immediately the beginning of an overlong one."""
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
