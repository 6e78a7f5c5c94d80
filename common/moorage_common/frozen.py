"""A program in a bundle with its own Python: its location and its start-up steps."""

import os
import sys
from pathlib import Path

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""The trust stores of Debian, Red Hat, SUSE and Alpine; a bundle only has the path of its build system."""


def bundled() -> bool:
    """Whether this program runs from a bundle."""
    return bool(getattr(sys, "frozen", False))


def bundled_file(name: str) -> Path:
    """Return the path of a file in the bundle."""
    return Path(sys.executable).parent / name


def clean_environment() -> None:
    """Remove the variables set by the bundle's start: host programs must not load the bundle's libraries."""
    if not bundled():
        return
    original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if original is not None:
        os.environ["LD_LIBRARY_PATH"] = original
    for name in [name for name in os.environ if name.startswith("_PYI_")]:
        del os.environ[name]
    if "SSL_CERT_FILE" not in os.environ:
        found = next((path for path in _CERTIFICATES if Path(path).exists()), None)
        if found is not None:
            os.environ["SSL_CERT_FILE"] = found
