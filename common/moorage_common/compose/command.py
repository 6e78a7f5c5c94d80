"""An operation as an argv: the one command definition for both transports."""

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
"""Runs argvs given as COUNT ARG... one after the other; the last one's code counts. What `eval` sees is only
references to positional parameters ("${2}" "${3}"), never an argument's text."""

PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""What Compose takes as a project's name."""
_FILE_CHARACTERS = 255
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
_FIRM = {
    # Else Compose runs git in the app's folder, and git what that folder's .git/config says.
    "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false",
    "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false",
    # Compose must read what was looked through: with these a `.env` changes what its own lines, and paths, mean.
    "COMPOSE_DISABLE_ENV_FILE": "false",
    "COMPOSE_CONVERT_WINDOWS_PATHS": "false",
    # buildx asks git about the folder, with the environment that a `.env` adds to.
    "BUILDX_GIT_INFO": "false",
    "BUILDX_GIT_CHECK_DIRTY": "false",
    "BUILDX_GIT_LABELS": "",
}
"""What the environment of Compose says, a `.env` in the app's folder can't say otherwise."""
_NO_CONFIG = "/nonexistent"


def start_command(compose: str | Sequence[str], kind: OperationKind) -> list[str]:
    """Return the argv of a start (`up -d`) or a restart, run in the app's directory.

    A restart makes all containers anew, and removes those of services that are no more in the app's files. A start
    takes nothing away that runs.
    """
    argv = [*_base(compose), "up", "-d"]
    if kind is OperationKind.RESTART:
        argv += ["--force-recreate", "--remove-orphans"]
    return argv


def is_own_file(path: str) -> bool:
    """Whether a path can be one of an app's own compose files: relative, and plainly below the app's directory."""
    plain = path.isprintable() and all(part not in {"", ".", ".."} for part in path.split("/"))
    # Compose takes `-` for its standard input, and lists files with commas in its labels.
    return plain and len(path) <= _FILE_CHARACTERS and not path.startswith("-") and "," not in path


def with_files(compose: str | Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the argv that Compose's begins with where an app says which files are its own, relative to its directory.

    Without any it is Compose that looks for them.
    """
    return [*_words(compose), *(word for file in files for word in ("-f", file))]


def down_command(compose: str | Sequence[str], project: str) -> list[str]:
    """Return the argv of a `down` by the project's name alone, from the labels of its containers: run it in `/`.

    It reads no compose file and no `.env`. Raises ValueError for a name that Compose wouldn't take as one.
    """
    if not PROJECT_NAME.fullmatch(project):
        raise ValueError("the name of a Compose project is lower case letters, digits, dashes and underscores")
    return [*_base(compose), "--env-file", os.devnull, "-p", project, "down", "--remove-orphans"]


def config_command(compose: str | Sequence[str], *, environment: bool = False) -> list[str]:
    """Return the argv that prints the project as Compose reads it (JSON), or the environment it reads it with."""
    return [*_words(compose), "config", *(["--environment"] if environment else ["--format", "json"])]


def steps_command(steps: Sequence[Sequence[str]]) -> list[str]:
    """Return one argv that runs several in turn, each whatever became of the one before; the last one's code counts."""
    counted = [word for step in steps for word in (str(len(step)), *step)]
    return ["/bin/sh", "-c", _STEPS, "moorage-steps", *counted]


def clean_environment(directory: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment of a Compose command run in `directory`.

    Only what Docker needs is kept of `base` (this process's own by default): a variable of ours must not
    interpolate into somebody's compose file, nor a bundled interpreter's library path reach a child. Docker's folder
    of settings names programs (plugins, credential helpers): it is never one inside the app's own directory.
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
    """Return the argv that Compose's begins with: a program, or several words (`docker compose`)."""
    return [compose] if isinstance(compose, str) else list(compose)


def _base(compose: str | Sequence[str]) -> list[str]:
    return [*_words(compose), "--progress", "json", "--ansi", "never"]
