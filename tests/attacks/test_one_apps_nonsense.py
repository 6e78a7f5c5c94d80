"""An unreadable Compose file affects its own app only, not its host or the other apps."""

import asyncio
import json
import time
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from host_calls import order, watching
from hypothesis import given
from hypothesis import strategies as st
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.apps.policy import write_policy
from moorage_common.compose.output import error_sentence, readable, render
from moorage_common.docker.app_identity import UNREADABLE, AppIdentity, Reading, read_config
from moorage_common.docker.states import Project
from moorage_common.journal.types import Order
from moorage_controller.hosts.transport import AppObservation, HostRefusedError, Snapshot
from moorage_lab.waiting import eventually_async
from real_transports import Way
from running_stack import SLEEPER

_DEEP = f"x-a: {'[' * 1100}{']' * 1100}\n{SLEEPER}"
_MANY = "services:\n" + "".join(f"  {'s' * 60}{n}: {{image: x}}\n" for n in range(400))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_config = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | _json,
        "services": st.dictionaries(
            st.text(max_size=5),
            st.fixed_dictionaries(
                {},
                optional={"scale": _json, "deploy": st.fixed_dictionaries({}, optional={"replicas": _json}) | _json},
            )
            | _json,
            max_size=3,
        )
        | _json,
    },
)


@pytest.mark.parametrize("nonsense", [_DEEP, _MANY], ids=["deep", "many"])
async def test_other_apps_are_observed_started_and_stopped(way: Way, nonsense: str) -> None:
    odd, healthy = way.app(nonsense), way.app(SLEEPER)
    async with asyncio.timeout(90), aclosing(watching(way.transport, str(odd), str(healthy))) as items:
        snapshot = await anext(items)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.host.engine_reachable
        problems = {app.cd_path: app.problem_code for app in snapshot.apps}
        assert problems == {str(odd): UNREADABLE, str(healthy): ""}
        assert (await way.start(healthy)).exit_code == 0
        async for item in items:
            if isinstance(item, AppObservation) and item.cd_path == str(healthy) and item.containers:
                break
        assert (await way.stop(healthy)).exit_code == 0
        async for item in items:
            if isinstance(item, AppObservation) and item.cd_path == str(healthy) and not item.containers:
                break
    with pytest.raises(HostRefusedError) as refused:
        await way.transport.start(order(str(odd)))
    assert refused.value.code == UNREADABLE
    assert str(odd) in refused.value.sentence
    assert (await way.stop(odd)).exit_code == 0


async def test_app_with_broken_compose_file_is_still_stopped(way: Way) -> None:
    directory = way.app(SLEEPER)
    assert (await way.start(directory)).exit_code == 0
    (directory / "compose.yaml").write_text(_DEEP)
    assert (await way.stop(directory)).exit_code == 0
    assert way.states(directory) == {}


@given(_config)
def test_compose_config_is_parsed_or_reported_unreadable(told: object) -> None:
    reading = read_config(json.dumps(told), "/srv/x", ["/srv/x/compose.yaml"])
    assert (reading.project is None) == (reading.problem_code == UNREADABLE)
    _fits_into_an_order(reading)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "null",
        "[]",
        '{"services": {}}',
        '{"name": "x", "services": []}',
        '{"name": ["x"], "services": {}}',
        '{"name": "x", "services": {"web": {"scale": "x"}}}',
        '{"name": "x", "services": {"web": {"scale": 1e999}}}',
        '{"name": "x", "services": {"web": {"scale": NaN}}}',
        f'{{"name": "x", "services": {{"web": {{"scale": {"9" * 5000}}}}}}}',
        '{"name": "x", "services": {"web": {"scale": -1}}}',
        '{"name": "x", "services": {"web": {"deploy": 3}}}',
        '{"name": "x", "services": {"\\ud800": {}}}',
        f'{{"name": "x", "y": {"[" * 100_000}',
    ],
)
def test_malformed_config_is_unreadable(config: str) -> None:
    if config == '{"name": "x", "services": []}':
        assert read_config(config, "/srv/x", []).project == Project("x", "/srv/x")
        return
    assert read_config(config, "/srv/x", ["a"]) == Reading(
        None, ["a"], UNREADABLE, read_config("", "/srv/x", []).problem
    )


@pytest.mark.parametrize("line", ['{"id":' + "[" * 1500, '{"a":' * 2000, "{" + "9" * 5000, '{"id": 1e999, "text": {}}'])
def test_malformed_output_line_is_shown_unchanged(line: str) -> None:
    assert readable(line)
    assert render(f"first\n{line}\nlast").startswith("first\n")
    assert error_sentence(line)


@given(_json)
def test_any_order_spec_is_parsed_or_rejected(told: object) -> None:
    for name in ("cd_path", "real_directory", "project", "last_project", "replicas"):
        spec = {"cd_path": "/srv/x", "real_directory": "/srv/x", name: told}
        identity = AppIdentity.from_spec(spec)
        assert identity is None or identity.cd_path


async def test_read_error_of_one_app_stays_with_that_app(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.toml", [str(tmp_path)])
    program = tmp_path / "compose"
    # It prints a valid configuration for one app, and for the other one with an impossible environment file.
    program.write_text(
        "#!/bin/sh\n"
        'case "$PWD $*" in\n'
        "*bad*environment) printf 'COMPOSE_FILE=a\\0b/c\\n' ;;\n"
        "*environment) ;;\n"
        """*) echo '{"name": "x", "services": {}}' ;;\n"""
        "esac\n"
    )
    program.chmod(0o755)
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compose.yaml").write_text(SLEEPER)
    with closing(DirectoryReader(tmp_path / "policy.toml", str(program), {})) as reader:
        identities = Identities(reader)
        apps = [WatchedApp(str(tmp_path / name), None) for name in ("bad", "good")]

        async def read() -> bool:
            bad, good = await identities.current(apps)
            return bool(bad.problem_code) and good.project is not None

        await eventually_async(read, what="both apps read")
        bad, good = await identities.current(apps)
        assert bad.problem_code == UNREADABLE
        assert good.project == Project("x", str(tmp_path / "good"))


async def test_slow_read_of_one_app_does_not_delay_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage_agent.apps.identities._PATIENCE_SECONDS", 0.3)
    write_policy(tmp_path / "policy.toml", [str(tmp_path)])
    program, slow = tmp_path / "compose", tmp_path / "slow"
    program.write_text(
        "#!/bin/sh\n"
        'case "$PWD" in *bad) while [ -e ../slow ]; do sleep 0.1; done ;; esac\n'
        """case "$*" in *json) echo '{"name": "x", "services": {}}' ;; esac\n"""
    )
    program.chmod(0o755)
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compose.yaml").write_text(SLEEPER)
    with closing(DirectoryReader(tmp_path / "policy.toml", str(program), {})) as reader:
        identities = Identities(reader)
        apps = [WatchedApp(str(tmp_path / name), None) for name in ("bad", "good")]
        assert [app.problem_code for app in await identities.current(apps)] == ["", ""]
        slow.touch()
        for name in ("bad", "good"):
            (tmp_path / name / ".env").write_text("CHANGED=1\n")
        began = time.monotonic()
        for _ in range(3):
            bad, good = await identities.current(apps)
            assert bad.project == Project("x", str(tmp_path / "bad")), "as it was last read"
            assert good.project == Project("x", str(tmp_path / "good"))
        assert time.monotonic() - began < 5
        assert (await identities.for_stop(apps[0])).project == bad.project
        slow.unlink()
        await eventually_async(lambda: not identities._reading, what="the reading's end")


def _fits_into_an_order(reading: Reading) -> None:
    spec = reading.identity("/srv/x", "/srv/x", None).to_spec()
    Order("5b7e2d8c-1f0a-4d44-9a37-0d52a8f0c111", spec, ["true"], {}, "/", "/", None)
