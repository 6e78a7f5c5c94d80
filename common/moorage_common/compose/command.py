"""An operation as an argv: the only command definition, for both transports."""

import os
import re
from collections.abc import Mapping, Sequence
from posixpath import normpath

from moorage_common.docker.states import OperationKind

_STEPS = """\
code=0
while [ $# -gt 0 ]; do
    count=$1
    command=
    i=2
    while [ $i -le $((count + 1)) ]; do
        command="$command \\"\\${$i}\\""
        i=$((i + 1))
    done
    eval "$command"
    code=$?
    shift $((count + 1))
done
exit $code
"""
"""Runs argvs given as COUNT ARG... one after the other; the exit code is the last one's. `eval` only gets
references to positional parameters ("${2}" "${3}"), never an argument's text."""

PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""Compose's syntax of a project name."""
_FILE_CHARACTERS = 255
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
_FIRM = {
    # Otherwise Compose runs git in the app's folder, and git runs commands from that folder's .git/config.
    "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false",
    "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false",
    # Compose must read the checked content: with these a `.env` changes the meaning of its own lines and paths.
    "COMPOSE_DISABLE_ENV_FILE": "false",
    "COMPOSE_CONVERT_WINDOWS_PATHS": "false",
    # buildx runs git on the folder, with an environment that a `.env` extends.
    "BUILDX_GIT_INFO": "false",
    "BUILDX_GIT_CHECK_DIRTY": "false",
    "BUILDX_GIT_LABELS": "",
}
"""Set in Compose's environment, which a `.env` in the app's folder can't override."""
_NO_CONFIG = "/nonexistent"


def start_command(compose: str | Sequence[str], kind: OperationKind) -> list[str]:
    """Return the argv of a start (`up -d`) or a restart, run in the app's directory.

    A restart recreates all containers, and removes those of services that are no longer in the app's files. A start
    removes no running container.
    """
    argv = [*_base(compose), "up", "-d"]
    if kind is OperationKind.RESTART:
        argv += ["--force-recreate", "--remove-orphans"]
    return argv


def is_own_file(path: str) -> bool:
    """Whether a path can be one of an app's own compose files: relative, and plainly below the app's directory."""
    plain = path.isprintable() and all(part not in {"", ".", ".."} for part in path.split("/"))
    # Compose reads `-` as its standard input, and separates files by commas in its labels.
    return plain and len(path) <= _FILE_CHARACTERS and not path.startswith("-") and "," not in path


def with_files(compose: str | Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the beginning of Compose's argv for the compose files an app names, relative to its directory.

    Without any, Compose looks for the default names.
    """
    return [*_words(compose), *(word for file in files for word in ("-f", file))]


def down_command(compose: str | Sequence[str], project: str) -> list[str]:
    """Return the argv of a `down` by the project's name alone, from the labels of its containers: run it in `/`.

    It reads no compose file and no `.env`. Raises ValueError for a name that Compose wouldn't accept.
    """
    if not PROJECT_NAME.fullmatch(project):
        raise ValueError("the name of a Compose project is lower case letters, digits, dashes and underscores")
    return [*_base(compose), "--env-file", os.devnull, "-p", project, "down", "--remove-orphans"]


def config_command(compose: str | Sequence[str], *, environment: bool = False) -> list[str]:
    """Return the argv that prints the project as Compose reads it (JSON), or the environment it reads it with."""
    return [*_words(compose), "config", *(["--environment"] if environment else ["--format", "json"])]


def steps_command(steps: Sequence[Sequence[str]]) -> list[str]:
    """Return one argv that runs several in sequence, regardless of failures; its exit code is the last one's."""
    counted = [word for step in steps for word in (str(len(step)), *step)]
    return ["/bin/sh", "-c", _STEPS, "moorage-steps", *counted]


def clean_environment(directory: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment of a Compose command run in `directory`.

    Only the variables Docker needs are kept from `base` (this process's own by default): our own variables must not
    be interpolated into an app's compose file, and a bundled interpreter's library path must not reach a child.
    Docker's config folder names programs (plugins, credential helpers): it is never one inside the app's directory.
    """
    base = os.environ if base is None else base
    kept = {name: base[name] for name in _KEPT if name in base}
    home = kept.get("HOME", "/root")
    config = kept.get("DOCKER_CONFIG") or f"{home.rstrip('/')}/.docker"
    if directory != "/" and f"{normpath(config)}/".startswith(f"{directory}/"):
        config = _NO_CONFIG
    settings = {"DOCKER_CONFIG": config, "BUILDX_CONFIG": f"{config}/buildx"}
    return {**_FIRM, **kept, **settings, "HOME": home, "PATH": CLEAN_PATH, "LANG": "C.UTF-8", "PWD": directory}


def _words(compose: str | Sequence[str]) -> list[str]:
    """Return the beginning of Compose's argv: a program, or several words (`docker compose`)."""
    return [compose] if isinstance(compose, str) else list(compose)


def _base(compose: str | Sequence[str]) -> list[str]:
    return [*_words(compose), "--progress", "json", "--ansi", "never"]
