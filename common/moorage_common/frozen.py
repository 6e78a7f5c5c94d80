"""A program that runs from a bundle, without a Python of its host: where it is, and what it does before all else."""

import os
import sys
from pathlib import Path

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Red Hat, SUSE and Alpine keep the authorities they trust; a bundle knows its builder's place alone."""


def bundled() -> bool:
    """Whether this program runs from a bundle."""
    return bool(getattr(sys, "frozen", False))


def bundled_file(name: str) -> Path:
    """Return where a bundle has a file."""
    return Path(sys.executable).parent / name


def clean_environment() -> None:
    """Take out what the bundle's start put in: a program of the host must not meet the bundle's libraries."""
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
