"""From a row to a dataclass: the columns that a dataclass names, and no others."""

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
    """Return the table's columns that the dataclass has a field for."""
    return [table.c[name] for name in _names(cls)]


def to_dataclass(cls: Callable[..., T], row: Row[Any]) -> T:
    """Make the dataclass of a row that was selected with `columns`."""
    return cls(*row)


def to_values(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    """Return a dataclass as values for an insert."""
    return {name: getattr(record, name) for name in _names(record.__class__)}
