"""The agent's client of the process that answers questions about apps' directories (directories.py).

One open question of a kind per path: while it isn't answered, the same question isn't sent again.
"""

import asyncio
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from posixpath import normpath
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from moorage_common.compose.command import CLEAN_PATH

from moorage_agent.apps.directories import Answer, Directories, Question
from moorage_agent.errors import DirectoryHangsError

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

_PATHS_SECONDS = 0.5
_START_SECONDS = 20.0
_MOST_PATHS = 10_000
_SHORT = ("real_path", "real_directory", "current", "allowed", "recheck")
"""The kinds that are answered immediately unless the file system hangs."""
_MOST_OPEN = 1024
"""Open questions; each may be a hanging thread."""


@dataclass(eq=False, slots=True)
class _Question:
    number: int
    key: tuple[str, str]
    since: float = field(default_factory=time.monotonic)
    answer: Future[Any] = field(default_factory=Future)

    @property
    def age(self) -> float:
        return time.monotonic() - self.since


class DirectoryReader:
    """Client of the process. `environment` is the source of Compose's clean environment."""

    def __init__(self, policy: Path, compose: str, environment: Mapping[str, str]) -> None:
        given = [word for pair in environment.items() for word in pair]
        self._argv = [*_program(), str(policy), compose, *given]
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._open: dict[tuple[str, str], _Question] = {}
        self._numbers = 0
        self._last: dict[str, str] = {}
        """The last known real paths, by path."""
        self._guessed: dict[str, str] = {}
        """The results of `real_paths` for paths that haven't answered yet."""
        self.guessed_wrong: Callable[[], None] = lambda: None
        """Called, in a thread, when one of these turns out to be wrong."""

    async def ask(
        self,
        method: Callable[Concatenate[Directories, P], T],
        path: str,
        seconds: float,
        /,
        *given: P.args,
        **named: P.kwargs,
    ) -> T:
        """Call a method of Directories about a path. Raises its exceptions; DirectoryHangsError past the time limit.

        A caller whose question is already open waits for that answer, and then asks its own.
        """
        if method.__name__ != Directories.allowed_unresolved.__name__ and self._hangs(path, seconds):
            raise DirectoryHangsError(path)
        while True:
            question, ours = self._begin(method.__name__, path, given, named)
            answer = asyncio.wrap_future(question.answer)
            try:
                done, _ = await asyncio.wait({answer}, timeout=max(seconds - question.age, 0))
            finally:
                answer.cancel()  # given up: else asyncio logs an exception that arrives later
            if not done:
                raise DirectoryHangsError(path)
            if ours:
                answered: T = answer.result()
                return answered
            answer.exception()

    def real_paths(self, paths: Sequence[str]) -> Mapping[str, str]:
        """Resolve the symlinks of paths: blocks for half a second at most, in total.

        A path that doesn't answer gets its last known result, else itself, normalized.
        """
        if not paths:
            return {}
        self.start().ready.wait(_START_SECONDS)
        questions = {path: self._try_to_begin(path) for path in dict.fromkeys(paths)}
        wait_for([q.answer for q in questions.values() if q and q.age < _PATHS_SECONDS], timeout=_PATHS_SECONDS)
        with self._lock:
            for path, question in questions.items():
                if question is not None and question.answer.done() and question.answer.exception() is None:
                    self._last[path] = question.answer.result()
            real = {path: self._last.get(path) or normpath(path) for path in questions}
            if len(self._last) > _MOST_PATHS:
                self._last = dict(real)
            self._guessed |= {path: real[path] for path, q in questions.items() if q and not q.answer.done()}
        return real

    def start(self) -> "_Process":
        """Start the process now, rather than with the first question; return it."""
        with self._lock:
            return self._running()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _hangs(self, path: str, seconds: float) -> bool:
        """Whether another question about the path has been open for that long."""
        with self._lock:
            asked = [self._open.get((kind, path)) for kind in _SHORT]
        return any(question is not None and question.age >= seconds for question in asked)

    def _try_to_begin(self, path: str) -> _Question | None:
        try:
            return self._begin("real_path", path, (path,), {})[0]
        except DirectoryHangsError:
            return None

    def _begin(self, kind: str, path: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[_Question, bool]:
        """Return the open question, and whether this call opened it.

        Raises DirectoryHangsError if too many are open; OSError if the process can't be started.
        """
        with self._lock:
            found = self._open.get((kind, path))
            if found is not None:
                return found, False
            if len(self._open) >= _MOST_OPEN:
                raise DirectoryHangsError(path)
            process = self._running()
            self._numbers += 1
            question = self._open[kind, path] = _Question(self._numbers, (kind, path))
            question.answer.set_running_or_notify_cancel()  # a caller that gives up must not cancel it for others
            process.send(question, Question(question.number, kind, given, named))
        return question, True

    def _running(self) -> "_Process":
        if self._process is None or self._process.ended:
            self._process = _Process(self._argv, self._lock, self._answered)
        return self._process

    def _answered(self, question: _Question, told: object) -> None:
        with self._lock:
            if self._open.get(question.key) is question:
                del self._open[question.key]
            kind, path = question.key
            guess = self._guessed.pop(path, None) if kind == "real_path" else None
        if guess is not None and guess != told:
            self.guessed_wrong()


class _Process:
    """The process, with a dedicated thread for each direction."""

    def __init__(
        self, argv: Sequence[str], lock: threading.Lock, answered: Callable[[_Question, object], None]
    ) -> None:
        self.ended = False
        self._closed = False
        self._lock = lock
        """Held by the sender: every question is sent, and answered, unless the process ended."""
        self.ready = threading.Event()
        self._answered = answered
        self._asked: dict[int, _Question] = {}
        self._messages: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        questions, self._questions = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        self._process = subprocess.Popen(  # noqa: S603 - an argv of our own
            argv,
            stdin=questions.fileno(),
            stdout=answers.fileno(),
            cwd="/",
            env={"PATH": CLEAN_PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        questions.close()
        answers.close()
        threading.Thread(target=self._write, name="directories-write", daemon=True).start()
        threading.Thread(target=self._read, name="directories-read", daemon=True).start()

    def send(self, question: _Question, message: Question) -> None:
        self._asked[question.number] = question
        self._messages.put(message)

    def end(self) -> None:
        self._closed = True
        self._messages.put(None)

    def _write(self) -> None:
        # Where it ended the other thread sees that.
        with suppress(OSError), self._questions:
            while (message := self._messages.get()) is not None:
                self._questions.send(message)

    def _read(self) -> None:
        with suppress(EOFError, OSError), self._answers:
            self._answers.recv()
            self.ready.set()
            while True:
                self._take(self._answers.recv())
        with self._lock:
            self.ended = True
            left = list(self._asked.values())
        self._messages.put(None)  # ends the other thread
        self.ready.set()
        for question in left:
            question.answer.set_exception(DirectoryHangsError(question.key[1]))
            self._answered(question, None)
        code = self._process.wait()
        if not self._closed:
            log.warning("directories_process_ended", code=code, unanswered=len(left))

    def _take(self, answer: Answer) -> None:
        question = self._asked.pop(answer.number)
        if answer.returned:
            question.answer.set_result(answer.value)
        else:
            question.answer.set_exception(answer.value)
        self._answered(question, answer.value)


def _program() -> list[str]:
    # A frozen program is its own interpreter; -I keeps this process's directory out of Python's module path.
    if getattr(sys, "frozen", False):
        return [sys.executable, "directories"]
    return [sys.executable, "-I", "-m", "moorage_agent", "directories"]
