"""Removal of terminal control sequences from untrusted text.

Names, errors and logs come from hosts, containers, and login attempts: an escape sequence in them could write to the
clipboard, hide a line, or inject input.
"""

import re
import unicodedata
from typing import Any

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    # OSC, DCS and similar up to their end. An unterminated one on a line keeps its text: it must not hide the rest.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\n\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control, format and bidi characters, surrogates, and other line breaks."""


def text(found: object) -> str:
    """Return text that is safe on a terminal; tabs and line breaks stay."""
    return "".join(c for c in _SEQUENCE.sub("", str(found)) if c in "\n\t" or not _harmful(c))


def line(found: object) -> str:
    """Return text as `text` does, on one line."""
    return " ".join(text(found).split())


def escaped(document: str) -> str:
    """Return an equivalent JSON document, with control characters as JSON escapes."""
    return "".join(_unicode(c) if c != "\n" and _harmful(c) else c for c in document)


def is_clean(found: Any) -> bool:  # noqa: ANN401 - JSON
    """Return whether it is one line of text that is safe unchanged."""
    return isinstance(found, str) and not any(map(_harmful, found))


def _harmful(character: str) -> bool:
    # Fast path: most text is printable.
    return not character.isprintable() and unicodedata.category(character) in _HARMFUL


def _unicode(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
