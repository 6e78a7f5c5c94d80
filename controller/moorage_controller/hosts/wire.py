"""Parsing of protobuf messages from agents, with limits on their size on the wire and in memory."""

from functools import cache
from typing import TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from moorage_common.untrusted import LIMITS, UntrustedError, at_most

M = TypeVar("M", bound=Message)

_VARINT, _EIGHT, _TEXT, _FOUR = 0, 1, 2, 5


def read(kind: type[M], raw: object, limit: int = LIMITS.message) -> M:
    """Parse a message of at most `limit` bytes. Raises UntrustedError.

    Two bytes on the wire can become a nested message of two hundred bytes in memory, so the fields are counted before
    the message is parsed.
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
    """Raise UntrustedError for too many fields over all nesting levels; IndexError for a truncated message."""
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
"""The continuation bit of a varint's byte."""


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
