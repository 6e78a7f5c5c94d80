"""A real `moorage-controller serve` as a child process."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from moorage_lab.api import Api
from moorage_lab.hosts.network import free_port
from moorage_lab.programs.processes import Process, Program, installed, plain_environment

ADMIN = "admin"
_START_LIMIT = 60.0


class ControllerProcess(Program):
    """A controller on 127.0.0.1 with all its data in `folder`/data, and its log beside.

    `environment` adds to the settings, and overrides them (DATABASE_URL, LOG_LEVEL, ...). The admin's password
    is passed in the environment too, so it doesn't show in `ps`; it is only used on the first start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        admin_password: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_password = admin_password or secrets.token_urlsafe(16)
        settings = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "PUBLIC_URL": self.url,
            "MOORAGE_DATA_DIR": str(folder / "data"),
            "ADMIN_USERNAME": ADMIN,
            "ADMIN_PASSWORD": self.admin_password,
            **(environment or {}),
        }
        self.process = Process(
            "controller",
            [installed("moorage-controller"), "serve"],
            folder=folder,
            environment=plain_environment(**settings),
        )

    def start(self) -> Self:
        """Start it and wait until it is ready: database migrated, background work alive."""
        self.process.start()
        self.process.wait_until(self.is_ready, timeout=_START_LIMIT, what=f"{self.url}/readyz")
        return self

    def is_ready(self) -> bool:
        """Return its own readiness. Raises OSError if it doesn't answer."""
        return self.api().get("/readyz").status == 200  # noqa: PLR2004  # an HTTP status

    def api(self) -> Api:
        """Return an anonymous client of its API."""
        return Api(self.url)

    def admin(self) -> Api:
        """Return a client of its API, logged in as the admin."""
        return self.api().login(ADMIN, self.admin_password)
