"""Measurements of the benchmarks, and their printed figures."""

from moorage_lab.programs.sshd import PrivateSshd
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, Stack


def tell(figure: str) -> None:
    """Print a result."""
    print(f"\n{figure}")  # noqa: T201 - it is what a benchmark is for


def make_ssh_app(stack: Stack, sshd: PrivateSshd) -> str:
    """Create a server reached over SSH and an app on it; return the app's id."""
    body = {"name": "bare", "address": "127.0.0.1", "sshUser": "op", "sshPort": sshd.port}
    body["sshPrivateKey"] = sshd.key.read_text()
    server_id = stack.api.post("/api/servers", body).expect(201)["id"]
    path = f"/api/servers/{server_id}"
    eventually(lambda: stack.api.get(path).expect(200)["status"] == "online", timeout=30, what="the server online")
    return stack.make_app("over-ssh", SLEEPER, sshd.apps / "over-ssh", serverId=server_id)
