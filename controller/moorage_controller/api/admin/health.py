"""Is it alive, and can it work."""

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import HealthOut


async def healthz(call: Call) -> Reply:
    """GET /healthz: the process lives."""
    del call
    return ok(HealthOut(status="ok"))


async def readyz(call: Call) -> Reply:
    """GET /readyz: database and background work are well, or 503 and which part isn't."""
    problems = await call.services.health.problems()
    return ok(HealthOut(status="unavailable" if problems else "ok", problems=problems), 503 if problems else 200)
