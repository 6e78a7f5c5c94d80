"""A start or a stop of an app as an order for the journal, for every transport to the host."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from moorage_common.compose.command import (
    PROJECT_NAME,
    clean_environment,
    down_command,
    start_command,
    steps_command,
    with_files,
)
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import Container
from moorage_common.docker.states import OperationKind
from moorage_common.journal.types import Order
from moorage_common.logging import request_id

Compose = str | Sequence[str]
"""The Compose program, or the beginning of its argv."""


def paused(identity: AppIdentity, containers: Iterable[Container]) -> list[str]:
    """Return the ids of an app's paused containers, to be unpaused before a start: Compose fails on them."""
    return [c.state.id for c in containers if c.state.state == "paused" and not c.state.one_off and identity.owns(c)]


def up_order(
    operation_id: str,
    kind: OperationKind,
    identity: AppIdentity,
    compose: Compose,
    environment: Mapping[str, str],
    before: Sequence[Sequence[str]] = (),
) -> tuple[Order, set[str]]:
    """Return the order of a start or restart, and the project names it affects; `before` are argvs to run first."""
    argv = start_command(with_files(compose, identity.compose_files), kind)
    if before:
        argv = steps_command([*before, argv])
    name = identity.project.name if identity.project else ""
    return _order(operation_id, kind, identity, argv, identity.real_directory, environment), {name}


def down_order(
    operation_id: str,
    identity: AppIdentity,
    containers: Collection[Container],
    compose: Compose | None,
    sweep: Sequence[str],
    environment: Mapping[str, str],
) -> tuple[Order, set[str]]:
    """Return the order of a stop, and the project names it affects.

    It runs in `/` and reads nothing in the app's folder, whose content may have changed: `down` by each name, in the
    order and with the grace periods of the containers' labels, then `sweep`; never by a name that other apps use.
    Without Compose only the sweep runs.
    """
    names = {c.project for c in containers if identity.owns(c)}
    names |= {p.name for p in (identity.project, identity.last_project) if p is not None}
    # Containers whose project name Compose rejects are left to the sweep, which finds them by directory.
    safe = sorted(
        name
        for name in names
        if PROJECT_NAME.fullmatch(name) and not any(identity.is_foreign(c, name) for c in containers)
    )
    steps = [*(down_command(compose, name) for name in safe if compose is not None), list(sweep)]
    argv = steps_command(steps)
    return _order(operation_id, OperationKind.DOWN, identity, argv, "/", environment), set(safe)


def _order(
    operation_id: str,
    kind: OperationKind,
    identity: AppIdentity,
    argv: list[str],
    directory: str,
    environment: Mapping[str, str],
) -> Order:
    asked = request_id()
    return Order(
        operation_id=operation_id,
        spec={"kind": kind.value, **identity.to_spec(), **({"request_id": asked} if asked else {})},
        argv=argv,
        environment=clean_environment(directory, environment),
        directory=directory,
        app_directory=identity.real_directory,
        project=identity.named.name if identity.named else None,
    )
