"""A bare Docker host becomes a member by one call, and leaves by another."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest
from fleet_controller import BROKEN, OLD, Desk, files_of
from moorage_lab.hosts.host import Fleet, Host
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, SLOW

pytestmark = pytest.mark.timeout(600)

CHANGING = ("/var/cache",)
"""Paths that change by themselves."""


def test_five_hosts_are_installed_concurrently(desk: Desk, fleet: Fleet) -> None:
    hosts = fleet.add(5)
    users = ["root", "admin", "root", "admin", "root"]
    servers = [desk.add_server(host, user) for host, user in zip(hosts, users, strict=True)]
    with ThreadPoolExecutor(5) as pool:
        ended = list(pool.map(desk.install, servers))
    assert [operation["state"] for operation in ended] == ["succeeded"] * 5
    for host, server_id in zip(hosts, servers, strict=True):
        shown = desk.wait_server(server_id, status="online", connection="agent", statusDetail=None)
        assert shown["agentVersion"].startswith(f"{version('moorage-agent')}-")
        assert shown["apiEndpoint"] == f"{host.address}:7443"
        assert "running" in host.run("systemctl", "is-system-running")
    names = {host.run("moorage-agent", "status").splitlines()[0] for host in hosts}
    assert len(names) == 5, "each has a name of its own"
    entries = desk.api.get("/api/audit-logs?action=AGENT_INSTALL&limit=100").expect(200)["logs"]
    assert {entry["resourceId"] for entry in entries} >= set(servers)
    # The repeated call changes nothing, and reports that.
    again = desk.install(servers[1])
    assert "is enrolled as" in again["output"]
    assert hosts[1].run("moorage-agent", "status").splitlines()[0] in names
    for host in hosts:
        host.remove()


def test_user_without_root_is_reported_and_server_stays_on_ssh(desk: Desk, fleet: Fleet) -> None:
    host = fleet.add()[0]
    server_id = desk.add_server(host, "ops")
    before = files_of(host)
    refused = desk.api.post(f"/api/servers/{server_id}/agent")
    assert (refused.status, refused.json["code"]) == (502, "root_needed")
    assert "check system" in refused.json["detail"]
    assert "sudo -n" in refused.json["detail"]
    assert {path for path in files_of(host) - before if not path.startswith("/home/ops")} == set()
    desk.wait_server(server_id, status="online", connection="ssh")
    app_id = desk.add_app(host, server_id, "plain", SLEEPER)
    desk.api.post(f"/api/apps/{app_id}/start").expect(200)
    desk.api.post(f"/api/apps/{app_id}/stop").expect(200)
    host.remove()


def test_upgrade_keeps_apps_running_and_broken_one_rolls_back(desk: Desk, fleet: Fleet) -> None:
    old = desk.use(OLD)
    host, server_id = desk.member(fleet, "admin")
    assert desk.server(server_id)["agentVersion"] == old
    kept = desk.add_app(host, server_id, "kept", SLEEPER)
    desk.api.post(f"/api/apps/{kept}/start").expect(200)
    container = host.run("docker", "ps", "--quiet", "--no-trunc")
    slow = desk.add_app(host, server_id, "slow", SLOW)
    start = desk.api.post(f"/api/apps/{slow}/start", headers={"Prefer": "respond-async"}).expect(202)["id"]
    eventually(lambda: "moorage-op-" in host.run("systemctl", "list-units", "--no-legend"), what="its scope")
    new = desk.use(version("moorage-agent"))
    desk.install(server_id)
    assert desk.server(server_id)["agentVersion"] == new
    ended = desk.wait_operation(start)
    assert (ended["state"], ended["exitCode"]) == ("succeeded", 0)
    assert container.strip() in host.run("docker", "ps", "--quiet", "--no-trunc")
    # A build that doesn't start is rolled back, and the previous one serves again.
    desk.use_broken(new)
    failed = desk.api.post(f"/api/servers/{server_id}/agent")
    assert (failed.status, failed.json["code"]) == (502, "install_failed")
    assert f"{new} runs again." in failed.json["detail"]
    assert "'start'" in failed.json["detail"]
    desk.wait_server(server_id, status="online", connection="agent", agentVersion=new)
    assert host.run("readlink", "/opt/moorage-agent/current").strip() == new
    desk.use(version("moorage-agent"))
    desk.install(server_id)
    assert not host.succeeds("test", "-e", f"/opt/moorage-agent/{BROKEN}"), "nobody goes back to it"
    assert container.strip() in host.run("docker", "ps", "--quiet", "--no-trunc")
    host.remove()


def test_agent_removal_leaves_nothing(desk: Desk, fleet: Fleet) -> None:
    host = fleet.add()[0]
    server_id = desk.add_server(host)
    before = files_of(host)
    new = desk.use(version("moorage-agent"))
    # A broken build on a bare host leaves it bare.
    desk.use_broken(new)
    failed = desk.api.post(f"/api/servers/{server_id}/agent")
    assert failed.json["code"] == "agent_broken", failed.json
    assert "as it was before" in failed.json["detail"]
    assert left_of(files_of(host), before) == set()
    assert desk.server(server_id)["connection"] == "ssh"
    desk.use(version("moorage-agent"))
    desk.install(server_id)
    done = desk.api.delete(f"/api/servers/{server_id}/agent").expect(200)
    assert done["kind"] == "agent_uninstall"
    assert left_of(files_of(host), before) == set()
    desk.wait_server(server_id, status="online", connection="ssh", agentVersion=None, apiEndpoint=None)
    host.remove()


def test_installation_completes_after_power_cut_and_second_call(desk: Desk, fleet: Fleet) -> None:
    host, server_id, operation = half_installed(desk, fleet)
    host.power_off()
    ended = desk.wait_operation(operation)
    assert ended["state"] == "failed"
    assert "call again" in ended["error"]
    host.power_on()
    assert desk.install(server_id)["state"] == "succeeded"
    assert not host.succeeds("test", "-e", "/opt/moorage-agent/.fresh")
    desk.wait_server(server_id, status="online", connection="agent")
    host.remove()


def test_next_controller_continues_installation(desk: Desk, fleet: Fleet) -> None:
    host, server_id, operation = half_installed(desk, fleet)
    desk.controller.kill()
    desk.controller.start()
    assert desk.wait_operation(operation)["state"] == "succeeded"
    desk.wait_server(server_id, status="online", connection="agent")
    # The name of an unreachable host can still be removed.
    host.power_off()
    refused = desk.api.delete(f"/api/servers/{server_id}/agent")
    assert refused.status == 503, refused.json
    desk.api.delete(f"/api/servers/{server_id}/agent?force=true").expect(200)
    assert desk.server(server_id)["agentVersion"] is None
    host.remove()


def half_installed(desk: Desk, fleet: Fleet) -> tuple[Host, str, str]:
    """Return a host in the middle of an installation, its server's id and the operation's."""
    host = fleet.add()[0]
    server_id = desk.add_server(host)
    desk.use(version("moorage-agent"))
    operation = desk.begin_install(server_id)
    shown = f"/api/operations/{operation}"
    eventually(lambda: "[upload]" in desk.api.get(shown).json["output"], timeout=60, what="a step while it runs")
    eventually(lambda: host.succeeds("test", "-e", "/opt/moorage-agent/.fresh"), timeout=60, what="its beginning")
    return host, server_id, operation


def left_of(now: set[str], before: set[str]) -> set[str]:
    """Return the added and the removed entries."""
    return {path for path in now ^ before if not path.startswith(CHANGING)}
