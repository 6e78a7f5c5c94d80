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
_CONFIG_SECONDS = 20.0


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


async def identify(
    compose: str, cd_path: str, real_directory: str, last_project: Project | None, environment: Mapping[str, str]
) -> AppIdentity:
    """Ask Compose what the project in a directory is called, and where its containers will say they come from."""
    kind = await asyncio.to_thread(_kind_of, real_directory)
    if kind != "directory":
        code = "not_a_directory" if kind == "file" else "directory_missing"
        problem = f"{real_directory} {'is not a directory' if kind == 'file' else 'does not exist'} on the host."
        return AppIdentity(cd_path, real_directory, None, last_project, code, problem)
    config, variables = await asyncio.gather(
        _run(config_command(compose), real_directory, environment),
        _run(config_command(compose, environment=True), real_directory, environment),
    )
    if config.code != 0 or variables.code != 0:
        missing = "no configuration file provided" in config.complaint
        code = "compose_file_missing" if missing else "compose_file_invalid"
        return AppIdentity(cd_path, real_directory, None, last_project, code, f"Compose says: {config.complaint}")
    name = json.loads(config.output)["name"]
    directory = await asyncio.to_thread(_project_directory, real_directory, variables.output)
    return AppIdentity(cd_path, real_directory, Project(name, directory), last_project)


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


def _project_directory(real_directory: str, environment: str) -> str:
    """Return what Compose labels containers with: the directory of the first compose file, links resolved."""
    variables = dict(line.partition("=")[::2] for line in environment.splitlines())
    named = variables.get("COMPOSE_FILE")
    if named:
        first = named.split(variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep)[0]
        return os.path.realpath(Path(real_directory, first).parent)
    # As Compose does: the nearest directory upwards with a file of one of the known names.
    upwards = (Path(real_directory), *Path(real_directory).parents)
    return next((str(d) for d in upwards if any((d / name).exists() for name in _FILES)), real_directory)
