"""The journal on a host without an agent: the same files and supervisor as an agent's, accessed by scripts."""

import asyncio
import json
from collections.abc import Sequence

from moorage_common.journal.files import one_line
from moorage_common.journal.journal import lock_name, supervisor_text
from moorage_common.journal.shell import Look, cancel_call, clean_call, look_call, parse_outputs, read_record, show_call
from moorage_common.journal.types import CancelOutcome, Guard, Order, Record, Refused, check_code
from moorage_common.untrusted import LIMITS, UntrustedError

from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.shell import FramedScript, ScriptError, lost_errors, quote
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError

_LOOK_BYTES = 64 * 1024
_LAUNCH_SECONDS = 60.0
_CLEAN_SECONDS = 120.0
_PATIENCE = 10.0
_PAUSE = 0.1
_KEEP_DAYS = 7


class Journal:
    """The journal of one host, over one connection. Every method raises ContactLostError, HostRefusedError."""

    def __init__(self, link: HostSession) -> None:
        self._link = link
        self._root = link.survey.root
        self._wanted: list[tuple[str, asyncio.Future[Look]]] = []
        self._looker: asyncio.Task[None] | None = None

    @property
    def locks(self) -> str:
        """The folder of the locks on directories and project names."""
        return f"{self._root}/locks"

    async def read(self, operation_id: str) -> Record | None:
        """Return the record of an operation, None if it was never started here."""
        printed = (await self._link.run_in_shell(show_call(self._root, operation_id), limit=LIMITS.record)).output
        try:
            return read_record(operation_id, printed)
        except ValueError:
            raise _broke_off() from None

    async def poll(self, operation_id: str, after: int) -> Look:
        """Return the output from an offset on, 64 KiB at most; concurrent calls share one script."""
        found: asyncio.Future[Look] = asyncio.get_running_loop().create_future()
        self._wanted.append((look_call(self._root, operation_id, max(after, 0), _LOOK_BYTES), found))
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_for_all())
        return await found

    async def launch(self, order: Order, guard: Guard) -> bool:
        """Start the command; return True if the operation already existed. Raises Refused if it is now buried.

        If the connection is lost before `go` was sent, nothing starts; afterwards the operation continues.
        """
        loop = asyncio.get_running_loop()
        patience = loop.time() + _PATIENCE
        while True:
            word = await self._attempt(order, guard)
            if word == "started":
                return False
            record = await self.read(order.operation_id)
            if word in {"busy directory", "busy project", "buried"} and record is not None:
                raise Refused(record.code, record.reason)
            if record is not None:
                return True
            if loop.time() > patience:
                raise HostRefusedError(
                    "journal_unavailable",
                    "Another process on the host is just starting this operation: ask again in a moment.",
                )
            await asyncio.sleep(_PAUSE)

    async def cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Send TERM to the command's process group, and KILL ten seconds later; bury an unknown operation."""
        word = (await self._link.run_in_shell(cancel_call(self._root, operation_id, by))).text.strip()
        if word == "not_allowed":
            raise HostRefusedError(
                "not_cancellable",
                "The command runs by sudo as another user, and can't be stopped from here: wait for its end.",
            )
        if word not in set(CancelOutcome):
            problem = word.removeprefix("failed ") or "The cancellation failed on the host."
            raise HostRefusedError("journal_unavailable", problem)
        return CancelOutcome(word)

    async def clean(self) -> list[str]:
        """Remove the operations that ended more than seven days ago, and return their ids."""
        ran = await self._link.run_in_session(clean_call(self._root, _KEEP_DAYS), seconds=_CLEAN_SECONDS)
        return ran.text.split()

    async def _look_for_all(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, []
                await self._look_for(wanted)
        finally:
            _fail_all(self._wanted, _broke_off())

    async def _look_for(self, wanted: Sequence[tuple[str, asyncio.Future[Look]]]) -> None:
        try:
            most = len(wanted) * (_LOOK_BYTES + LIMITS.word)
            ran = await self._link.run_in_shell("\n".join(call for call, _ in wanted), limit=most)
            looks = parse_outputs(ran.output, len(wanted), _LOOK_BYTES)
            for (_, found), poll in zip(wanted, looks, strict=True):
                if not found.done():
                    found.set_result(poll)
        except ValueError:
            _fail_all(wanted, _broke_off())
        except (ContactLostError, HostRefusedError) as error:
            _fail_all(wanted, error)
        finally:
            # Fail all calls that are still waiting, after any error; finished ones keep their result.
            _fail_all(wanted, _broke_off())

    async def _attempt(self, order: Order, guard: Guard) -> str:
        """Run one supervisor and return its last line: started, held, ended, busy ..., or buried."""
        decision = ""
        try:
            async with asyncio.timeout(_LAUNCH_SECONDS), self._link.sessions.open() as process:
                framed = FramedScript(process, self._link.sessions.pace)
                await framed.begin(self._invocation(order), self._link.sessions.login_shell_seconds)
                word = await framed.line()
                if word == "locked":
                    decision = await _decision(guard)
                    framed.say(decision)
                    word = await framed.line()
        except UntrustedError as error:
            raise self._link.sessions.end(error) from None
        except ScriptError as error:
            if decision == "go":
                raise ContactLostError(f"A shell on the host ended while an operation began: {error}") from None
            raise HostRefusedError(
                "journal_unavailable", f"The operation's supervisor failed on the host: {error.output or 'no word'}."
            ) from None
        except TimeoutError:
            raise ContactLostError(
                f"The journal on the host didn't answer within {_LAUNCH_SECONDS:.0f} seconds: its disk may hang."
            ) from None
        except lost_errors as error:
            raise ContactLostError(f"The SSH connection was lost while the operation was sent: {error}") from None
        if word == "full":
            raise HostRefusedError(
                "journal_full",
                f"The disk of the journal on the host is full: free space under {self._root}.",
            )
        if word.startswith("failed ") or not word:
            raise HostRefusedError(
                "journal_unavailable", word.removeprefix("failed ") or "The supervisor said nothing."
            )
        return word

    def _invocation(self, order: Order) -> str:
        """Return the script that starts a supervisor, which outlives this session, and forwards its output lines.

        `setsid` runs twice: the first ensures that the second one forks. So neither this session nor its shell has a
        child to wait for once the supervisor has closed its output. Unlike `&`, it leaves the handling of INT as it is.
        """
        directory_lock = f"{self.locks}/{lock_name('directory', order.app_directory)}"
        project_lock = "" if order.project is None else f"{self.locks}/{lock_name('project', order.project)}"
        environment = [f"{name}={value}" for name, value in order.environment.items()]
        about = [json.dumps(dict(order.spec)), directory_lock, project_lock, order.directory]
        supervisor = ["/bin/sh", "-c", supervisor_text(), "moorage-supervisor", self._root, order.operation_id]
        words: Sequence[str] = ["setsid", "setsid", "env", "-i", *environment, *supervisor, *about, *order.argv]
        return f"cd /\n{quote(*words)} <&3 3<&- | cat"


def _fail_all(wanted: Sequence[tuple[str, asyncio.Future[Look]]], error: Exception) -> None:
    for _, found in wanted:
        if not found.done():
            found.set_exception(error)


def _broke_off() -> ContactLostError:
    return ContactLostError("The host's shell broke off while it read the journal.")


async def _decision(guard: Guard) -> str:
    refusal = await guard()
    if refusal is None:
        return "go"
    check_code(refusal.code)
    return f"refuse {refusal.code} {one_line(str(refusal))}"
