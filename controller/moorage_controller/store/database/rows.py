"""Mapping between rows and dataclasses, by the dataclass's field names."""

import dataclasses
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Column, Row, Table

T = TypeVar("T")


@cache
def _names(cls: Hashable) -> tuple[str, ...]:
    assert isinstance(cls, type)
    return tuple(field.name for field in dataclasses.fields(cls))


def columns(cls: type, table: Table) -> list[Column[Any]]:
    """Return the table's columns for the fields of a dataclass."""
    return [table.c[name] for name in _names(cls)]


def to_dataclass(cls: Callable[..., T], row: Row[Any]) -> T:
    """Build the dataclass from a row selected with `columns`."""
    return cls(*row)


def to_values(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    """Return the field values of a dataclass for an insert."""
    return {name: getattr(record, name) for name in _names(record.__class__)}
