"""Liveness and readiness probes."""

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Reply, ok
from moorage_controller.api.schemas import HealthOut


async def healthz(call: Call) -> Reply:
    """GET /healthz: report that the process is alive."""
    del call
    return ok(HealthOut(status="ok"))


async def readyz(call: Call) -> Reply:
    """GET /readyz: return 200 if the database and background work are available, else 503 with the failing parts."""
    problems = await call.services.health.problems()
    return ok(HealthOut(status="unavailable" if problems else "ok", problems=problems), 503 if problems else 200)
