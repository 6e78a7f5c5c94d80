"""Operations through a real agent: started once, followed by offset, cancelled, refused with a sentence."""

import asyncio
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from lone_agent import DOWN, RESTART, UP, Caller, LoneAgent, code_of, entries
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.waiting import eventually_async
from running_stack import IMAGE, SLEEPER

SLOW = f"""\
services:
  db:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sh -c "sleep 5; touch /ready; sleep 1000"
    healthcheck: {{test: ["CMD", "test", "-f", "/ready"], interval: 1s, retries: 60}}
  web:
    image: {IMAGE}
    init: true
    stop_grace_period: 0s
    command: sleep 1000
    depends_on: {{db: {{condition: service_healthy}}}}
"""


async def test_start_restart_and_stop_succeed(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("plain", SLEEPER)
    started = await caller.run(UP, directory)
    assert (started.end.end, started.end.exit_code) == (pb.OPERATION_END_EXITED, 0)
    assert {"id": "Container plain-web-1", "status": "Done", "text": "Started"}.items() <= entries(started.output)[
        -1
    ].items()
    observed = started.end.observed
    assert observed.project == pb.Project(name="plain", directory=str(directory))
    assert [(c.service, c.state) for c in observed.containers] == [("web", "running")]
    first = observed.containers[0].id
    restarted = await caller.run(RESTART, directory)
    assert restarted.end.exit_code == 0
    assert [c.state for c in restarted.end.observed.containers] == ["running"]
    assert restarted.end.observed.containers[0].id != first
    stopped = await caller.run(DOWN, directory)
    assert stopped.end.exit_code == 0
    assert list(stopped.end.observed.containers) == []
    assert stopped.end.observed.looked_at > restarted.end.observed.looked_at > observed.looked_at
    assert agent.containers(directory) == {}


async def test_repeated_operation_id_attaches_and_runs_once(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("once", SLEEPER)
    done = await caller.run(UP, directory)
    created = agent.output_file(done.operation_id).read_bytes()
    await caller.run(DOWN, directory)
    request = pb.StartOperationRequest(operation_id=done.operation_id, kind=UP, app=pb.App(cd_path=str(directory)))
    assert (await caller.stub.StartOperation(request)).attached
    again = await caller.finish(done.operation_id)
    assert (again.raw, again.end.exit_code) == (created, 0)
    assert agent.containers(directory) == {}


async def test_concurrent_callers_start_operation_once(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("race", SLEEPER)
    request = pb.StartOperationRequest(operation_id=str(uuid4()), kind=UP, app=pb.App(cd_path=str(directory)))
    replies = await asyncio.gather(*(caller.stub.StartOperation(request) for _ in range(5)))
    assert [r.attached for r in replies].count(False) == 1
    assert (await caller.finish(request.operation_id)).end.exit_code == 0


async def test_agent_kill_during_start_loses_nothing(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("killed", SLOW)
    operation_id = await caller.start(UP, directory)
    seen = b""

    async def follow_and_kill() -> None:
        nonlocal seen
        async for reply in caller.follow(operation_id):
            seen += reply.output.data
            if b"Waiting" in seen:
                agent.process.kill()

    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await follow_and_kill()
    # No error code: the follower can't know the end, and asks again.
    assert code_of(lost.value) is None
    await asyncio.to_thread(agent.process.start)
    async with agent.called() as anew:
        rest = await anew.finish(operation_id, after=len(seen))
    assert rest.end.exit_code == 0
    assert {c.service: c.state for c in rest.end.observed.containers} == {"db": "running", "web": "running"}
    assert seen + rest.raw == agent.output_file(operation_id).read_bytes()
    assert "Container killed-web-1" in rest.output


async def test_cut_connection_is_resumed_by_offset(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("cut", SLOW)
    operation_id = await caller.start(UP, directory)
    seen = b""
    async with agent.called() as first:
        async for reply in first.follow(operation_id):
            seen += reply.output.data
            break
    assert seen
    rest = await caller.finish(operation_id, after=len(seen))
    whole = await caller.finish(operation_id)
    assert rest.end.exit_code == 0
    assert seen + rest.raw == whole.raw
    # An offset beyond the end yields only the end.
    beyond = await caller.finish(operation_id, after=len(whole.raw))
    assert beyond.raw == b""


async def test_start_cancel_records_requester(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("cancelled", SLOW)
    operation_id = await caller.start(UP, directory)
    await eventually_async(
        lambda: b"Waiting" in agent.output_file(operation_id).read_bytes(), what="db to be waited for"
    )
    assert await caller.cancel(operation_id) == pb.CANCEL_OUTCOME_SIGNALLED
    done = await caller.finish(operation_id)
    assert done.end.end == pb.OPERATION_END_EXITED
    assert done.end.exit_code != 0
    assert done.end.cancelled_by == "tester"
    # Its containers stay, and are reported.
    assert "db" in {c.service for c in done.end.observed.containers}
    assert await caller.cancel(operation_id) == pb.CANCEL_OUTCOME_ALREADY_ENDED


async def test_stop_cannot_be_cancelled(agent: LoneAgent, caller: Caller) -> None:
    stubborn = f"services: {{web: {{image: '{IMAGE}', stop_grace_period: 4s, command: sleep 1000}}}}\n"
    directory = agent.app("stubborn", stubborn)
    await caller.run(UP, directory)
    operation_id = await caller.start(DOWN, directory)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.cancel(operation_id)
    assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "not_cancellable")
    assert (await caller.finish(operation_id)).end.exit_code == 0
    assert agent.containers(directory) == {}


async def test_unknown_operation_is_reported_and_buried_by_cancel(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("buried", SLEEPER)
    operation_id = str(uuid4())
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await caller.finish(operation_id)
    assert (unknown.value.code(), code_of(unknown.value)) == (grpc.StatusCode.NOT_FOUND, "operation_unknown")
    assert await caller.cancel(operation_id) == pb.CANCEL_OUTCOME_BURIED
    request = pb.StartOperationRequest(operation_id=operation_id, kind=UP, app=pb.App(cd_path=str(directory)))
    assert (await caller.stub.StartOperation(request)).attached
    done = await caller.finish(operation_id)
    assert (done.end.end, done.end.code) == (pb.OPERATION_END_BURIED, "cancelled")
    assert "tester" in done.end.reason
    assert agent.containers(directory) == {}


async def test_second_operation_on_one_app_is_busy(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("busy", SLOW)
    first = await caller.start(UP, directory)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.start(DOWN, directory)
    assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "directory_busy")
    assert (await caller.finish(first)).end.exit_code == 0


@pytest.mark.parametrize(
    ("kind", "cd_path", "code", "status"),
    [
        (UP, "{apps}/nothing", "directory_missing", grpc.StatusCode.FAILED_PRECONDITION),
        (RESTART, "{apps}/a-file", "not_a_directory", grpc.StatusCode.FAILED_PRECONDITION),
        (UP, "/etc", "path_not_allowed", grpc.StatusCode.PERMISSION_DENIED),
        (DOWN, "/etc", "path_not_allowed", grpc.StatusCode.PERMISSION_DENIED),
        (UP, "{apps}/../..", "path_not_allowed", grpc.StatusCode.PERMISSION_DENIED),
        (UP, "{apps}-beside", "path_not_allowed", grpc.StatusCode.PERMISSION_DENIED),
        (UP, "{apps}/out", "path_not_allowed", grpc.StatusCode.PERMISSION_DENIED),
        (UP, "apps", "invalid_request", grpc.StatusCode.INVALID_ARGUMENT),
        (UP, "", "invalid_request", grpc.StatusCode.INVALID_ARGUMENT),
        (UP, "{apps}/a\0b", "invalid_request", grpc.StatusCode.INVALID_ARGUMENT),
        (pb.OPERATION_KIND_UNSPECIFIED, "{apps}", "invalid_request", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_refused_operation_leaves_no_journal_entry(
    agent: LoneAgent,
    caller: Caller,
    kind: pb.OperationKind.ValueType,
    cd_path: str,
    code: str,
    status: grpc.StatusCode,
) -> None:
    (agent.apps / "a-file").write_text("")
    if not (agent.apps / "out").is_symlink():
        (agent.apps / "out").symlink_to("/etc")
    operation_id = str(uuid4())
    app = pb.App(cd_path=cd_path.format(apps=agent.apps))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.stub.StartOperation(pb.StartOperationRequest(operation_id=operation_id, kind=kind, app=app))
    assert (refused.value.code(), code_of(refused.value)) == (status, code)
    assert (refused.value.details() or "").endswith((".", "policy.toml."))
    assert not agent.output_file(operation_id).parent.exists()


async def test_invalid_operation_id_is_refused(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("odd-id", SLEEPER)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.start(UP, directory, operation_id="../../etc")
    assert code_of(refused.value) == "invalid_request"


@pytest.mark.parametrize(
    ("name", "compose", "said"),
    [
        ("no-file", None, "no configuration file provided"),
        ("typo", "servces: {}\n", "servces"),
        ("no-image", "services: {a: {image: 'moorage.invalid/not-there:1'}}\n", "moorage.invalid"),
    ],
)
async def test_start_that_fails_shows_compose_error(
    agent: LoneAgent, caller: Caller, name: str, compose: str | None, said: str
) -> None:
    done = await caller.run(UP, agent.app(name, compose))
    assert done.end.end == pb.OPERATION_END_EXITED
    assert done.end.exit_code > 0
    assert said in done.output
    assert done.end.length == len(done.raw)


async def test_one_shot_exit_0_is_reported(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("one-shot", f"{SLEEPER}  migrate: {{image: '{IMAGE}', command: 'true'}}\n")
    assert (await caller.run(UP, directory)).end.exit_code == 0
    async with caller.watch(directory) as watching:
        await watching.until(lambda: watching.states(directory) == {"web": "running", "migrate": "exited"})
        migrate = next(c for c in watching.apps[str(directory)].containers if c.service == "migrate")
        assert (migrate.exit_code, migrate.finished_at.seconds >= migrate.started_at.seconds) == (0, True)
