"""The assignment of containers to apps. An app is a Compose project in a real directory; its name isn't enough.

Its containers are those of its project name that Compose would make from this directory, those whose working directory
is this real directory, under any project name, and those of the last seen project. Two directories of the same name
have the same project name: each has its own containers, and never the other's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import join
from typing import Any

from moorage_common.docker.containers import Container
from moorage_common.docker.states import Project
from moorage_common.journal.types import Refused
from moorage_common.untrusted import UntrustedError, parse_json

COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
OVERRIDE_FILES = tuple(name.replace("compose.", "compose.override.") for name in COMPOSE_FILES)
UNREADABLE = "unreadable_compose_file"
"""The problem of an app for which Compose's output can't be understood; it affects that app alone."""
DIRECTORY_HANGS = "directory_hangs"
"""The problem of an app whose directory is on a file system that doesn't answer."""
_MOST_CONFIG = 8 << 20
_MOST_NAMES = 16 << 10
"""Bytes of all names together: they are stored in each order of the journal, which is limited to 64 KiB."""
_MOST_REPLICAS = 100_000
NO_FILE = "no configuration file provided"
"""Compose's message if it finds no file."""
_TOLD_BY_COMPOSE = frozenset({"", "compose_file_missing", "compose_file_invalid"})
"""A start with one of these runs anyway: Compose reports the problem better. With any other it is refused."""


@dataclass(frozen=True, slots=True)
class AppIdentity:
    """An app on its host. `project` is Compose's current name of it; None if unknown (`problem` says why)."""

    cd_path: str
    real_directory: str
    project: Project | None
    last_project: Project | None = None
    problem_code: str = ""
    problem: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """The desired number of containers of each service, 0 if its profile isn't active; empty if not known."""
    compose_files: Sequence[str] = ()
    """The compose files that the app names, relative to its directory; empty for the default names."""
    config_files: Sequence[str] = ()
    """The files that Compose reads first, symlinks resolved."""

    def owns(self, container: Container) -> bool:
        """Whether a container belongs to this app."""
        seen = Project(container.project, container.directory)
        return container.directory == self.real_directory or seen in (self.project, self.last_project)

    def is_foreign(self, container: Container, name: str) -> bool:
        """Whether a container has that project name, but belongs to another real directory."""
        return container.project == name and not self.owns(container)

    @property
    def named(self) -> Project | None:
        """The current project, else the last seen one."""
        return self.project or self.last_project

    @property
    def forbids_start(self) -> bool:
        """Whether its problem is one that Compose itself wouldn't report."""
        return self.problem_code not in _TOLD_BY_COMPOSE

    def refusal(self, names: Iterable[str], containers: Iterable[Container]) -> Refused | None:
        """Refuse an operation on these project names if another directory uses one of them."""
        wanted = set(names)
        for container in containers:
            if any(self.is_foreign(container, name) for name in wanted):
                return Refused(
                    "project_taken",
                    f"The Compose project {container.project} is in use by {container.directory}: stop that app "
                    f"first, or give {self.real_directory} a `name:` of its own in its compose file.",
                )
        return None

    def seen_as(self, containers: Iterable[Container]) -> Project | None:
        """Return the project to store as last seen: the previous one, as long as it has containers elsewhere."""
        last = self.last_project
        left = (c for c in containers if c.directory != self.real_directory)
        return last if any(Project(c.project, c.directory) == last for c in left) else self.named

    def other_files(self, containers: Iterable[Container]) -> Refused | None:
        """Refuse a start that would make a second set of containers, because the running ones are from other files.

        Not if the app names its compose files, nor if a file with a default name was added or removed.
        """
        project = self.project
        if project is None:
            return None
        for container in (c for c in containers if self.owns(c) and c.state.alive):
            if container.project != project.name:
                return Refused(
                    "other_files",
                    f"{container.state.name} runs as a part of the Compose project {container.project}, and a start "
                    f"would make {project.name} beside it: stop the app first.",
                )
            places = (container.directory, project.directory)
            usual = {join(place, name) for place in places for name in (*COMPOSE_FILES, *OVERRIDE_FILES)}
            others = [f for f in container.config_files if f not in self.config_files and f not in usual]
            if (others or container.environment_file) and not self.compose_files:
                started_with = ", ".join(others) or f"the environment file {container.environment_file}"
                return Refused(
                    "other_files",
                    f"{container.state.name} was started with {started_with}, which a start doesn't read: stop the app "
                    "first, or say in its composeFiles which files are its own.",
                )
        return None

    def to_spec(self) -> dict[str, object]:
        """Return the part that is stored in an operation's order."""
        return {
            "cd_path": self.cd_path,
            "real_directory": self.real_directory,
            "project": _pair(self.project),
            "last_project": _pair(self.last_project),
            "replicas": dict(self.replicas),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "AppIdentity | None":
        """Read the identity from an operation's order; None if the order is missing or not in our format."""
        try:
            cd_path, real_directory = str(spec["cd_path"]), str(spec["real_directory"])
            project, last_project = _project(spec.get("project")), _project(spec.get("last_project"))
            told = spec.get("replicas")
            replicas = {str(name): int(count) for name, count in told.items()} if isinstance(told, dict) else {}
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return cls(cd_path, real_directory, project, last_project, replicas=replicas) if cd_path else None


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading a directory. Valid while `files`, existing or not, don't change."""

    project: Project | None
    files: Sequence[str]
    problem_code: str = ""
    problem: str = ""
    replicas: Mapping[str, int] = field(default_factory=dict)
    config_files: Sequence[str] = ()

    def identity(
        self, cd_path: str, real_directory: str, last_project: Project | None, compose_files: Sequence[str] = ()
    ) -> AppIdentity:
        """Return the identity of the app with this reading."""
        return AppIdentity(
            cd_path,
            real_directory,
            self.project,
            last_project,
            self.problem_code,
            self.problem,
            self.replicas,
            compose_files,
            self.config_files,
        )


def read_config(
    config: str,
    directory: str,
    files: Sequence[str],
    declared: Iterable[str] = (),
    config_files: Sequence[str] = (),
) -> Reading:
    """Parse the output of `config --format json`; invalid output gives a reading with a problem.

    `directory` is that of the first file, symlinks resolved; `declared` are all services in the files, while Compose
    only prints those whose profiles are active; `config_files` are the first files.
    """
    try:
        told = parse_json(config, _MOST_CONFIG)
        name, services = told["name"], told.get("services") or {}
        replicas = dict.fromkeys(declared, 0) | {service: _replicas(about) for service, about in services.items()}
        named = "".join([name, *replicas]).encode()
        if not name or len(named) > _MOST_NAMES:
            return nonsense(directory, files)
    except (UntrustedError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        return nonsense(directory, files)
    return Reading(Project(name, directory), files, replicas=replicas, config_files=config_files)


def nonsense(directory: str, files: Sequence[str]) -> Reading:
    """Return the reading of a directory that couldn't be understood, for any reason."""
    problem = (
        f"What Compose reads in {directory} can't be made sense of: run `docker compose config` there, and look for "
        "parts that are nested very deep, are very large, or are numbers out of all proportion."
    )
    return Reading(None, files, UNREADABLE, problem)


def directory_hangs(path: str) -> str:
    """Return the problem of a directory that doesn't answer."""
    return (
        f"The directory {path!a} on the host doesn't answer: the file system it lies on hangs (NFS, FUSE or a disk). "
        "Mend or unmount it there; a running app can be stopped all the same."
    )


def no_directory(real_directory: str, *, is_file: bool) -> Reading:
    """Return the reading of a path that isn't a directory."""
    code = "not_a_directory" if is_file else "directory_missing"
    problem = f"{real_directory} {'is not a directory' if is_file else 'does not exist'} on the host."
    return Reading(None, [real_directory], code, problem)


def unreadable(complaint: str, files: Sequence[str]) -> Reading:
    """Return the reading of a directory that Compose rejects."""
    code = "compose_file_missing" if NO_FILE in complaint else "compose_file_invalid"
    return Reading(None, files, code, f"Compose says: {complaint}")


def refused(refusal: Refused, files: Sequence[str]) -> Reading:
    """Return the reading of a directory that Compose must not read."""
    return Reading(None, files, refusal.code, str(refusal))


def not_quotable(real_directory: str, files: Sequence[str]) -> Reading:
    """Return the reading of a directory that Compose rejects with an error that may quote another user's file."""
    problem = (
        f"Compose can't read the project in {real_directory}, whose files lead outside that directory or were just "
        "being changed: run `docker compose config` there to see why."
    )
    return Reading(None, files, "unreadable_compose_file", problem)


def _replicas(service: Mapping[str, Any]) -> int:
    if service.get("provider") is not None:
        return 0  # a provider runs a program of the host, not a container
    scale = service.get("scale")
    if scale is None:
        scale = (service.get("deploy") or {}).get("replicas")
    count = 1 if scale is None else int(scale)
    if not 0 <= count <= _MOST_REPLICAS:
        raise ValueError("so many replicas can't be meant")
    return count


def _pair(project: Project | None) -> list[str] | None:
    return None if project is None else [project.name, project.directory]


def _project(pair: object) -> Project | None:
    if not isinstance(pair, list):
        return None
    name, directory = pair
    return Project(str(name), str(directory))
