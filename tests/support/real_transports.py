"""A real transport to a real host, with the folder of its apps."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import docker
from host_calls import order, run
from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.transport import End, HostTransport
from moorage_lab.programs.engine import Engine

_DIRECTORY = "com.docker.compose.project.working_dir"


@dataclass(frozen=True)
class Way:
    """A host: its `transport`, the folder `apps` of its apps, and a `process` in its mount namespace."""

    transport: HostTransport
    apps: Path
    engine: Engine
    process: int

    def app(self, compose: str, name: str = "") -> Path:
        """Make an app's directory with a compose file."""
        directory = self.apps / (name or str(uuid4()))
        directory.mkdir()
        (directory / "compose.yaml").write_text(compose)
        return directory

    def states(self, directory: Path) -> dict[str, str]:
        """Query the Engine: the states of a directory's containers, by name."""
        with closing(docker.APIClient(base_url=self.engine.host, version="auto")) as client:
            rows = client.containers(all=True, filters={"label": f"{_DIRECTORY}={directory}"})
        return {row["Names"][0][1:]: row["State"] for row in rows}

    async def start(self, directory: Path) -> End:
        """Start an app, and return the operation's end."""
        return (await run(self.transport, order(str(directory))))[1]

    async def stop(self, directory: Path) -> End:
        """Stop an app, and return the operation's end."""
        return (await run(self.transport, order(str(directory), OperationKind.DOWN)))[1]
