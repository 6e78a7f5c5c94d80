"""Scripts on a host, sent on the standard input of the fixed remote command `/bin/sh`, never as a command line.

No login shell (fish, csh, nologin) parses a script, and no script appears in the host's process list. Values are
inserted into a script only by `quote`. Output of the login shell itself comes before the begin marker and is dropped.
"""

import asyncio
import secrets
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import asyncssh
from moorage_common.untrusted import LIMITS, Pace, UntrustedError, clean_sentence

from moorage_controller.hosts.transport import ContactLostError, said_too_much

SHELL = "/bin/sh"
_PREAMBLE = """\
LC_ALL=C
case $PATH in
*:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin) ;;
*) PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ;;
esac
export LC_ALL PATH
"""
"""Prefix of each script. In a long-lived shell, PATH must not grow until no program can be started."""
_SESSIONS = 8
"""OpenSSH allows 10 by default; the rest is left to interactive users."""
_REFUSED = 5
_ALL_REFUSED = 10
"""The server counts a session for a moment after its close; three seconds of refusals mean a real limit."""
TOO_FEW_SESSIONS = "ssh_sessions_too_few"
NO_SHELL = "no_shell"
LOGIN_SHELL_SLOW = "login_shell_slow"
LOGIN_SHELL_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
WINDOW_BYTES = 256 * 1024
"""Receive window of a channel, in bytes.

Each read takes at least as much: asyncssh reopens a whole window after a partial read, so unread data would pile up.
"""
lost_errors = (asyncssh.Error, OSError)
"""Errors of asyncssh for a broken connection."""

T = TypeVar("T")
Process = asyncssh.SSHClientProcess[bytes]


class ScriptError(Exception):
    """A script did not reach its end on the host; `output` is everything printed instead, cleaned."""

    def __init__(self, output: str) -> None:
        self.output = clean_sentence(output)
        super().__init__(self.output)


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """The output and exit code of a script."""

    code: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as text; bytes that are not UTF-8 survive `quote`."""
        return self.output.decode(errors="surrogateescape")

    @property
    def fields(self) -> list[str]:
        """The output split into its NUL-terminated texts."""
        return self.text.split("\0")[:-1]


def quote(*words: str) -> str:
    """Return words quoted for a shell; any characters except NUL are allowed."""
    return " ".join(shlex.quote(word) for word in words)


class Sessions:
    """The sessions of one connection: queued, within the server's limit."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, login_shell_seconds: float = LOGIN_SHELL_SECONDS
    ) -> None:
        self._connection = connection
        self.login_shell_seconds = login_shell_seconds
        """How long a login shell may take to start `/bin/sh`."""
        # Stored, because a closed connection no longer has it.
        self._place = "{}, port {}".format(*connection.get_extra_info("peername", ("?", "?")))
        self.pace = Pace()
        """Read rate limit of the host, over all sessions."""
        self._limit = _SESSIONS
        self.shrunk: Callable[[], object] = lambda: None
        """Called when the server turns out to allow fewer sessions."""
        self._open = 0
        self._freed = asyncio.Event()

    @property
    def limit(self) -> int:
        """The number of concurrent sessions that the server allows, as far as known."""
        return self._limit

    @property
    def connected(self) -> bool:
        """Whether the connection is not known to be closed."""
        return not self._connection.is_closed()

    @asynccontextmanager
    async def open(self, *, patient: bool = True) -> AsyncIterator[Process]:
        """Open a `/bin/sh` after waiting for a free session; close it at the end. Raises ContactLostError.

        With `patient` false it raises (TOO_FEW_SESSIONS) instead of waiting.
        """
        process = await self._turn(patient=patient)
        try:
            yield process
        finally:
            process.close()
            await self._closed(process)

    async def allows_two(self) -> bool:
        """Test whether the server allows two concurrent sessions. Raises ContactLostError."""
        async with self.open():
            try:
                async with self.open(patient=False):
                    return True
            except ContactLostError as error:
                if error.code == TOO_FEW_SESSIONS:
                    return False
                raise

    def end(self, error: UntrustedError) -> ContactLostError:
        """Abort the connection because the host exceeded a limit; return the error to raise."""
        self._connection.abort()
        return said_too_much(f"The host at {self._place},", error)

    async def _closed(self, session: Process) -> None:
        try:
            # The server counts the session until it is closed.
            async with asyncio.timeout(_CLOSE_SECONDS):
                await session.wait_closed()
        except (TimeoutError, *lost_errors):
            pass
        finally:
            self._leave()

    async def _turn(self, *, patient: bool) -> Process:
        pause, refused = 0.02, 0
        while True:
            while self._open >= self._limit:
                if not patient:
                    raise ContactLostError("The SSH server allows no more sessions at once.", TOO_FEW_SESSIONS)
                self._freed.clear()
                await self._freed.wait()
            self._open += 1
            try:
                opening = self._connection.create_process(SHELL, encoding=None, window=WINDOW_BYTES)
                return await open_or_close(opening, lambda opened: opened.close())
            except asyncssh.ChannelOpenError as error:
                others = self._open - 1
                self._leave()
                if error.code != asyncssh.OPEN_CONNECT_FAILED or self._connection.is_closed():
                    raise _not_opened(error) from None
                # The server may still count sessions that were closed just now; accept a limit only after
                # repeated refusals.
                refused += 1
                if refused >= _REFUSED and others:
                    self._limit, refused = others, 0
                    self.shrunk()
                elif refused >= _ALL_REFUSED:
                    raise ContactLostError(
                        "The SSH server opens no session for commands: raise MaxSessions in its sshd_config.",
                        TOO_FEW_SESSIONS,
                    ) from None
            except BaseException as error:
                self._leave()
                if isinstance(error, lost_errors):
                    raise lost(error) from None
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    def _leave(self) -> None:
        # No await here: a cancelled task must not keep its session, or block the waiting ones.
        self._open -= 1
        self._freed.set()


async def open_or_close(opening: Awaitable[T], close: Callable[[T], object]) -> T:
    """Await an open; on cancellation, close the result once it exists, so that nothing leaks."""
    task = asyncio.ensure_future(opening)

    def done(task: asyncio.Future[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            close(task.result())

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(done)
        raise


async def run_once(
    sessions: Sessions, script: str, *, seconds: float, sent: bytes = b"", limit: int = LIMITS.script
) -> ScriptResult:
    """Run a script in a session of its own; its descriptor 3 reads `sent`, and it may print `limit` bytes.

    Raises ContactLostError, ScriptError. The script may outlive `seconds` on the host: give it a time limit there, too.
    """
    try:
        async with asyncio.timeout(seconds) as within, sessions.open() as process:
            framed = FramedScript(process, sessions.pace)
            within.reschedule(None)
            await framed.begin(script, sessions.login_shell_seconds)
            within.reschedule(asyncio.get_running_loop().time() + seconds)
            if sent:
                process.stdin.write(sent)
            process.stdin.write_eof()
            return await framed.end(limit)
    except ScriptError:
        if sessions.connected:
            raise
        raise ContactLostError("The SSH connection to the host was lost.") from None
    except UntrustedError as error:
        raise sessions.end(error) from None
    except TimeoutError:
        raise ContactLostError(f"The host did not answer a command within {seconds:.0f} seconds.") from None
    except lost_errors as error:
        raise lost(error) from None


class FramedScript:
    """A running script in a session. Two markers separate its output from any other output.

    Every method that reads raises UntrustedError if the host prints more than the limit.
    """

    def __init__(self, process: Process, pace: Pace) -> None:
        self._process = process
        self._pace = pace
        self._mark = secrets.token_hex(8)
        self._read = bytearray()

    async def begin(self, script: str, login_shell_seconds: float | None = None) -> None:
        """Send the script and return once it runs. Raises ScriptError if no shell runs it.

        Raises ContactLostError if a login shell delays it by more than `login_shell_seconds`; None means no limit.
        """
        # One compound command: the shell parses all of it before any part reads from standard input.
        text = (
            f"{{ {_PREAMBLE}printf '\\n%s\\n' 'begin-{self._mark}'\n(\n{script}\n) 3<&0 </dev/null\n"
            f"printf '\\n%s %d\\n' 'end-{self._mark}' \"$?\"\n}}\n"
        )
        with suppress(BrokenPipeError):
            # A login shell that has already ended may have printed the reason.
            self._process.stdin.write(text.encode(errors="surrogateescape"))
        try:
            async with asyncio.timeout(login_shell_seconds):
                await self._until(f"\nbegin-{self._mark}\n".encode(), LIMITS.login_noise)
        except TimeoutError:
            raise ContactLostError(
                f"The login shell took longer than {login_shell_seconds:g} s: look at its start-up files.",
                LOGIN_SHELL_SLOW,
            ) from None

    async def line(self) -> str:
        """Return the script's next line. Raises ScriptError if the output ends early."""
        return (await self._until(b"\n", LIMITS.script_line)).decode(errors="replace")

    def say(self, line: str) -> None:
        """Send a line to the script's descriptor 3."""
        self._process.stdin.write(f"{line}\n".encode())

    def take(self) -> bytes:
        """Return the bytes that were read ahead."""
        taken = bytes(self._read)
        self._read.clear()
        return taken

    async def end(self, limit: int) -> ScriptResult:
        """Return the rest of the output, `limit` bytes at most. Raises ScriptError if it ends early."""
        output = await self._until(f"\nend-{self._mark} ".encode(), limit)
        code = await self._until(b"\n", LIMITS.word)
        return ScriptResult(int(code) if code.isdigit() else 1, output)

    async def _until(self, mark: bytes, limit: int) -> bytes:
        """Return the bytes before a mark, in linear time and memory."""
        looked = 0
        while (found := self._read.find(mark, looked, limit + len(mark))) < 0:
            if len(self._read) >= limit + len(mark):
                raise UntrustedError(f"A command printed more than {limit} bytes where that was the most.")
            looked = max(len(self._read) - len(mark), 0)
            data = await self._process.stdout.read(WINDOW_BYTES)
            if not data:
                said = bytes(self._read) + await self._process.stderr.read(LIMITS.login_noise)
                raise ScriptError(said.decode(errors="replace").strip())
            await self._pace.take(len(data))
            self._read += data
        before = bytes(self._read[:found])
        del self._read[: found + len(mark)]
        return before


class ShellChannel:
    """One long-lived shell on a host for short scripts, run one by one; it ends with its connection."""

    def __init__(self, sessions: Sessions, process: Process, prologue: str) -> None:
        self._sessions = sessions
        self._process = process
        self._prologue = prologue
        self.turn = asyncio.Lock()
        """Held while a script runs."""

    @property
    def ended(self) -> bool:
        """Whether the shell has ended."""
        return self._process.is_closing() or self._process.stdout.at_eof()

    async def run(self, script: str, *, seconds: float, limit: int = LIMITS.script) -> ScriptResult:
        """Run a script. One that takes too long or prints too much closes the shell.

        Raises ContactLostError, ScriptError.
        """
        async with self.turn:
            if self.ended:
                raise ScriptError("it has ended")
            complete = False
            try:
                async with asyncio.timeout(seconds) as within:
                    prologue, self._prologue = self._prologue, ""
                    framed = FramedScript(self._process, self._sessions.pace)
                    if prologue:
                        within.reschedule(None)
                        self._process.stdin.write(prologue.encode())
                        await framed.begin(script, self._sessions.login_shell_seconds)
                        within.reschedule(asyncio.get_running_loop().time() + seconds)
                    else:
                        await framed.begin(script)
                    ran = await framed.end(limit)
                    complete = True
                    return ran
            except UntrustedError as error:
                raise self._sessions.end(error) from None
            except TimeoutError:
                raise ContactLostError(f"The host did not answer within {seconds:.0f} seconds.") from None
            except lost_errors as error:
                if self._sessions.connected:
                    raise ScriptError(str(error)) from None
                raise lost(error) from None
            finally:
                if not complete:
                    # A late answer would be taken for that of the next script.
                    self._process.close()


def _not_opened(error: asyncssh.ChannelOpenError) -> ContactLostError:
    if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
        return ContactLostError(f"The SSH server refuses to run {SHELL}: see what it allows this user.", NO_SHELL)
    return lost(error)


def lost(error: BaseException) -> ContactLostError:
    """Convert an error of the connection into ContactLostError."""
    reason = getattr(error, "reason", "") or str(error) or type(error).__name__
    return ContactLostError(f"The SSH connection to the host was lost: {reason}")
