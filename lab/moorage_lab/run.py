"""`make run`: a controller, an agent beside it and a sample app, all in one folder, until Ctrl-C.

    python -m moorage_lab.run [FOLDER]

FOLDER is `.run` of the current directory. PORT (3000) and AGENT_PORT (7443) choose other ports.
"""

import fcntl
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from moorage_lab import catalogue
from moorage_lab.api import Api
from moorage_lab.hello import choose_port, write_hello
from moorage_lab.hosts.network import port_is_free
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.programs.controller import ADMIN, ControllerProcess
from moorage_lab.programs.engine import Engine, PrivateEngine, find_engine
from moorage_lab.programs.images import ensure_sample_image
from moorage_lab.programs.processes import ProcessDiedError
from moorage_lab.waiting import NotInTimeError

_ONLINE_LIMIT = 60.0
_LOOK_EVERY = 0.5
_APP_PATIENCE = 6.0
_PROCESS_PATIENCE = 3.0
_ENGINE_PATIENCE = 8.0
"""Seconds. Together, the last three (one of them twice) keep a Ctrl-C within 20 s."""


_NEXT = """
Moorage runs at {url}

    user        {username}
    password    {password}
    sample app  {page} (a page that is there while the app runs)

Type this into another terminal:

TOKEN=$(curl -s {url}/api/auth/login -H 'Content-Type: application/json' -d @{login} | sed 's/.*"token": *"\\([^"]*\\)".*/\\1/')

Start the app for 2 minutes, look at it, and stop it:

curl -s -X POST {url}/api/apps/{app}/start -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"timeout":2}}'
curl -s {url}/api/apps/{app} -H "Authorization: Bearer $TOKEN"
curl -s -X POST {url}/api/apps/{app}/stop -H "Authorization: Bearer $TOKEN"

Ctrl-C ends it all.
"""  # noqa: E501  # each command is one line, to be copied


class CannotRunError(Exception):
    """The run can't continue; the message is a sentence for the terminal."""


class StopRequestedError(Exception):
    """Ctrl-C was pressed, or TERM was sent."""


class Run:
    """All parts of one `make run`: call `start`, `watch`, and in any case `stop`."""

    def __init__(self, folder: Path, *, port: int, agent_port: int) -> None:
        self._folder = folder
        self._apps = folder / "apps"
        self._login = folder / "login.json"
        self._agent_port = agent_port
        self._asked_to_stop = threading.Event()
        self._controller = ControllerProcess(folder / "controller", port=port, admin_password=self._password())
        self._private = PrivateEngine(folder / "engine", outside=True)
        self._private_in_use = False
        self._agent: AgentProcess | None = None

    def ask_to_stop(self, *_: object) -> None:
        """Signal handler: stop after the current step; on a second signal, immediately."""
        if self._asked_to_stop.is_set():
            raise StopRequestedError
        self._asked_to_stop.set()

    def start(self) -> None:
        """Start everything, and print the next commands. Raises CannotRunError, or StopRequestedError between steps."""
        engine = self._start_engine()
        agent = AgentProcess(self._folder / "agent", engine, allow_roots=[self._apps], port=self._agent_port)
        self._agent = agent
        agent.process.end_leftover()
        self._controller.process.end_leftover()
        self._refuse_busy_ports()
        self._go_on()
        ensure_sample_image(engine)
        _say(f"Starting the controller at {self._controller.url}")
        self._controller.start()
        self._go_on()
        api = self._log_in()
        self._start_agent(agent, api)
        app_id, page = self._make_app(api)
        self._go_on()
        _say(_NEXT.format(url=self._controller.url, login=self._login, app=app_id, page=page, **self._read_login()))

    def watch(self) -> None:
        """Return when a stop is requested. Raises CannotRunError if a process ends before that."""
        while not self._asked_to_stop.wait(_LOOK_EVERY):
            for part in (self._controller, self._agent):
                if part is not None and not part.process.alive:
                    raise CannotRunError(part.process.death)
            if self._private_in_use and not self._private.alive:
                raise CannotRunError(f"The Docker Engine ended. The end of its log:\n{self._private.log_tail()}")

    def stop(self) -> None:
        """Stop the sample app, then everything else, each process by its id. Their data stays in the folder."""
        _say("Stopping the sample app, the agent and the controller")
        with suppress(OSError, AssertionError):
            self._stop_app()
        if self._agent is not None and self._agent.process.alive:
            self._agent.process.terminate(grace=_PROCESS_PATIENCE)
        if self._controller.process.alive:
            self._controller.process.terminate(grace=_PROCESS_PATIENCE)
        if self._private_in_use:
            self._private.stop(patience=_ENGINE_PATIENCE)
        _say(f"Everything has ended. Your data is in {self._folder}.")

    def _go_on(self) -> None:
        if self._asked_to_stop.is_set():
            raise StopRequestedError

    def _start_engine(self) -> Engine:
        if self._private.folder.exists():
            self._private.stop()  # possible leftovers of a killed run
        engine = find_engine()
        if engine is not None:
            _say(f"Using the Docker Engine at {engine.host}")
            return engine
        _say("No Docker Engine answers here: starting a private one")
        self._private_in_use = True
        return self._private.start()

    def _refuse_busy_ports(self) -> None:
        for name, port in (("PORT", self._controller.port), ("AGENT_PORT", self._agent_port)):
            if not port_is_free(port):
                raise CannotRunError(
                    f"Port {port} of 127.0.0.1 is in use by another program: end that one, or choose another port "
                    f"with `{name}=NUMBER make run`."
                )

    def _password(self) -> str:
        """Return the admin's password: made on the first run, and stored for the next ones and for curl."""
        if not self._login.exists():
            part = self._login.with_suffix(".part")
            part.touch(mode=0o600)
            part.write_text(json.dumps({"username": ADMIN, "password": secrets.token_urlsafe(12)}))
            part.replace(self._login)
        return self._read_login()["password"]

    def _read_login(self) -> dict[str, str]:
        login: dict[str, str] = json.loads(self._login.read_text())
        return login

    def _log_in(self) -> Api:
        try:
            return self._controller.admin()
        except AssertionError as error:
            raise CannotRunError(
                f"The controller doesn't accept the password in {self._login} ({error}). If you changed it, write "
                f"the new one into that file; or remove {self._controller.folder} to begin anew."
            ) from None

    def _start_agent(self, agent: AgentProcess, api: Api) -> None:
        server_id = catalogue.ensure_server(api)
        self._apps.mkdir(exist_ok=True)
        _say(f"Starting the agent at {agent.address}")
        catalogue.ensure_enrolled(api, server_id, agent)
        agent.start()
        agent.process.wait_until(
            lambda: self._asked_to_stop.is_set() or catalogue.server_is_online(api, server_id),
            timeout=_ONLINE_LIMIT,
            what=f"the server {catalogue.SERVER!r} online",
        )

    def _make_app(self, api: Api) -> tuple[str, str]:
        folder = self._apps / catalogue.APP
        write_hello(folder)
        app = catalogue.find_app(api)
        port = choose_port(folder, running=app is not None and app["status"] != "stopped")
        page = f"http://127.0.0.1:{port}"
        return catalogue.ensure_app(api, catalogue.ensure_server(api), folder, page), page

    def _stop_app(self) -> None:
        if not self._controller.process.alive or self._agent is None or not self._agent.process.alive:
            return
        login = self._read_login()
        nobody = Api(self._controller.url, timeout=_APP_PATIENCE)
        api = nobody.login(login["username"], login["password"])
        app = catalogue.find_app(api)
        if app is not None and app["status"] != "stopped":
            api.post(f"/api/apps/{app['id']}/stop").expect()


def main() -> int:
    """Run until Ctrl-C or TERM; return the exit code."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".run").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _only_one(folder):
            _run_until_stopped(folder)
    except (CannotRunError, ProcessDiedError, NotInTimeError, RuntimeError) as error:
        _say(str(error), to=sys.stderr)
        return 1
    return 0


def _run_until_stopped(folder: Path) -> None:
    run = Run(folder, port=_port("PORT", 3000), agent_port=_port("AGENT_PORT", 7443))
    signal.signal(signal.SIGINT, run.ask_to_stop)
    signal.signal(signal.SIGTERM, run.ask_to_stop)
    try:
        run.start()
        run.watch()
    except StopRequestedError:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        run.stop()


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise CannotRunError(f"{variable}={text} is no port: give a number from 1 to 65535.")
    return int(text)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Lock the folder against a second run. The kernel releases the lock when this process ends in any way."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRunError(f"Another `make run` is running in {folder}: end that one first.") from None
        yield


def _say(text: str, *, to: TextIO | None = None) -> None:
    print(text, file=to, flush=True)


if __name__ == "__main__":
    sys.exit(main())
