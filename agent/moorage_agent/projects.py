"""What Compose makes of a directory on this host."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moorage_common.app_identity import COMPOSE_FILES, OVERRIDE_FILES, Reading, no_directory, read_config, unreadable
from moorage_common.compose import clean_environment, config_command
from moorage_common.compose_output import error_sentence

_CONFIG_SECONDS = 20.0


async def read_project(compose: str, real_directory: str, environment: Mapping[str, str]) -> Reading:
    """Ask Compose what the project in a directory is called, and where its containers will say they come from."""
    kind = await asyncio.to_thread(_kind_of, real_directory)
    if kind != "directory":
        return no_directory(real_directory, is_file=kind == "file")
    config, variables = await asyncio.gather(
        _run(config_command(compose), real_directory, environment),
        _run(config_command(compose, environment=True), real_directory, environment),
    )
    directory, files = await asyncio.to_thread(_places, real_directory, variables.output)
    if config.code != 0 or variables.code != 0:
        return unreadable(config.complaint if config.code else variables.complaint, files)
    return read_config(config.output, directory, files)


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
        settings += [str(directory / name) for name in (".env", *COMPOSE_FILES, *OVERRIDE_FILES)]
        if any((directory / name).exists() for name in COMPOSE_FILES):
            return str(directory), settings
    return real_directory, settings
