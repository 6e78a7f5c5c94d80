"""Compose's variable interpolation, for the plain cases; other cases are reported as unsure, not guessed."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

_KEY = re.compile(r"(?:export[ \t]+)?([A-Za-z0-9_.\-\[\]]+)[ \t]*([=:\n])")
_BLANKS = " \t\r\v\f\x85\xa0"
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_AFTER_QUOTE = re.compile(r"[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-+?]")
_DEPTH = 8

Lookup = Callable[[str], str | None]


class UnsureError(Exception):
    """The interpolated text can't be determined for sure."""


class Variables:
    """The values of a compose file's variables; a name that an unclear line may have set is unsure."""

    def __init__(self, fixed: Mapping[str, str], unsure: Iterable[str] = ()) -> None:
        self._known: dict[str, str] = dict(fixed)
        self._fixed = frozenset(fixed)
        self._unsure = set(unsure)
        self._all_unsure = False

    def get(self, name: str) -> str | None:
        """Return a variable's value, None if it is not set. Raises UnsureError."""
        if name in self._fixed:
            return self._known[name]
        if self._all_unsure or name in self._unsure:
            raise UnsureError
        return self._known.get(name)

    @property
    def state(self) -> object:
        """A hashable value, equal for equal variables."""
        return frozenset(self._known.items()), frozenset(self._unsure), self._all_unsure

    def set(self, name: str, value: str) -> None:
        """Set a variable; files don't override it."""
        self._known[name] = value
        self._fixed |= {name}

    def doubt(self, name: str) -> None:
        """Mark a variable as unsure."""
        self._known.pop(name, None)
        self._fixed -= {name}
        self._unsure.add(name)

    def with_files(self, *texts: str) -> "Variables":
        """Return a copy with lower-priority variables of files (`.env`), which Compose reads together.

        Existing values stay; a name that two of the files set differently is unsure.
        """
        merged = Variables(self._known, self._unsure)
        merged._fixed, merged._all_unsure = self._fixed, self._all_unsure
        outer = Variables(self._known, self._unsure)
        outer._fixed, outer._all_unsure = self._fixed, self._all_unsure
        for text in texts:
            file = _File(outer)
            file.read(text)
            if file.broken:
                merged._all_unsure = outer._all_unsure = True
            for name, value in file.found.items():
                if name in self._known or name in self._unsure:
                    continue
                # In a later file its own lines take precedence: the meaning of this name there is not guessed.
                outer.doubt(name)
                if value is None or name in merged._unsure or merged._known.get(name, value) != value:
                    merged.doubt(name)
                else:
                    merged._known[name] = value
        return merged

    def fill(self, text: str) -> str:
        """Interpolate the variables of a text. Raises UnsureError for anything that isn't plain."""
        return _fill(text, self.get, 0)


class _File:
    """One file of variables. `found` maps a name to its value, None if that is unsure."""

    def __init__(self, outer: Variables) -> None:
        self._outer = outer
        self.found: dict[str, str | None] = {}
        self.broken = False
        """Whether it could not be parsed to its end: then any variable may be set."""

    def read(self, text: str) -> None:
        """Parse the file."""
        position = 0
        while True:
            while position < len(text) and text[position].isspace():
                position += 1
            if position >= len(text):
                return
            if text[position] == "#":
                end = text.find("\n", position)
                position = len(text) if end < 0 else end
                continue
            found = _KEY.match(text, position)
            if found is None:
                self.broken = True
                return
            name, sign = found.groups()
            position = found.end()
            if sign == "\n":
                self._inherit(name)
                continue
            after = self._value(name, text, position)
            if after is None:
                self.broken = True
                return
            position = after

    def _inherit(self, name: str) -> None:
        try:
            value = self._outer.get(name)
        except UnsureError:
            self.found[name] = None
        else:
            if value is not None:
                self.found[name] = value

    def _value(self, name: str, text: str, position: int) -> int | None:
        """Store the value that begins there, and return the offset of its end; None if that is unsure."""
        while position < len(text) and text[position] in _BLANKS:
            position += 1
        quote = text[position : position + 1]
        if quote in {'"', "'"}:
            end = position + 1
            while end < len(text) and text[end] != quote:
                end += 2 if text[end] == "\\" else 1
            if end >= len(text) or (after := _AFTER_QUOTE.match(text, end + 1)) is None:
                return None
            inner = _ESCAPED.sub(lambda m: quote if m[1] == quote else m[0], text[position + 1 : end])
            if quote == '"':
                inner = _ESCAPED.sub(lambda m: "$$" if m[1] == "$" else m[0], inner)
            self._note(name, inner, plain=quote == "'")
            return after.end()
        line, _, _ = text[position:].partition("\n")
        self._note(name, line.partition(" #")[0].rstrip(), plain=False)
        return position + len(line)

    def _note(self, name: str, value: str, *, plain: bool) -> None:
        self.found[name] = None
        if "\\" not in value and _CONTROL.search(value) is None:
            with suppress(UnsureError):
                self.found[name] = value if plain else _fill(value, self._value_of, 0)

    def _value_of(self, name: str) -> str | None:
        outer = self._outer.get(name)
        if outer is not None:
            return outer
        if name in self.found:
            inner = self.found[name]
            if inner is None:
                raise UnsureError
            return inner
        return None


def _fill(text: str, get: Lookup, depth: int) -> str:
    if depth > _DEPTH:
        raise UnsureError
    filled, position = "", 0
    while (dollar := text.find("$", position)) >= 0:
        filled += text[position:dollar]
        position = dollar + 1
        if text.startswith("$", position):
            filled, position = f"{filled}$", position + 1
        elif text.startswith("{", position):
            end = _closing(text, position)
            filled += _braced(text[position + 1 : end], get, depth)
            position = end + 1
        else:
            name = _NAME.match(text, position)
            if name is None:
                raise UnsureError
            filled += get(name.group()) or ""
            position = name.end()
    return filled + text[position:]


def _closing(text: str, opening: int) -> int:
    """Return the offset of the closing brace. Raises UnsureError if there is none."""
    depth, position = 0, opening
    while position < len(text):
        if text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        elif text[position] == "{":
            if position > opening and text[position - 1] != "$":
                raise UnsureError
            depth += 1
        position += 1
    raise UnsureError


def _braced(inner: str, get: Lookup, depth: int) -> str:
    name = _NAME.match(inner)
    if name is None:
        raise UnsureError
    value, rest = get(name.group()), inner[name.end() :]
    if not rest:
        return value or ""
    operator = _OPERATOR.match(rest)
    if operator is None:
        raise UnsureError
    word = rest[operator.end() :]
    there = bool(value) if operator.group().startswith(":") else value is not None
    match operator.group()[-1]:
        case "-":
            return (value or "") if there else _fill(word, get, depth + 1)
        case "+":
            return _fill(word, get, depth + 1) if there else ""
        case _:
            if not there:
                raise UnsureError
            return value or ""
