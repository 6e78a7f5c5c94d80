"""Operations on this host: what a start or a stop is, run under the journal, followed and cancelled."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from moorage_common.compose import clean_environment, down_command, start_command, steps_command
from moorage_common.journal import CancelOutcome, Guard, Journal, Launch, Order, Record, Refused, State
from moorage_common.states import OperationKind, Project

from moorage_agent import sweep
from moorage_agent.engine import Engine
from moorage_agent.errors import RefusalError
from moorage_agent.identities import Identities
from moorage_agent.projects import AppIdentity

log = structlog.get_logger(__name__)

_BATCH_BYTES = 256 * 1024
_POLL_SECONDS = 0.1
_KILL_AFTER_SECONDS = 10.0
_TOLD_BY_COMPOSE = frozenset({"", "compose_file_missing", "compose_file_invalid"})
"""A start with one of these runs all the same: Compose says best what is wrong. With any other it is refused."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output from a byte offset on."""

    offset: int
    data: bytes


class ComposeRunner:
    """Runs operations. `environment` is what a clean environment is made from: DOCKER_HOST is in it."""

    def __init__(
        self, journal: Journal, engine: Engine, identities: Identities, compose: str, environment: Mapping[str, str]
    ) -> None:
        self._journal = journal
        self._engine = engine
        self._identities = identities
        self._compose = compose
        self._environment = environment
        self._killers: set[asyncio.Task[None]] = set()

    async def start(self, operation_id: str, kind: OperationKind, cd_path: str, last_project: Project | None) -> bool:
        """Start an operation; True when it was there already, running or ended, and was left alone.

        Raises RefusalError; JournalError; Refused, when it is buried from now on.
        """
        if await asyncio.to_thread(self._journal.read, operation_id) is not None:
            return True
        identity = await self._identities.ask(cd_path, last_project)
        if kind is OperationKind.DOWN:
            order, guard = await self._down(operation_id, identity)
        else:
            order, guard = self._up(operation_id, kind, identity)
        launch = await self._journal.launch(order, guard)
        log.info("operation_launched", operation_id=operation_id, kind=kind.value, outcome=launch.value)
        return launch is not Launch.STARTED

    async def follow(self, operation_id: str, after: int) -> AsyncIterator[Chunk | Record]:
        """Yield output as it comes, then the record of the end. Raises RefusalError for an unknown operation."""
        while True:
            # The record first: when it says ended, the output read after it is the whole of it.
            record = await asyncio.to_thread(self._journal.read, operation_id)
            if record is None:
                raise RefusalError("operation_unknown", "This host's journal has never heard of this operation.")
            # What something left behind prints after the end is not the operation's.
            limit = _BATCH_BYTES if record.state is State.RUNNING else min(_BATCH_BYTES, max(record.length - after, 0))
            data = await asyncio.to_thread(self._journal.read_output, operation_id, after, limit)
            if data:
                yield Chunk(after, data)
                after += len(data)
            elif record.state is State.RUNNING:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                yield record
                return

    async def cancel(self, operation_id: str, by: str) -> CancelOutcome:
        """Send TERM to the command's process group, KILL ten seconds later; bury an operation that never came here.

        Raises RefusalError `not_cancellable` for a stop: the Engine goes on with it.
        """
        record = await asyncio.to_thread(self._journal.read, operation_id)
        if record is not None and record.state is State.RUNNING and record.spec.get("kind") == OperationKind.DOWN:
            raise RefusalError("not_cancellable", "A stop can't be cancelled: the Engine goes on with it.")
        outcome = await asyncio.to_thread(self._journal.cancel, operation_id, by)
        if outcome is CancelOutcome.SIGNALLED:
            self._begin_to_kill(operation_id)
        return outcome

    async def resume_cancels(self) -> None:
        """See the cancels through that an agent before this one began; call it once at the start."""
        for record in await asyncio.to_thread(self._journal.running):
            if record.cancelled_by:
                self._begin_to_kill(record.operation_id)

    def identity_of(self, record: Record) -> AppIdentity | None:
        """Return the app an operation worked on, as it was then; None where its order was never written."""
        spec = record.spec
        if not spec.get("cd_path"):
            return None
        project, last_project = _project(spec.get("project")), _project(spec.get("last_project"))
        return AppIdentity(str(spec["cd_path"]), str(spec["real_directory"]), project, last_project)

    def _up(self, operation_id: str, kind: OperationKind, identity: AppIdentity) -> tuple[Order, Guard]:
        if identity.problem_code not in _TOLD_BY_COMPOSE:
            raise RefusalError(identity.problem_code, identity.problem)
        argv = start_command(self._compose, kind)
        name = identity.project.name if identity.project else ""
        return self._order(operation_id, kind, identity, argv, identity.real_directory), self._guard(identity, {name})

    async def _down(self, operation_id: str, identity: AppIdentity) -> tuple[Order, Guard]:
        """Make a stop: `down` by the file, then by each other name, then the sweep; never by a name others bear."""
        containers = (await asyncio.to_thread(self._engine.containers)).values()
        names = {c.project for c in containers if identity.owns(c)}
        names |= {p.name for p in (identity.project, identity.last_project) if p is not None}
        safe = sorted(name for name in names if not any(identity.is_foreign(c, name) for c in containers))
        by_file = {identity.project.name} & set(safe) if identity.project is not None else set()
        steps = [down_command(self._compose) for _ in by_file]
        # Not by the file's own name once more: what its `down` leaves, orphans and all, the sweep takes.
        steps += [down_command(self._compose, name) for name in safe if name not in by_file]
        steps.append(sweep.command(identity))
        missing = identity.problem_code in {"directory_missing", "not_a_directory"}
        directory = "/" if missing else identity.real_directory
        order = self._order(operation_id, OperationKind.DOWN, identity, steps_command(steps), directory)
        return order, self._guard(identity, set(safe))

    def _order(
        self, operation_id: str, kind: OperationKind, identity: AppIdentity, argv: list[str], directory: str
    ) -> Order:
        spec: dict[str, Any] = {
            "kind": kind.value,
            "cd_path": identity.cd_path,
            "real_directory": identity.real_directory,
            "project": _pair(identity.project),
            "last_project": _pair(identity.last_project),
        }
        return Order(
            operation_id=operation_id,
            spec=spec,
            argv=argv,
            environment=clean_environment(directory, self._environment),
            directory=directory,
            app_directory=identity.real_directory,
            project=identity.named.name if identity.named else None,
        )

    def _guard(self, identity: AppIdentity, names: set[str]) -> Guard:
        """Refuse, under the locks, to work on a project name whose containers belong to another directory."""

        async def guard() -> Refused | None:
            containers = await asyncio.to_thread(self._engine.containers)
            for container in containers.values():
                if any(identity.is_foreign(container, name) for name in names):
                    return Refused(
                        "project_taken",
                        f"The Compose project {container.project} is in use by {container.directory}: stop that app "
                        f"first, or give {identity.real_directory} a `name:` of its own in its compose file.",
                    )
            return None

        return guard

    def _begin_to_kill(self, operation_id: str) -> None:
        task = asyncio.create_task(self._kill_later(operation_id))
        self._killers.add(task)
        task.add_done_callback(self._killers.discard)

    async def _kill_later(self, operation_id: str) -> None:
        await asyncio.sleep(_KILL_AFTER_SECONDS)
        if await asyncio.to_thread(self._journal.kill, operation_id):
            log.warning("operation_killed", operation_id=operation_id)


def _pair(project: Project | None) -> list[str] | None:
    return None if project is None else [project.name, project.directory]


def _project(pair: object) -> Project | None:
    return Project(*pair) if isinstance(pair, list) else None
