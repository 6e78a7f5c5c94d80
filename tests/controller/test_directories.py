"""What an app's directory says of it: what was seen of another one doesn't count."""

from uuid import UUID

from factories import PATH, World, add_app
from fakes import FakeHost, settle
from moorage_common.states import ContainerState, Project
from moorage_controller.hosts.transport import AppObservation
from moorage_controller.services.observations import Observations
from moorage_controller.services.runs import Rules
from moorage_controller.signals import Signals
from moorage_controller.store import apps
from moorage_controller.store.engine import Database

_WEB = ContainerState(id="a" * 64, name="shop-web-1", service="web", image="sample:1", state="running")


async def test_name_of_the_old_directory_is_forgotten(world: World, host: FakeHost, app_id: str) -> None:
    (await world.user.post(f"/api/apps/{app_id}/start")).expect(200)
    (await world.user.post(f"/api/apps/{app_id}/stop")).expect(200)
    await settle()
    assert (await world.row(app_id)).project_directory == PATH
    (await world.admin.put(f"/api/apps/{app_id}", {"cdPath": "/srv/apps/new"})).expect(200)
    row = await world.row(app_id)
    assert (row.project_name, row.project_directory) == (None, None)
    host.set_running(PATH, ["web"])
    await settle()
    assert (await world.app(app_id))["status"] == "stopped"


async def test_late_look_at_another_directory_or_server_changes_nothing(database: Database) -> None:
    app = await add_app(database, cd_path="/srv/new")
    observations = Observations(database, Signals(), Rules())
    for server_id, path in ((app.server_id, "/srv/old"), (UUID(int=1), "/srv/new")):
        late = AppObservation(path, Project("old", path), (_WEB,), looked_at=1, boot_id="boot")
        await observations.app_seen(app.id, server_id, late)
    async with database.read() as connection:
        assert await apps.get(connection, app.id) == app
