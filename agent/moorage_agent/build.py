"""The agent's build identifier."""

from functools import cache
from importlib.metadata import version

from moorage_common.frozen import bundled, bundled_file


@cache
def build() -> str:
    """Return the build, such as `0.1.0-1a2b3c4d` in a bundle, or the version if it runs from a virtual environment."""
    if bundled():
        return bundled_file("VERSION").read_text(encoding="ascii").strip()
    return version("moorage-agent")
