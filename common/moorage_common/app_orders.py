"""A start or a stop of an app as an order for the journal, whoever brings it to the host."""

from collections.abc import Collection, Mapping, Sequence

from moorage_common.app_identity import AppIdentity
from moorage_common.compose import clean_environment, down_command, start_command, steps_command
from moorage_common.containers import Container
from moorage_common.journal_types import Order
from moorage_common.logging import request_id
from moorage_common.states import OperationKind

Compose = str | Sequence[str]
"""The Compose program, or the argv that it begins with."""


def up_order(
    operation_id: str,
    kind: OperationKind,
    identity: AppIdentity,
    compose: Compose,
    environment: Mapping[str, str],
    before: Sequence[Sequence[str]] = (),
) -> tuple[Order, set[str]]:
    """Return the order of a start or restart, and the project names it works on; `before` are argvs to run first."""
    argv = start_command(compose, kind)
    if before:
        argv = steps_command([*before, argv])
    name = identity.project.name if identity.project else ""
    return _order(operation_id, kind, identity, argv, environment), {name}


def down_order(
    operation_id: str,
    identity: AppIdentity,
    containers: Collection[Container],
    compose: Compose,
    sweep: Sequence[str],
    environment: Mapping[str, str],
) -> tuple[Order, set[str]]:
    """Return the order of a stop, and the project names it works on.

    `down` by the file, then by each other name, then `sweep`; never by a name that others bear.
    """
    names = {c.project for c in containers if identity.owns(c)}
    names |= {p.name for p in (identity.project, identity.last_project) if p is not None}
    safe = sorted(name for name in names if not any(identity.is_foreign(c, name) for c in containers))
    by_file = {identity.project.name} & set(safe) if identity.project is not None else set()
    steps = [down_command(compose) for _ in by_file]
    # Not by the file's own name once more: what its `down` leaves, orphans and all, the sweep takes.
    steps += [down_command(compose, name) for name in safe if name not in by_file]
    steps.append(list(sweep))
    return _order(operation_id, OperationKind.DOWN, identity, steps_command(steps), environment), set(safe)


def _order(
    operation_id: str, kind: OperationKind, identity: AppIdentity, argv: list[str], environment: Mapping[str, str]
) -> Order:
    asked = request_id()
    directory = "/" if identity.is_missing else identity.real_directory
    return Order(
        operation_id=operation_id,
        spec={"kind": kind.value, **identity.to_spec(), **({"request_id": asked} if asked else {})},
        argv=argv,
        environment=clean_environment(directory, environment),
        directory=directory,
        app_directory=identity.real_directory,
        project=identity.named.name if identity.named else None,
    )
