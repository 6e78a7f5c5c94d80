"""Which containers are an app's. An app is a Compose project in a real directory; its name alone is not enough.

Its containers are those of its project name that Compose would make from this very directory, those whose working
directory is this real directory whatever their project's name, and those of the project it was last seen as. Two
directories of the same name have the same project name: each has its own containers, and never the other's.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moorage_common.compose import clean_environment, config_command
from moorage_common.compose_output import error_sentence
from moorage_common.states import Project

from moorage_agent.engine import Container

_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = tuple(name.replace("compose.", "compose.override.") for name in _FILES)
_CONFIG_SECONDS = 20.0
_NO_FILE = "no configuration file provided"
"""Compose's words where it finds no file."""


@dataclass(frozen=True, slots=True)
class AppIdentity:
    """An app on this host. `project` is what Compose calls it now; None where it can't tell (`problem` says why)."""

    cd_path: str
    real_directory: str
    project: Project | None
    last_project: Project | None = None
    problem_code: str = ""
    problem: str = ""

    def owns(self, container: Container) -> bool:
        """Whether a container is this app's."""
        seen = Project(container.project, container.directory)
        return container.directory == self.real_directory or seen in (self.project, self.last_project)

    def is_foreign(self, container: Container, name: str) -> bool:
        """Whether a container bears that project name, but belongs to another real directory."""
        return container.project == name and not self.owns(container)

    @property
    def named(self) -> Project | None:
        """The project as it is now, else as it was last seen."""
        return self.project or self.last_project


@dataclass(frozen=True, slots=True)
class Reading:
    """What Compose makes of a directory. It stands as long as `files`, there or missing, stay as they are."""

    project: Project | None
    files: Sequence[str]
    problem_code: str = ""
    problem: str = ""

    def identity(self, cd_path: str, real_directory: str, last_project: Project | None) -> AppIdentity:
        """Return the app that this says."""
        return AppIdentity(cd_path, real_directory, self.project, last_project, self.problem_code, self.problem)


async def read_project(compose: str, real_directory: str, environment: Mapping[str, str]) -> Reading:
    """Ask Compose what the project in a directory is called, and where its containers will say they come from."""
    kind = await asyncio.to_thread(_kind_of, real_directory)
    if kind != "directory":
        code = "not_a_directory" if kind == "file" else "directory_missing"
        problem = f"{real_directory} {'is not a directory' if kind == 'file' else 'does not exist'} on the host."
        return Reading(None, [real_directory], code, problem)
    config, variables = await asyncio.gather(
        _run(config_command(compose), real_directory, environment),
        _run(config_command(compose, environment=True), real_directory, environment),
    )
    directory, files = await asyncio.to_thread(_places, real_directory, variables.output)
    if config.code != 0 or variables.code != 0:
        complaint = config.complaint if config.code else variables.complaint
        code = "compose_file_missing" if _NO_FILE in complaint else "compose_file_invalid"
        return Reading(None, files, code, f"Compose says: {complaint}")
    return Reading(Project(json.loads(config.output)["name"], directory), files)


@dataclass(frozen=True, slots=True)
class _Ran:
    code: int
    output: str
    complaint: str


async def _run(argv: Sequence[str], directory: str, environment: Mapping[str, str]) -> _Ran:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=directory,
            env=clean_environment(directory, environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return _Ran(1, "", f"{argv[0]} can't be run in {directory}: {error.strerror}")
    try:
        output, complaint = await asyncio.wait_for(process.communicate(), _CONFIG_SECONDS)
    except TimeoutError:
        return _Ran(1, "", f"it did not read the project within {_CONFIG_SECONDS:.0f} seconds")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    said = error_sentence(complaint.decode(errors="replace")) or "nothing"
    return _Ran(process.returncode, output.decode(errors="replace"), said)


def _kind_of(path: str) -> str:
    if Path(path).is_dir():
        return "directory"
    return "file" if os.path.lexists(path) else "nothing"


def _places(real_directory: str, environment: str) -> tuple[str, Sequence[str]]:
    """Return what Compose labels containers with (the directory of its first file, links resolved), and its files."""
    variables = dict(line.partition("=")[::2] for line in environment.splitlines())
    # Not the directory itself: it changes whenever the app writes a file beside its compose file.
    settings = [str(Path(real_directory, ".env"))]
    named = variables.get("COMPOSE_FILE")
    if named:
        files = [Path(real_directory, f) for f in named.split(variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep)]
        return os.path.realpath(files[0].parent), [*settings, *map(str, files)]
    # As Compose does: the nearest directory upwards with a file of one of the known names.
    for directory in (Path(real_directory), *Path(real_directory).parents):
        settings += [str(directory / name) for name in (".env", *_FILES, *_OVERRIDES)]
        if any((directory / name).exists() for name in _FILES):
            return str(directory), settings
    return real_directory, settings
