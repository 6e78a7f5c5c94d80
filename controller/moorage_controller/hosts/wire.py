"""Messages as they came from an agent, read only where they are no larger than they may be, in memory too."""

from functools import cache
from typing import TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from moorage_common.untrusted import LIMITS, UntrustedError, at_most

M = TypeVar("M", bound=Message)

_VARINT, _EIGHT, _TEXT, _FOUR = 0, 1, 2, 5


def read(kind: type[M], raw: object, limit: int = LIMITS.message) -> M:
    """Return the message of at most `limit` bytes that came. Raises UntrustedError.

    Two bytes can make a message in a list, of two hundred in memory, so the fields are counted before it is read.
    """
    if not isinstance(raw, bytes):
        raise UntrustedError("A message was missing.")
    at_most("bytes in a message", len(raw), limit)
    try:
        _count(raw, cast("Descriptor", kind.DESCRIPTOR))
        return kind.FromString(raw)
    except (DecodeError, IndexError):
        raise UntrustedError("A message could not be read.") from None


def _count(raw: bytes, descriptor: Descriptor) -> None:
    """Raise UntrustedError where there are too many fields, in all depths together; IndexError where it breaks off."""
    left = LIMITS.message_fields
    waiting = [(0, len(raw), descriptor)]
    while waiting:
        position, end, about = waiting.pop()
        nested = _nested(about)
        while position < end:
            left -= 1
            if left < 0:
                raise UntrustedError(f"It sent more than {LIMITS.message_fields} fields in a message.")
            key, position = _varint(raw, position)
            wire = key & 7
            if wire == _VARINT:
                _, position = _varint(raw, position)
            elif wire == _TEXT:
                length, position = _varint(raw, position)
                inner = nested.get(key >> 3)
                if inner is not None:
                    waiting.append((position, min(position + length, end), inner))
                position += length
            elif wire in {_EIGHT, _FOUR}:
                position += 8 if wire == _EIGHT else 4
            else:
                raise UntrustedError("A message could not be read.")


_MORE = 0x80
"""The bit of a byte that says that more of the number follows."""


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = raw[position]
    if value < _MORE:
        return value, position + 1
    value, shift = value & 0x7F, 7
    for place in range(position + 1, position + 10):
        value |= (raw[place] & 0x7F) << shift
        if raw[place] < _MORE:
            return value, place + 1
        shift += 7
    raise UntrustedError("A message could not be read.")


@cache
def _nested(descriptor: Descriptor) -> dict[int, Descriptor]:
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
