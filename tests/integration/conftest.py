"""A stack for each file of tests: started once, shared by the tests in it."""

from collections.abc import Iterator

import pytest
from moorage_lab.engine import PrivateEngine
from stack import Stack


@pytest.fixture(scope="module")
def stack(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running controller and an agent that is enrolled with it."""
    made = Stack(tmp_path_factory.mktemp("stack"), engine)
    try:
        made.start()
        yield made
    finally:
        made.stop()
