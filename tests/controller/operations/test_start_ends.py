"""Result of a start beyond Compose's exit code, as pure functions: early exits, taken ports."""

import uuid
from dataclasses import replace

import pytest
from factories import PATH, app_row
from moorage_common.docker.states import ContainerState, Project
from moorage_controller.hosts.transport import AppObservation, HostProject
from moorage_controller.services.operations.start_ends import TakenPort, exited_early, taken_port

WEB = ContainerState("1", "shop-web-1", "web", "x", "exited", exit_code=3)
UP = replace(WEB, state="running", exit_code=0, ports=("127.0.0.1:8080->80/tcp",))
SHOP = Project("shop", PATH)


def seen(*containers: ContainerState, **replicas: int) -> AppObservation:
    return AppObservation(PATH, SHOP, containers, replicas=replicas)


@pytest.mark.parametrize(
    ("observed", "failed"),
    [
        (None, False),
        (seen(), False),
        (seen(WEB), True),
        (seen(WEB, web=1), True),
        (seen(replace(WEB, exit_code=0)), False),
        (seen(WEB, replace(UP, id="2")), False),
        (seen(replace(WEB, one_off=True)), False),
        (seen(WEB, other=1), False),
        (seen(WEB, web=0), False),
        (seen(replace(WEB, state="created")), False),
    ],
)
def test_start_with_only_failed_containers_has_failed(observed: AppObservation | None, *, failed: bool) -> None:
    assert exited_early(observed) == ([WEB] if failed else [])


@pytest.mark.parametrize(
    ("said", "port"),
    [
        ("driver failed on endpoint a (1f:2): Bind for 0.0.0.0:8080 failed: port is already allocated", 8080),
        ("Error starting userland proxy: listen tcp4 127.0.0.1:80: bind: address already in use", 80),
        ("Error starting userland proxy: listen tcp6 [::1]:81: bind: address already in use", 81),
        ("failed to bind host port for 0.0.0.0:8080:172.18.0.2:80/tcp: address already in use", 8080),
        ("failed to bind host port 127.0.0.1:8080/tcp: address already in use", 8080),
        ("listen tcp4 0.0.0.0:99999: bind: address already in use", None),
        ("address already in use", None),
        ("no such image 127.0.0.1:5000/x", None),
    ],
)
def test_taken_port_is_parsed_from_engine_error(said: str, port: int | None) -> None:
    assert taken_port(said) == port


def test_holder_of_taken_port_is_named_with_advice() -> None:
    own = app_row(uuid.uuid4(), uuid.uuid4(), project_name="shop", project_directory=PATH)
    other = replace(own, id=uuid.uuid4(), name="Till", cd_path="/srv/till", project_directory=None)
    allocated = TakenPort(8080, "Bind for 0.0.0.0:8080 failed: port is already allocated", own.id, seen(web=1))
    there = [HostProject(Project("till", "/srv/till"), [replace(UP, id="9", name="till-web-1")])]

    def told(taken: TakenPort, projects: list[HostProject]) -> str:
        return taken.sentence(projects, [own, other])

    assert "by the container till-web-1 of the app Till: stop that app, or publish another" in told(allocated, there)
    stranger = [replace(there[0], project=Project("x", "/srv/x"))]
    assert "till-web-1 of the Compose project x in /srv/x, which is no app: stop it" in told(allocated, stranger)
    assert "by another container on the host, of no Compose project" in told(replace(allocated, port=808), there)
    dead = [replace(there[0], containers=[replace(UP, state="exited")])]
    assert "by another container on the host" in told(allocated, dead)
    in_use = replace(allocated, said="listen tcp4 0.0.0.0:8080: bind: address already in use")
    assert "by a process outside Docker" in told(in_use, [])
    mine = [HostProject(SHOP, [UP])]
    assert "shop-web-1 of this app itself" in told(replace(allocated, observed=seen(UP, web=1)), mine)
    gone = replace(allocated, observed=seen(UP, site=1))
    assert "of this app, whose service is no more in its files: restart the app" in told(gone, mine)
