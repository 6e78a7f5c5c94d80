"""One live SSH connection to a host, with its shell, sessions, uploads and streams to the Engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncssh
from moorage_common.docker.engine_http import EngineProblemError, Stream
from moorage_common.journal.shell import journal_text
from moorage_common.untrusted import LIMITS, Pace, UntrustedError

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.ssh import survey as surveys
from moorage_controller.hosts.ssh.directories import Directories
from moorage_controller.hosts.ssh.engine import Engine
from moorage_controller.hosts.ssh.session import upload as uploads
from moorage_controller.hosts.ssh.session.shell import (
    WINDOW_BYTES,
    FramedScript,
    ScriptError,
    ScriptResult,
    Sessions,
    ShellChannel,
    lost,
    lost_errors,
    open_or_close,
    quote,
    run_once,
)
from moorage_controller.hosts.ssh.session.upload import Progress
from moorage_controller.hosts.ssh.survey import HostFacts, read_room
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError

_SURVEY_SECONDS = 30.0
_QUICK_SECONDS = 20.0
_ANSWER_SECONDS = 5.0
_DOUBT_SECONDS = 10.0
_CLOSE_SECONDS = 3.0
_FORWARD_SECONDS = 10.0
_ROOM_SECONDS = 8.0
"""Cache lifetime of the check for free disk space."""


class HostSession:
    """An SSH connection and the survey of its host."""

    def __init__(self, connection: asyncssh.SSHClientConnection, sessions: Sessions, survey: HostFacts) -> None:
        self.survey = survey
        self.connection = connection
        self.sessions = sessions
        self.sessions.shrunk = self._make_room
        self.directories = Directories(self.run_in_shell, self.run_in_session)
        self.engine = Engine(self._dial, self.directories.real_paths)
        self._opened = time.monotonic()
        self._line: ShellChannel | None = None
        self._line_turn = asyncio.Lock()
        self._leave_line = asyncio.Event()
        self._line_task: asyncio.Task[None] | None = None
        self._stale = False
        self._forwards: bool | None = None
        """Whether the server forwards connections to the Engine's socket; None until known."""
        self._room, self._room_asked = "", -_ROOM_SECONDS

    @classmethod
    async def open(
        cls, connection: asyncssh.SSHClientConnection, username: str, journal: str, login_shell_seconds: float
    ) -> "HostSession":
        """Survey the host and open a session on it; `journal` as in SshTarget. Raises HostUnreachableError."""
        sessions = Sessions(connection, login_shell_seconds)
        survey = f"journal={quote(journal)}\n{surveys.script('survey.sh')}"
        try:
            ran = await run_once(sessions, survey, seconds=_SURVEY_SECONDS)
            link = cls(connection, sessions, surveys.read(ran, username))
            await link.check_ways()
        except ScriptError as error:
            raise surveys.no_shell(error, username) from None
        except ContactLostError as error:
            raise HostUnreachableError(str(error), error.code) from None
        return link

    async def check_ways(self) -> None:
        """Check that the Engine's event stream leaves a session for other work. Raises HostUnreachableError."""
        if self.survey.engine_problem:
            return
        if self.survey.socket:
            with suppress(EngineProblemError):
                forwarded = await self._forward()
                if forwarded is not None:
                    forwarded[1].channel.abort()
                    self._forwards, self._stale = True, False
                    return
        if not await self.sessions.allows_two():
            asked = f"timeout 10 {self._docker} version >/dev/null 2>&1"
            if (await run_once(self.sessions, asked, seconds=_QUICK_SECONDS)).code == 0:
                raise surveys.too_few_sessions()
            # The same refusal occurs if the Engine is unavailable; a later request to the Engine reports that.

    @property
    def needs_reprobe(self) -> bool:
        """Whether the survey found a problem that may be fixed by now; a new login repeats the survey."""
        return bool(self.survey.problem) and time.monotonic() - self._opened > _DOUBT_SECONDS

    @property
    def alive(self) -> bool:
        """Whether the connection is not known to be closed."""
        return not self.connection.is_closed()

    async def answers(self) -> None:
        """Check that the host answers. Raises ContactLostError."""
        await self.run_in_shell(":", seconds=_ANSWER_SECONDS)

    async def close(self) -> None:
        """Close the connection; calls over it end as lost contact."""
        if self._line_task is not None:
            self._leave_line.set()
        self.connection.close()
        with suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.connection.wait_closed()
        self.connection.abort()
        if self._line_task is not None:
            await asyncio.gather(self._line_task, return_exceptions=True)

    async def run_in_shell(
        self, call: str, *, seconds: float = _QUICK_SECONDS, limit: int = LIMITS.script
    ) -> ScriptResult:
        """Run a short script with the functions of remote.sh and of the journal; it may print `limit` bytes.

        It runs in the one long-lived shell, or in a session of its own if the Engine's events or the server's session
        limit leave none for the shell. Raises ContactLostError, HostRefusedError.
        """
        for last in (False, True):
            try:
                async with asyncio.timeout(seconds):
                    line = await self._get_line()
            except TimeoutError:
                raise ContactLostError(f"The host opened no session within {seconds:.0f} seconds.") from None
            try:
                if line is not None:
                    return await line.run(call, seconds=seconds, limit=limit)
                return await run_once(self.sessions, f"{_functions()}\n{call}", seconds=seconds, limit=limit)
            except ScriptError as error:
                # The SSH server may close an idle session; short scripts are safe to run twice.
                if last or line is None or not self.alive:
                    raise ContactLostError(f"A shell on the host ended before its time: {error}") from None
        raise AssertionError("the last attempt returns or raises")

    async def run_in_session(
        self, script: str, *, seconds: float, sent: bytes = b"", limit: int = LIMITS.script
    ) -> ScriptResult:
        """Run a script in a session of its own; it may print `limit` bytes. Raises ContactLostError."""
        try:
            return await run_once(self.sessions, f"{_functions()}\n{script}", seconds=seconds, sent=sent, limit=limit)
        except ScriptError as error:
            raise ContactLostError(f"A shell on the host ended before its time: {error}") from None

    async def upload(
        self, content: bytes, digest: str, path: str, *, mode: str = "600", progress: Progress | None = None
    ) -> None:
        """Create a file with that content (`digest`: SHA-256, hex) on the host.

        An upload after lost contact resumes from the part that arrived. Raises UploadFailedError, ContactLostError.
        """
        call = quote("mo_receive", path, str(len(content)), digest, mode)
        await uploads.send(self.sessions, f"{_functions()}\n{call}", content, progress)

    async def disk_problem(self) -> str:
        """Return one sentence if the host's disk is not writable or nearly full. Raises ContactLostError."""
        if time.monotonic() - self._room_asked > _ROOM_SECONDS:
            self._room = read_room((await self.run_in_shell(f"mo_room {quote(self.survey.root)}")).fields, self.survey)
            self._room_asked = time.monotonic()
        return self._room

    async def _get_line(self) -> ShellChannel | None:
        if not self._uses_line:
            self._leave_line.set()
            return None
        async with self._line_turn:
            if self._line is None or self._line.ended or self._leave_line.is_set():
                self._leave_line = asyncio.Event()
                opened: asyncio.Future[ShellChannel] = asyncio.get_running_loop().create_future()
                self._line_task = asyncio.create_task(self._keep_line(opened, self._leave_line))
                self._line = await opened
            return self._line

    def _make_room(self) -> None:
        """Close the long-lived shell if the server allows one session only."""
        if self.sessions.limit == 1:
            self._leave_line.set()

    @property
    def _uses_line(self) -> bool:
        return not self._stale and bool(self.survey.socket) and self.sessions.limit > 1

    async def _keep_line(self, opened: asyncio.Future[ShellChannel], leave: asyncio.Event) -> None:
        """Hold the session open in a task of its own, because the task that requested it may be cancelled."""
        try:
            async with self.sessions.open() as process:
                if opened.cancelled():
                    return
                line = ShellChannel(self.sessions, process, f"exec 2>/dev/null\n{_functions()}\n")
                opened.set_result(line)
                ended = asyncio.create_task(process.wait_closed())
                left = asyncio.create_task(leave.wait())
                try:
                    await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
                    async with line.turn:
                        pass  # wait for a running script
                finally:
                    ended.cancel()
                    left.cancel()
                    await asyncio.gather(ended, left, return_exceptions=True)
        except ContactLostError as error:
            if not opened.done():
                opened.set_exception(error)
        finally:
            # The waiting task gets a result after any failure.
            if not opened.done():
                opened.set_exception(ContactLostError("The SSH session was closed before it could be used."))

    @asynccontextmanager
    async def _dial(self) -> AsyncIterator[Stream]:
        """Open a stream to the Engine; connection errors during its use become ContactLostError."""
        if self.survey.engine_problem:
            raise EngineProblemError(self.survey.engine_problem)
        try:
            async with self._stream() as stream:
                yield stream
        except UntrustedError as error:
            raise self.sessions.end(error) from None
        except lost_errors as error:
            raise lost(error) from None

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[Stream]:
        """Forward the Engine's socket (needs no session), else run `docker system dial-stdio` in a session."""
        if self.survey.socket and self._forwards is not False:
            forwarded = await self._forward()
            if forwarded is not None:
                self._forwards, self._stale = True, False
                reader, writer = forwarded
                try:
                    yield _Forwarded(reader, writer, self.sessions.pace)
                finally:
                    writer.channel.abort()
                return
        async with self._dial_stdio() as stream:
            yield stream

    async def _forward(self) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]] | None:
        try:
            async with asyncio.timeout(_FORWARD_SECONDS):
                opening = self.connection.open_unix_connection(self.survey.socket, encoding=None, window=WINDOW_BYTES)
                return await open_or_close(opening, lambda opened: opened[1].channel.abort())
        except TimeoutError:
            raise EngineProblemError(
                f"The host opened no way to {self.survey.socket} within {_FORWARD_SECONDS:.0f} seconds: see how it is."
            ) from None
        except asyncssh.ChannelOpenError as error:
            if self.connection.is_closed():
                raise lost(error) from None
            if self._forwards:
                raise EngineProblemError(
                    f"The Docker Engine at {self.survey.socket} doesn't answer: see on the host that it runs."
                ) from None
            # OpenSSH returns the same error for forbidden forwarding and for a missing Engine. The Engine uses
            # sessions from now on.
            self._leave_line.set()
            self._stale = True
            return None

    @asynccontextmanager
    async def _dial_stdio(self) -> AsyncIterator[Stream]:
        command = f"exec {self._docker} system dial-stdio <&3"
        async with self.sessions.open() as process:
            framed = FramedScript(process, self.sessions.pace)
            try:
                await framed.begin(command, self.sessions.login_shell_seconds)
            except ScriptError as error:
                raise ContactLostError(f"A shell on the host ended before its time: {error}") from None
            yield _Stdio(framed, process, self.sessions.pace, self._stdio_answered)

    @property
    def _docker(self) -> str:
        return quote(
            "env", *(f"{name}={value}" for name, value in self.survey.environment.items()), *self.survey.docker
        )

    def _stdio_answered(self) -> None:
        """Record that the Engine answers, so the server must have refused the forwarding."""
        self._forwards = False
        self.engine.streams = 1


class _Forwarded:
    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], pace: Pace) -> None:
        self._reader = reader
        self._writer = writer
        self._pace = pace

    async def read(self, limit: int) -> bytes:
        data = await self._reader.read(max(limit, WINDOW_BYTES))
        await self._pace.take(len(data))
        return data

    def write(self, data: bytes) -> None:
        self._writer.write(data)


class _Stdio:
    def __init__(
        self,
        framed: FramedScript,
        process: asyncssh.SSHClientProcess[bytes],
        pace: Pace,
        answered: Callable[[], None],
    ) -> None:
        self._framed = framed
        self._process = process
        self._pace = pace
        self._answered = answered

    async def read(self, limit: int) -> bytes:
        data = self._framed.take() or await self._process.stdout.read(max(limit, WINDOW_BYTES))
        await self._pace.take(len(data))
        if data:
            self._answered()
        return data

    def write(self, data: bytes) -> None:
        self._process.stdin.write(data)


def _functions() -> str:
    return f"{surveys.script('remote.sh')}\n{journal_text()}"


def refusal(problem: str) -> HostRefusedError:
    """Return the error for an operation that this host can't run."""
    return HostRefusedError("journal_full" if "disk" in problem else "journal_unavailable", problem)
