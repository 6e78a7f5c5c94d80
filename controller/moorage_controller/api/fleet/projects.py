"""Projects over HTTP."""

from moorage_controller.api.convert import given, project_out
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import DeletedOut, ProjectChanges, ProjectIn


async def list_projects(call: Call) -> Reply:
    """GET /api/projects."""
    return ok([project_out(p) for p in await call.services.projects.all()])


async def get_project(call: Call) -> Reply:
    """GET /api/projects/{id}."""
    return ok(project_out(await call.services.projects.get(call.id())))


async def create_project(call: Call) -> Reply:
    """POST /api/projects."""
    body = call.body(ProjectIn)
    once = call.once(project_out)
    return ok(project_out(await call.services.projects.create(body.name, body.description, call.actor, once)), 201)


async def update_project(call: Call) -> Reply:
    """PUT /api/projects/{id}."""
    changes = given(call.body(ProjectChanges), nullable={"description"})
    return ok(project_out(await call.services.projects.update(call.id(), changes, call.actor)))


async def delete_project(call: Call) -> Reply:
    """DELETE /api/projects/{id}."""
    await call.services.projects.delete(call.id(), call.actor)
    return ok(DeletedOut(message="Project deleted"))
