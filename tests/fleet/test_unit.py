"""The agent as a systemd service: operations outlive it, the watchdog ends a hang, a reboot restores it."""

import pytest
from fleet_controller import Desk
from moorage_lab.hosts.host import Fleet, Host
from moorage_lab.waiting import eventually
from running_stack import IMAGE, SLOW

pytestmark = pytest.mark.timeout(600)

RESTARTED = f"""\
services:
  web: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, restart: always, command: sleep 1000}}
"""


@pytest.fixture(scope="module")
def joined(desk: Desk, fleet: Fleet) -> tuple[Host, str]:
    """Return a host with an agent, and its server's id."""
    return desk.member(fleet)


def main_pid(host: Host) -> str:
    return host.run("systemctl", "show", "--property", "MainPID", "--value", "moorage-agent").strip()


def test_operation_outlives_the_service(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    app_id = desk.add_app(host, server_id, "outlives", SLOW)
    start = desk.api.post(f"/api/apps/{app_id}/start", headers={"Prefer": "respond-async"}).expect(202)["id"]
    scope = f"moorage-op-{start}.scope"
    eventually(lambda: scope in host.run("systemctl", "list-units", "--no-legend"), what="its scope")
    before = main_pid(host)
    host.run("systemctl", "kill", "-s", "KILL", "moorage-agent")
    eventually(lambda: main_pid(host) not in {before, "0"}, timeout=30, what="the service again")
    assert scope in host.run("systemctl", "list-units", "--no-legend")
    host.run("systemctl", "restart", "moorage-agent")
    assert scope in host.run("systemctl", "list-units", "--no-legend")
    ended = desk.wait_operation(start)
    assert (ended["state"], ended["exitCode"]) == ("succeeded", 0)
    desk.wait_app(app_id, status="running", health="healthy")
    desk.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert host.run("docker", "ps", "--quiet") == ""


def test_hung_service_is_restarted(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    host.write("/etc/systemd/system/moorage-agent.service.d/quick.conf", "[Service]\nWatchdogSec=3\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "moorage-agent")
    before = main_pid(host)
    host.run("kill", "-STOP", before)
    eventually(lambda: main_pid(host) not in {before, "0"}, timeout=60, what="another process")
    assert "watchdog" in host.run("journalctl", "--unit", "moorage-agent", "--no-pager", "--output", "cat").lower()
    host.run("rm", "-r", "/etc/systemd/system/moorage-agent.service.d")
    host.run("systemctl", "daemon-reload")
    desk.wait_server(server_id, status="online", connection="agent")


def test_reboot_restores_agent_and_keeps_deadline(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    app_id = desk.add_app(host, server_id, "rebooted", RESTARTED)
    started = desk.api.post(f"/api/apps/{app_id}/start", {"timeout": 30}).expect(200)
    host.reboot()
    desk.wait_server(server_id, status="online", connection="agent")
    shown = desk.wait_app(app_id, status="running", health="healthy")
    assert shown["stopAt"] == started["stopAt"]
    assert len(host.run("docker", "ps", "--quiet").split()) == 1
    desk.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_directory_outside_the_policy_is_refused_and_audited(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    host.write("/opt/elsewhere/compose.yaml", RESTARTED)
    body = {"name": "elsewhere", "projectId": desk.project_id, "serverId": server_id, "cdPath": "/opt/elsewhere"}
    app_id = desk.api.post("/api/apps", body).expect(201)["id"]
    refused = desk.api.post(f"/api/apps/{app_id}/start")
    assert (refused.status, refused.json["code"]) == (403, "path_not_allowed")
    assert "/etc/moorage-agent/policy.toml" in refused.json["detail"]
    entry = desk.api.get("/api/audit-logs?action=START&limit=1").expect(200)["logs"][0]
    assert entry["resourceId"] == app_id
    # A change of the policy takes effect immediately.
    host.write("/etc/moorage-agent/policy.toml", 'allowed_roots = ["/srv", "/opt/elsewhere"]\n')
    desk.api.post(f"/api/apps/{app_id}/start").expect(200)
    desk.api.post(f"/api/apps/{app_id}/stop").expect(200)


def test_host_that_lost_its_certificate_is_repaired_by_one_call(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    before = host.run("moorage-agent", "status").splitlines()[0]
    host.run("rm", "/var/lib/moorage/pki/agent.pem")
    host.run("sh", "-c", "systemctl restart moorage-agent || true")
    shown = desk.wait_server(server_id, status="online", connection="ssh")
    assert "Until it answers, the host is reached by SSH." in shown["statusDetail"]
    desk.install(server_id)
    desk.wait_server(server_id, status="online", connection="agent", statusDetail=None)
    assert host.run("moorage-agent", "status").splitlines()[0] != before, "the old name opens nothing any more"


def test_registry_login_of_root_is_used(desk: Desk, joined: tuple[Host, str]) -> None:
    host, server_id = joined
    host.write("/root/.docker/config.json", '{"auths": "no object"}\n')
    app_id = desk.add_app(host, server_id, "logged-in", RESTARTED)
    refused = desk.api.post(f"/api/apps/{app_id}/start")
    host.run("rm", "-r", "/root/.docker")
    # Compose reads it, and reports a broken one.
    assert "/root/.docker" in str(refused.json)


def test_service_exposure_is_low(joined: tuple[Host, str]) -> None:
    host, _ = joined
    last = host.run("systemd-analyze", "security", "--no-pager", "moorage-agent").splitlines()[-1]
    exposure = float(last.partition(": ")[2].split()[0])
    assert exposure < 4, last
    key = host.run("stat", "--format", "%a %U", "/var/lib/moorage/pki/agent.pem").split()
    assert key == ["600", "root"]
