"""The stored login: the controller's URL and the token in one file, readable by its owner alone.

MOORAGE_URL and MOORAGE_TOKEN take precedence: for scripts, which have an API token.
"""

import json
import os
from pathlib import Path

import click

from moorage_cli.client import Client
from moorage_cli.errors import MoorageError, NotLoggedInError


def _file() -> Path:
    return Path(click.get_app_dir("moorage")) / "login.json"


def save(url: str, token: str) -> Path:
    """Store a login, mode 0600; return the file's path. Raises MoorageError."""
    path = _file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"url": url, "token": token}, file)
        part.replace(path)
    except OSError as error:
        raise MoorageError(f"The login can't be kept in {path} ({error.strerror}).") from None
    return path


def forget() -> bool:
    """Delete the stored login; False if there was none."""
    try:
        _file().unlink()
    except FileNotFoundError:
        return False
    return True


def client() -> Client:
    """Return a client of the controller with the current login. Raises NotLoggedInError."""
    url, token = os.environ.get("MOORAGE_URL", ""), os.environ.get("MOORAGE_TOKEN", "")
    kept = _kept()
    # A token is only sent to the controller that issued it.
    if token and not url:
        url = kept.get("url", "")
    elif not token and (not url or url.rstrip("/") == kept.get("url", "").rstrip("/")):
        url, token = kept.get("url", ""), kept.get("token", "")
    if not url or not token:
        raise NotLoggedInError("You are not logged in: run moorage login URL, or set MOORAGE_URL and MOORAGE_TOKEN.")
    return Client(url, token)


def _kept() -> dict[str, str]:
    path = _file()
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MoorageError(f"{path} can't be read ({error}): log in again.") from None
    return found if isinstance(found, dict) else {}
