"""Reading the Compose project of a directory on this host."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moorage_common.compose.command import clean_environment, config_command, with_files
from moorage_common.compose.files import Walked, walk_app, walk_resolved
from moorage_common.compose.output import error_sentence
from moorage_common.compose.rules import Rules
from moorage_common.compose.variables import Variables
from moorage_common.docker.app_identity import (
    COMPOSE_FILES,
    OVERRIDE_FILES,
    Reading,
    no_directory,
    not_quotable,
    read_config,
    refused,
    unreadable,
)

from moorage_agent.apps.app_files import opened, run_walk, stamp

_CONFIG_SECONDS = 20.0
_IN_DIRECTORY = """\
cd "/proc/self/fd/$1" || exit
PWD=$2
export PWD
unset OLDPWD
shift 2
exec "$@"
"""
"""Enters the opened directory itself, even if its name refers to another one now. A shell does it, not Python's child
before its exec: all threads of this process wait for that, and a hanging file system would block them."""


async def read_project(
    compose: str,
    real_directory: str,
    environment: Mapping[str, str],
    rules: Rules,
    compose_files: Sequence[str] = (),
) -> Reading:
    """Ask Compose for the name of the project in a directory, and the working directory in its containers' labels.

    Compose is only run if `rules` allow everything that the project's files make it read, run or fetch.
    """
    kind = await asyncio.to_thread(_kind_of, real_directory)
    if kind != "directory":
        return no_directory(real_directory, is_file=kind == "file")
    walked, before = await asyncio.to_thread(_check_and_stat, real_directory, environment, rules, compose_files)
    if walked.refusal is not None:
        return refused(walked.refusal, walked.files)
    argv = with_files(compose, compose_files)
    config, variables = await asyncio.gather(
        _run(config_command(argv), real_directory, environment),
        _run(config_command(argv, environment=True), real_directory, environment),
    )
    directory, files = await asyncio.to_thread(_places, real_directory, variables.output, compose_files)
    files = tuple(dict.fromkeys([*files, *walked.files]))
    if config.code != 0 or variables.code != 0:
        again, after = await asyncio.to_thread(_check_and_stat, real_directory, environment, rules, compose_files)
        if before != after or again.refusal is not None or not again.quotable:
            return not_quotable(real_directory, files)
        return unreadable(config.complaint if config.code else variables.complaint, files)
    resolved = await asyncio.to_thread(run_walk, walk_resolved(config.output, directory, rules))
    if resolved.refusal is not None:
        return refused(resolved.refusal, files)
    return read_config(config.output, directory, files, walked.services, walked.config_files)


def check_files(
    real_directory: str, environment: Mapping[str, str], rules: Rules, compose_files: Sequence[str] = ()
) -> Walked:
    """Check an app's compose files, before Compose reads them."""
    clean = clean_environment(real_directory, environment)
    return run_walk(walk_app(real_directory, Variables(clean), clean["HOME"], rules, compose_files))


def _check_and_stat(
    real_directory: str, environment: Mapping[str, str], rules: Rules, compose_files: Sequence[str]
) -> tuple[Walked, Sequence[object]]:
    """Return the walk, and the state of its files after it, so that a change shows as another state."""
    walked = check_files(real_directory, environment, rules, compose_files)
    return walked, [(stamp(file, follow=False), stamp(file)) for file in walked.files]


@dataclass(frozen=True, slots=True)
class _Ran:
    code: int
    output: str
    complaint: str


async def _run(argv: Sequence[str], directory: str, environment: Mapping[str, str]) -> _Ran:
    try:
        with opened(directory) as handle:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _IN_DIRECTORY, "moorage-config", str(handle), directory, *argv),
                env=clean_environment(directory, environment),
                pass_fds=(handle,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
    except OSError as error:
        return _Ran(1, "", f"{argv[0]} can't be run in {directory}: {error.strerror}")
    try:
        async with asyncio.timeout(_CONFIG_SECONDS):
            output, complaint = await process.communicate()
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


def _places(real_directory: str, environment: str, compose_files: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the directory in Compose's labels (that of its first file, symlinks resolved), and its files."""
    variables = dict(line.partition("=")[::2] for line in environment.splitlines())
    # Not the directory itself: it changes whenever the app writes a file beside its compose file.
    settings = [str(Path(real_directory, ".env"))]
    listed = variables.get("COMPOSE_FILE")
    named = compose_files or (listed or "").split(variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep)
    if compose_files or listed:
        files = [Path(real_directory, file) for file in named]
        return os.path.realpath(files[0].parent), [*settings, *map(str, files)]
    # As Compose does: the nearest directory upwards with a file that has one of the default names.
    for directory in (Path(real_directory), *Path(real_directory).parents):
        settings += [str(directory / name) for name in (".env", *COMPOSE_FILES, *OVERRIDE_FILES)]
        if any((directory / name).exists() for name in COMPOSE_FILES):
            return str(directory), settings
    return real_directory, settings
