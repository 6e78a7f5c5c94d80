"""The one gate for what a host, an Engine, a container, an agent or an app's folder says.

Everything of theirs that is kept, shown or sent on is bounded and cleaned here. Pure: values in, values out.
"""

import json
import re
import unicodedata
from typing import Any

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")
_CUT = "…"


class UntrustedError(ValueError):
    """What came breaks a limit, or can't be read at all; `str()` is a sentence that quotes nothing of it."""


def clean_text(text: str, limit: int) -> str:
    """Return text of at most `limit` characters without escape sequences, control or bidi characters.

    Tabs and line breaks stay; text that is longer ends with an ellipsis.
    """
    shown = "".join(c for c in _ANSI.sub("", text[: limit * 2]) if c in "\n\t" or _harmless(c))
    return shown if len(shown) <= limit and len(text) <= limit * 2 else shown[: limit - 1] + _CUT


def clean_line(text: str, limit: int) -> str:
    """Return text as `clean_text` does, on one line: runs of blanks, tabs and line breaks are one blank each."""
    return " ".join(clean_text(text, limit).split())


def parse_json(data: str | bytes, limit: int) -> Any:  # noqa: ANN401 - JSON
    """Return what JSON of at most `limit` bytes or characters says. Raises UntrustedError, however odd it is."""
    if len(data) > limit:
        raise UntrustedError(f"An answer was larger than {limit} bytes.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UntrustedError("An answer was not JSON, or was nested too deep.") from None


def _harmless(character: str) -> bool:
    """Whether a character is no control (Cc), format or bidi (Cf), surrogate (Cs) or line separator (Zl, Zp)."""
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
