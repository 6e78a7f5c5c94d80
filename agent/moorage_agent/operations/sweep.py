"""The last step of a stop: remove every container that still has the app's labels, then verify.

Run as a separate program inside the stop's operation (`python -I -m moorage_agent.operations.sweep`): it runs even if
the agent is killed, and its exit code is the stop's, 0 only when nothing of the app is left.
Prints its progress in Compose's format, one JSON object per line.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import Container
from moorage_common.docker.states import Project

from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.docker.engine import Engine
from moorage_agent.errors import EngineUnreachableError

_ROUNDS = 5
_PAUSE_SECONDS = 0.5
_MAX_CONCURRENT = 8
"""Each container has its own grace period: ten of them in sequence would take ten times as long."""


def command(identity: AppIdentity) -> list[str]:
    """Return the argv of the sweep of an app."""
    # A frozen program is its own interpreter; -I keeps the app's directory out of Python's module path.
    python = [sys.executable, "sweep"] if getattr(sys, "frozen", False) else [sys.executable, "-I", "-m", __name__]
    argv = [*python, "--real-directory", identity.real_directory]
    for project in (identity.project, identity.last_project):
        if project is not None:
            argv += ["--project", project.name, project.directory]
    return argv


def main(arguments: Sequence[str]) -> int:
    """Sweep and return the exit code."""
    parser = argparse.ArgumentParser(prog="moorage-agent sweep")
    parser.add_argument("--real-directory", required=True)
    parser.add_argument("--project", nargs=2, action="append", default=[], metavar=("NAME", "DIRECTORY"))
    given = parser.parse_args(arguments)
    projects = [Project(*pair) for pair in given.project]
    identity = AppIdentity(given.real_directory, given.real_directory, *_two(projects))
    try:
        # Another app's directory may hang: waiting for it would keep this app running.
        reader = DirectoryReader(Path(os.devnull), "", {})
        left = _sweep(Engine(os.environ["DOCKER_HOST"], reader.real_paths), identity, projects)
    except EngineUnreachableError as error:
        return _fail(str(error))
    if left:
        names = ", ".join(sorted(c.state.name for c in left))
        return _fail(f"The app was told to stop, but this is still there: {names}.")
    return 0


def _sweep(engine: Engine, identity: AppIdentity, projects: Sequence[Project]) -> Sequence[Container]:
    """Remove the app's containers and networks; return the containers that remain."""
    left: Sequence[Container] = ()
    for attempt in range(_ROUNDS):
        left = list(engine.containers(identity.owns).values())
        if not left:
            break
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
            list(pool.map(lambda container: _remove(engine, container), left))
        left = list(engine.containers(identity.owns).values())
    others = {c.project for c in engine.containers(lambda c: not identity.owns(c)).values()}
    for name in {p.name for p in projects} - others:
        removed, in_use = engine.remove_networks(name)
        for network in removed:
            _say(f"Network {network}", "Done", "Removed")
        for network, users in in_use.items():
            by = f"by {', '.join(users)}" if users else ""
            _write({"id": f"Network {network}", "status": "Warning", "text": "Still in use", "details": by})
    return left


def _remove(engine: Engine, container: Container) -> None:
    """Remove a container; a failure is reported and must not prevent the removal of the others."""
    name = f"Container {container.state.name}"
    _say(name, "Working", "Removing")
    try:
        engine.remove(container.state.id)
    except EngineUnreachableError as error:
        _write({"id": name, "status": "Error", "text": "Error", "details": str(error)})
    else:
        _say(name, "Done", "Removed")


def _two(projects: Sequence[Project]) -> tuple[Project | None, Project | None]:
    first, second = [*projects, None, None][:2]
    return first, second


def _say(thing: str, status: str, text: str) -> None:
    _write({"id": thing, "status": status, "text": text})


def _fail(sentence: str) -> int:
    _write({"error": True, "message": sentence})
    return 1


def _write(entry: dict[str, object]) -> None:
    # A single write: other processes write, too. A full disk must not prevent the removal.
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"{json.dumps(entry)}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
