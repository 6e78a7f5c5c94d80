"""Which containers belong to which app, and which of them a start would leave running beside its own."""

from dataclasses import replace

import pytest
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import (
    CONFIG_FILES,
    DIRECTORY,
    ENVIRONMENT_FILE,
    PROJECT,
    Container,
    of_inspection,
)
from moorage_common.docker.states import ContainerState, Project

_SHOP = Project("shop", "/srv/shop")
_APP = AppIdentity("/srv/shop", "/srv/shop", _SHOP, config_files=("/srv/shop/compose.yaml",))
_STATE = ContainerState(id="a" * 64, name="shop-web-1", service="web", image="x", state="running")
_WEB = Container(_STATE, "shop", "/srv/shop", ("/srv/shop/compose.yaml",))


def _code(app: AppIdentity, container: Container) -> str:
    refused = app.other_files([container])
    return refused.code if refused is not None else ""


@pytest.mark.parametrize(
    "container",
    [
        replace(_WEB, config_files=("/srv/shop/prod.yaml",)),
        replace(_WEB, config_files=("/srv/shop/compose.yaml", "/srv/shop/prod.yaml")),
        replace(_WEB, environment_file="prod.env"),
        replace(_WEB, project="by-hand"),
    ],
)
def test_start_beside_containers_of_other_files_or_names_is_refused(container: Container) -> None:
    assert _code(_APP, container) == "other_files"
    stopped = replace(container, state=replace(_STATE, state="exited"))
    assert _code(_APP, stopped) == "", "nothing runs that a start would leave beside its own"


@pytest.mark.parametrize(
    "container",
    [
        _WEB,
        replace(_WEB, config_files=()),
        replace(_WEB, config_files=("/srv/shop/docker-compose.yml", "/srv/shop/docker-compose.override.yml")),
        replace(_WEB, directory="/srv/other", config_files=("/srv/other/prod.yaml",)),
    ],
)
def test_start_with_same_files_is_accepted(container: Container) -> None:
    assert _code(_APP, container) == ""


def test_app_with_own_files_may_start_beside_others_of_its_project() -> None:
    said = replace(_APP, compose_files=("prod.yaml",), config_files=("/srv/shop/prod.yaml",))
    assert _code(said, _WEB) == ""
    assert _code(said, replace(_WEB, project="by-hand")) == "other_files"


def test_last_project_identifies_app_until_its_containers_are_gone() -> None:
    moved = replace(_APP, real_directory="/srv/new", project=Project("new", "/srv/new"), last_project=_SHOP)
    assert moved.seen_as([_WEB]) == _SHOP
    assert moved.seen_as([]) == moved.project
    assert _APP.seen_as([_WEB]) == _SHOP


def test_config_files_label_is_parsed_and_malformed_label_is_ignored() -> None:
    labels = {PROJECT: "shop", DIRECTORY: "/srv/shop", CONFIG_FILES: "/srv/shop/a.yaml,/srv/b.yaml"}
    about = {
        "Id": "a" * 64,
        "Name": "/shop-web-1",
        "Config": {"Labels": labels | {ENVIRONMENT_FILE: "prod.env"}, "Image": "x"},
        "State": {"Status": "running", "ExitCode": 0, "StartedAt": "0001-", "FinishedAt": "0001-"},
    }
    found = of_inspection(about, str.upper)
    assert found is not None
    assert (found.config_files, found.environment_file) == (("/SRV/SHOP/A.YAML", "/SRV/B.YAML"), "prod.env")
    for odd in ("relative.yaml", "/a\n/b", "/" + "x" * 5000):
        about["Config"] = {"Labels": labels | {CONFIG_FILES: odd}, "Image": "x"}
        other = of_inspection(about, str)
        assert other is not None
        assert other.config_files == ()
