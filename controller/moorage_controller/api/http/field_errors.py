"""User-facing sentences for invalid fields of a body, in place of pydantic's texts."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

Context = Mapping[str, Any]


def _too_long(context: Context) -> str:
    return f"It may have {context['max_length']} characters at most."


def _too_short(context: Context) -> str:
    least = context["min_length"]
    return "It must not be empty." if least == 1 else f"It must have {least} characters at least."


_TYPES: Mapping[str, str] = {
    "string": "It must be text.",
    "int": "It must be a whole number.",
    "float": "It must be a number.",
    "bool": "It must be true or false.",
    "uuid": "It must be a UUID.",
    "list": "It must be a list.",
    "set": "It must be a list.",
    "tuple": "It must be a list.",
    "frozen": "It must be a list.",
    "dict": "It must be an object.",
    "model": "It must be an object.",
    "enum": "It must be one of the words that the API knows here.",
    "literal": "It must be one of the words that the API knows here.",
}
"""Sentences by the first word of pydantic's error type."""
_SENTENCES: Mapping[str, Callable[[Context], str]] = {
    "missing": lambda _: "It is missing: give it.",
    "string_too_long": _too_long,
    "string_too_short": _too_short,
    "too_long": lambda context: f"It may have {context['max_length']} entries at most.",
    "too_short": lambda context: f"It must have {context['min_length']} entries at least.",
    "string_pattern_mismatch": lambda _: "It contains characters that are not allowed.",
    "string_unicode": lambda _: "It contains characters that are no Unicode text.",
    "greater_than_equal": lambda context: f"It must be {context['ge']} or more.",
    "less_than_equal": lambda context: f"It must be {context['le']} or less.",
    "enum": lambda context: f"It must be {context['expected'].replace(chr(39), '')}.",
    "literal_error": lambda context: f"It must be {context['expected'].replace(chr(39), '')}.",
    "value_error": lambda context: str(context["error"]),
}


UNKNOWN = "It is not what this field takes: see the API's documentation."
"""Fallback for all other error types."""


def field_errors(error: ValidationError) -> dict[str, str]:
    """Return a sentence for each field, by its name in the body (`a.b` within another, `body` for the whole)."""
    found: dict[str, str] = {}
    for entry in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in entry["loc"]) or "body"
        found.setdefault(field, _sentence(entry["type"], entry.get("ctx", {})))
    return found


def _sentence(kind: str, context: Context) -> str:
    known = _SENTENCES.get(kind)
    if known is not None:
        return known(context)
    return _TYPES.get(kind.partition("_")[0], UNKNOWN)
