"""Waits between retries."""

from moorage_common.clock import backoff


def test_retry_waits_grow_up_to_a_limit() -> None:
    assert [backoff(tries, 2.0, 60.0) for tries in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    assert backoff(1_000_000, 2.0, 60.0) == 60
