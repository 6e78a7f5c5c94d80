"""Metrics, over HTTP."""

from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Raw, Reply, ok

_TYPE = "text/plain; version=0.0.4"


async def show_metrics(call: Call) -> Reply:
    """GET /metrics: return metrics for Prometheus, with METRICS_TOKEN as bearer token; 404 if it is not set."""
    scheme, _, token = call.request.headers.get("Authorization", "").partition(" ")
    shown = await call.services.metrics.show(token.strip() if scheme.lower() == "bearer" else "")
    return ok(Raw(shown, _TYPE))
