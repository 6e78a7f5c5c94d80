"""Polling for a condition, with a time limit: the only kind of wait in the lab and in tests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

INTERVAL = 0.05
"""Seconds between two checks."""


class NotInTimeError(AssertionError):
    """A condition didn't become true within its limit; the message has the last result."""


def eventually(
    check: Callable[[], T | None],
    *,
    timeout: float = 10.0,
    interval: float = INTERVAL,
    what: str = "the condition",
) -> T:
    """Call `check` until it returns something true, and return that.

    An AssertionError or OSError of `check` counts as "not yet". Raises NotInTimeError after `timeout` seconds.
    """
    limit = time.monotonic() + timeout
    while True:
        seen: object = None
        try:
            if found := check():
                return found
            seen = found
        except (AssertionError, OSError) as error:
            if time.monotonic() >= limit:
                raise _late(what, timeout, error) from error
            seen = error
        if time.monotonic() >= limit:
            raise _late(what, timeout, seen)
        time.sleep(interval)


@overload
def eventually_async(
    check: Callable[[], Awaitable[T | None]], *, timeout: float = ..., interval: float = ..., what: str = ...
) -> Coroutine[Any, Any, T]: ...


@overload
def eventually_async(
    check: Callable[[], T | None], *, timeout: float = ..., interval: float = ..., what: str = ...
) -> Coroutine[Any, Any, T]: ...


async def eventually_async(
    check: Callable[[], object],
    *,
    timeout: float = 10.0,  # noqa: ASYNC109  # the limit is on many calls, and its error has the last result
    interval: float = INTERVAL,
    what: str = "the condition",
) -> object:
    """Do as `eventually` does, on the event loop; `check` may be a coroutine function."""
    limit = time.monotonic() + timeout
    while True:
        seen: object = None
        try:
            result = check()
            if seen := await result if isinstance(result, Awaitable) else result:
                return seen
        except (AssertionError, OSError) as error:
            if time.monotonic() >= limit:
                raise _late(what, timeout, error) from error
            seen = error
        if time.monotonic() >= limit:
            raise _late(what, timeout, seen)
        await asyncio.sleep(interval)


def _late(what: str, timeout: float, seen: object) -> NotInTimeError:
    return NotInTimeError(f"{what} didn't come true within {timeout:g} s; last seen: {seen!r}")
