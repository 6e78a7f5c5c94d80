"""The agent's files and its environment variables."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from moorage_common.files import write_atomic

from moorage_agent.errors import SetupError

DEFAULT_DATA_DIR = Path("/var/lib/moorage")
DEFAULT_POLICY = Path("/etc/moorage-agent/policy.toml")
DEFAULT_LISTEN = "0.0.0.0:7443"
DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Membership:
    """The stored result of enrolment: addresses as HOST:PORT, the controller's URL, this agent's name."""

    listen: str
    advertise: str
    controller: str
    agent_name: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths below the data folder, and the environment's settings for Docker, Compose and the policy."""

    data_dir: Path
    docker_host: str
    log_level: str
    policy_file: Path

    @classmethod
    def load(cls, data_dir: Path) -> "Settings":
        """Read the environment: DOCKER_HOST, LOG_LEVEL, MOORAGE_AGENT_POLICY. Raises SetupError."""
        level = os.environ.get("LOG_LEVEL", "info").lower()
        if level not in LOG_LEVELS:
            raise SetupError(f"LOG_LEVEL is {level!r}: set it to one of {', '.join(LOG_LEVELS)}.")
        docker_host = os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST
        if not docker_host.startswith("unix://"):
            raise SetupError(
                f"DOCKER_HOST is {docker_host!r}: the agent needs the Engine of its own host, unix://PATH."
            )
        # An installed agent has its policy where an admin expects it; a custom data folder contains it.
        beside = DEFAULT_POLICY if data_dir == DEFAULT_DATA_DIR else data_dir / "policy.toml"
        policy = Path(os.environ.get("MOORAGE_AGENT_POLICY") or beside)
        return cls(data_dir.absolute(), docker_host, level, policy)

    @property
    def docker_socket(self) -> Path:
        """The Engine's socket."""
        return Path(self.docker_host.removeprefix("unix://"))

    @property
    def identity_file(self) -> Path:
        """The agent's private key, then its certificate (PEM, 0600); the key never leaves the host."""
        return self.data_dir / "pki" / "agent.pem"

    def pending_key_file(self, purpose: str) -> Path:
        """Return the file of the pending key of a certificate request (PEM, 0600)."""
        return self.data_dir / "pki" / f"pending-{purpose}.key"

    @property
    def ca_file(self) -> Path:
        """The certificate of the controller's authority (PEM)."""
        return self.data_dir / "pki" / "ca.crt"

    @property
    def membership_file(self) -> Path:
        """The stored result of enrolment (JSON)."""
        return self.data_dir / "agent.json"

    def membership(self) -> Membership:
        """Read the stored result of enrolment. Raises SetupError if the host isn't enrolled."""
        try:
            return Membership(**json.loads(self.membership_file.read_text()))
        except FileNotFoundError:
            raise SetupError(
                f"This host is not enrolled ({self.membership_file} is missing): run `moorage-agent enroll` first."
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise SetupError(
                f"{self.membership_file} can't be read ({error}): run `moorage-agent enroll` again."
            ) from None

    def write_membership(self, membership: Membership) -> None:
        """Store the result of enrolment."""
        write_atomic(self.membership_file, json.dumps(asdict(membership), indent=2).encode() + b"\n", mode=0o644)


def compose_binary() -> str:
    """Return the Compose this agent runs: MOORAGE_COMPOSE, else the pinned one beside it, else PATH's.

    Raises SetupError if there is none.
    """
    beside = Path(sys.executable).parent / "docker-compose"
    found = os.environ.get("MOORAGE_COMPOSE") or (str(beside) if beside.exists() else shutil.which("docker-compose"))
    if not found or not os.access(found, os.X_OK):
        raise SetupError(
            "There is no docker-compose beside the agent: install the agent again, or set MOORAGE_COMPOSE."
        )
    return found
