"""The process that answers questions about apps' directories.

A hanging file system (NFS, FUSE, a failing disk) blocks its callers indefinitely, and not even SIGKILL may end that.
So the agent itself never accesses apps' directories: this process does, with a thread for each question, and the
agent gives up questions past their time limit. Run as `moorage-agent directories POLICY COMPOSE [NAME VALUE]...`
(the environment of Compose); see directory_reader.py.
"""

import asyncio
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from moorage_common.compose.command import PROJECT_NAME
from moorage_common.compose.rules import Rules
from moorage_common.docker.app_identity import AppIdentity, Reading
from moorage_common.docker.states import Project

from moorage_agent.apps.app_files import Stamp, stamp
from moorage_agent.apps.policy import Policy
from moorage_agent.apps.projects import check_files, read_project
from moorage_agent.errors import RefusalError

_ROOT_SECONDS = 0.5
_IDLE_THREADS = 8
_CLOCK_TICK_NS = 20_000_000

Place = tuple[str, tuple[str, ...]]
"""A real directory, and the compose files in it that an app names."""


@dataclass(frozen=True, slots=True)
class Known:
    """The result of reading a place: valid while the rules and the files (`stamps`) stay the same.

    `stamps` is None if the files changed while they were read, or in the same tick of the file system's clock.
    """

    place: Place
    reading: Reading
    rules: Rules | None
    stamps: Sequence[Stamp | None] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an app; `known` is the last result of reading it."""

    cd_path: str
    last_project: Project | None
    compose_files: tuple[str, ...]
    known: Known | None


@dataclass(frozen=True, slots=True)
class Question:
    """A call of a method of Directories; `number` is that of its answer too."""

    number: int
    method: str
    given: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the method returned, or raised where `returned` is False."""

    number: int
    returned: bool
    value: Any


class Directories:
    """The answers. Each method may block indefinitely on a hanging file system."""

    def __init__(self, policy: Path, compose: str, environment: Mapping[str, str]) -> None:
        self._threads = Threads()
        self._roots = _LastPaths(self._threads)
        self._policy = Policy(policy, self._roots.real_path)
        self._compose = compose
        self._environment = environment

    def answer(self, question: Question) -> Answer:
        """Call the method that a question names; its exception is the answer too."""
        try:
            return Answer(
                question.number, returned=True, value=getattr(self, question.method)(*question.given, **question.named)
            )
        except RefusalError as error:
            return Answer(question.number, returned=False, value=error)
        except Exception as error:  # noqa: BLE001 - raised, and logged, where it was asked
            failure = RuntimeError("".join(traceback.format_exception(error)))
            return Answer(question.number, returned=False, value=failure)

    def real_path(self, path: str) -> str:
        """Resolve the symlinks of a path; an invalid path is returned unchanged."""
        try:
            return os.path.realpath(path)
        except (OSError, ValueError):
            return path

    def real_directory(self, path: str) -> str:
        """Return an app's real directory. Raises RefusalError, as the policy does."""
        return self._policy.real_directory(path)

    def current(self, asked: Asked) -> tuple[str, AppIdentity | None]:
        """Return an app's real directory and its identity; None if the last result isn't valid any more.

        Raises RefusalError if the policy doesn't allow the directory.
        """
        try:
            real, rules = self._policy.real_directory(asked.cd_path), self._policy.rules()
        except (OSError, ValueError) as error:
            raise RefusalError(
                "invalid_request", f"{asked.cd_path!a} can't be a directory on the host: {error}."
            ) from None
        known, place = asked.known, (real, asked.compose_files)
        if known is None or known.stamps is None or (known.place, known.rules) != (place, rules):
            return real, None
        if _stamps(known.reading.files) != known.stamps:
            return real, None
        return real, self.allowed(known.reading.identity(asked.cd_path, real, asked.last_project, asked.compose_files))

    def read(self, place: Place) -> Known:
        """Ask Compose for the project of a place."""
        began_ns = time.time_ns()
        try:
            rules = self._policy.rules()
        except RefusalError as error:
            return Known(place, Reading(None, (), error.code, str(error)), None, None)
        reading = asyncio.run(read_project(self._compose, place[0], self._environment, rules, place[1]))
        stamps = _stamps(reading.files)
        if any(each is not None and each[0] >= began_ns - _CLOCK_TICK_NS for each in stamps):
            return Known(place, reading, rules, None)
        return Known(place, reading, rules, stamps)

    def recheck(self, real_directory: str, compose_files: Sequence[str]) -> None:
        """Check an app's files again, right before Compose uses them. Raises RefusalError."""
        real = self._policy.real_directory(real_directory)
        refusal = check_files(real, self._environment, self._policy.rules(), compose_files).refusal
        if refusal is not None:
            raise RefusalError(refusal.code, str(refusal))

    def allowed(self, identity: AppIdentity) -> AppIdentity:
        """Remove the parts outside the policy: no app is reached, or shown, through another's directory."""
        return _allowed(identity, self._policy.real_directory)

    def allowed_unresolved(self, identity: AppIdentity) -> AppIdentity:
        """Do the same for an app whose directory doesn't answer: its paths are used unresolved."""
        return _allowed(identity, self._policy.unresolved_directory)


class Threads:
    """Runs each task in its own thread; a few idle threads are kept for the next ones."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def run(self, work: Callable[[], None]) -> None:
        """Start the task immediately."""
        self._work.put(work)
        with self._lock:
            if self._idle:
                self._idle -= 1
                return
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                if self._idle >= _IDLE_THREADS:
                    return
                self._idle += 1


class _LastPaths:
    """Real paths of the policy's own directories: the last known one if a directory doesn't answer immediately.

    Every question compares them: a hanging one must not make the questions about all others hang.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._last: dict[str, str] = {}
        self._asked: dict[str, tuple[threading.Event, float]] = {}
        self._lock = threading.Lock()

    def real_path(self, path: str) -> str:
        with self._lock:
            asked = self._asked.get(path)
            if asked is None:
                asked = self._asked[path] = (threading.Event(), time.monotonic())
                self._threads.run(lambda: self._ask(path, asked[0]))
        answered, since = asked
        answered.wait(max(since + _ROOT_SECONDS - time.monotonic(), 0))
        return self._last.get(path) or os.path.normpath(path)

    def _ask(self, path: str, answered: threading.Event) -> None:
        real = os.path.realpath(path)
        with self._lock:
            self._last[path] = real
            del self._asked[path]
        answered.set()


def reason(cd_path: str, refusal: RefusalError) -> AppIdentity:
    """Return the identity of a refused app: only the reason, nothing else of it."""
    return AppIdentity(cd_path, "", None, None, refusal.code, str(refusal))


def main(arguments: Sequence[str]) -> None:
    """Answer questions from standard input on standard output until the agent is gone."""
    policy, compose, *pairs = arguments
    environment = dict(zip(pairs[::2], pairs[1::2], strict=True))
    questions = Connection(sys.stdin.fileno(), writable=False)
    answers = Connection(sys.stdout.fileno(), readable=False)
    directories, threads, turn = Directories(Path(policy), compose, environment), Threads(), threading.Lock()
    answers.send(None)  # ready
    with suppress(EOFError):
        while True:
            question: Question = questions.recv()

            def answer(question: Question = question) -> None:
                answered = directories.answer(question)
                with turn:
                    answers.send(answered)

            threads.run(answer)
    # Hanging threads are abandoned, but keep the process with its open files: a reader of its output would wait for it.
    os.closerange(0, 3)
    os._exit(0)


def _allowed(identity: AppIdentity, allow: Callable[[str], str]) -> AppIdentity:
    try:
        # Again: the policy may have changed while Compose was asked.
        allow(identity.real_directory)
    except RefusalError as error:
        return reason(identity.cd_path, error)
    last = identity.last_project
    if last is not None and _refusal(last, allow) is not None:
        identity = replace(identity, last_project=None)
    refusal = None if identity.project is None else _refusal(identity.project, allow)
    if refusal is None:
        return identity
    return replace(identity, project=None, problem_code=refusal.code, problem=str(refusal), replicas={})


def _refusal(project: Project, allow: Callable[[str], str]) -> RefusalError | None:
    if not PROJECT_NAME.fullmatch(project.name):
        return RefusalError("invalid_request", f"{project.name!a} can't be the name of a Compose project.")
    try:
        allow(project.directory)
    except RefusalError as error:
        return error
    return None


def _stamps(files: Sequence[str]) -> Sequence[Stamp | None]:
    return [stamp(file) for file in files]
