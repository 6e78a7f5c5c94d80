"""One compromised host of each kind: the controller and the other hosts stay responsive.

`MOORAGE_ATTACK_SECONDS` sets a longer duration per attack; `-s` shows the figures.
"""

import http.client
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.engine import Engine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from moorage_lab.waiting import eventually
from siege import SECONDS, Figures, Siege

_MOST_MIB = 100
_MOST_MS = 400
"""Limit of the 99th percentile of reads, on a possibly busy machine; 100 suffices on an idle one."""
_MOST_LATE = 5.0
pytestmark = pytest.mark.timeout(int(SECONDS * 2 + 170))


@pytest.fixture
def siege(tmp_path: Path) -> Iterator[Siege]:
    """Return a controller with an honest host."""
    with Siege(tmp_path) as running:
        yield running


def check(figures: Figures) -> None:
    """Assert that the other hosts were hardly affected."""
    assert figures.grown < _MOST_MIB, str(figures)
    assert figures.p99 < _MOST_MS, str(figures)
    assert max(figures.late, default=0.0) < _MOST_LATE, str(figures)


@pytest.mark.parametrize("mode", ["texts", "items", "flood"])
def test_endless_agent_replies_delay_no_other_host(siege: Siege, mode: str) -> None:
    with siege.measured() as figures:
        server = siege.add_agent(mode)
    check(figures)
    shown = siege.server(server)
    if mode == "items":
        assert shown["status"] == "offline"
        assert "broke a limit of what a host may say" in shown["statusDetail"]
        assert "127.0.0.1:" in shown["statusDetail"]
    else:
        assert shown["agentVersion"] == "1"
        assert shown["uptime"] <= 2**31


def test_endless_output_is_bounded(siege: Siege) -> None:
    with siege.measured() as figures:
        server = siege.add_agent("output")
        siege.wait_online(server)
        app = siege.apps(server)[0]["id"]
        hang_up(siege, f"/api/apps/{app}/stop", "POST")  # continues without its caller
    check(figures)


def test_endless_logs_are_bounded_and_end_with_caller(siege: Siege) -> None:
    with siege.measured() as figures:
        server = siege.add_agent("logs")
        siege.wait_online(server)
        app = siege.apps(server)[0]["id"]
        reply = siege.api.get(f"/api/apps/{app}/logs")
        assert reply.status == 503
        assert reply.json["code"] == "host_said_too_much"
        ended = len(siege.notes("logs"))
        for query in ("", "?follow=true"):
            hang_up(siege, f"/api/apps/{app}/logs{query}")
            eventually(partial(has_ended, siege, ended), timeout=10, what="the host's stream ended")
            ended += 1
    check(figures)


def test_ssh_host_with_endless_output_is_disconnected(siege: Siege) -> None:
    port = free_port()
    with siege.measured() as figures:
        siege.run("sshd", "sshd", {"port": port})
        eventually(lambda: listens(port), timeout=30, what="the sshd")
        body = {"name": "ssh", "address": "127.0.0.1", "sshUser": "op", "sshPort": port, "sshPassword": "x"}
        server = siege.api.post("/api/servers", body).expect(201)["id"]
        eventually(lambda: siege.server(server)["statusDetail"], timeout=30, what="what is wrong with it")
    check(figures)
    shown = siege.server(server)
    assert shown["status"] == "offline"
    assert f"The host at 127.0.0.1, port {port}, broke a limit of what a host may say" in shown["statusDetail"]


@pytest.mark.parametrize("mode", ["body", "bomb", "lines", "events"])
def test_endless_engine_replies_over_ssh_delay_no_other_host(siege: Siege, short_folder: Path, mode: str) -> None:
    folder = short_folder / mode
    folder.mkdir()
    socket = folder / "docker.sock"
    siege.run("engine", "engine", {"socket": str(socket), "mode": mode, "directory": "/srv/shop"})
    eventually(socket.exists, timeout=30, what="the Engine")
    with PrivateSshd(short_folder / f"ssh-{mode}", Engine(f"unix://{socket}"), [LabUser("op")]) as sshd:
        with siege.measured() as figures:
            body = {"name": "ssh", "address": "127.0.0.1", "sshUser": "op", "sshPort": sshd.port}
            server = siege.api.post("/api/servers", {**body, "sshPrivateKey": sshd.key.read_text()}).expect(201)["id"]
            app = siege.add_app(server, "/srv/shop")
            for query in ("", "?follow=true"):
                hang_up(siege, f"/api/apps/{app}/logs{query}")
        check(figures)


def has_ended(siege: Siege, before: int) -> bool:
    """Whether another stream of logs ended on the host."""
    return len(siege.notes("logs")) > before


def hang_up(siege: Siege, path: str, method: str = "GET") -> None:
    """Request an endless reply, read a little of it where possible, and disconnect."""
    connection = http.client.HTTPConnection("127.0.0.1", siege.controller.port, timeout=1)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {siege.api.token}"})
        connection.getresponse().read(1000)
    except TimeoutError:
        pass
    finally:
        connection.close()
