"""The Docker Engine, through its SDK. Everything here blocks: call it in a thread."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from moorage_common.docker.containers import EVENTS, PROJECT, Container, RealPath, of_inspection, of_labels, state_word
from moorage_common.untrusted import LIMITS, UntrustedError, clean_line, clean_sentence, key_id, number

from moorage_agent.errors import EngineUnreachableError

_TIMEOUT_SECONDS = 10
_MOST_USERS = 5
"""The limit of reported containers on a remaining network."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The Engine's own facts; `time` is its clock, in epoch seconds."""

    version: str
    running_containers: int
    time: int


class EventStream(Protocol):
    """The SDK's stream of events: iterable in one thread, closeable from another."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events."""

    def close(self) -> None:
        """End the iteration, even one that is blocked."""


def _real_paths(paths: Sequence[str]) -> Mapping[str, str]:
    return {path: os.path.realpath(path) for path in paths}


@dataclass(slots=True)
class Engine:
    """The Engine at `host` (unix://PATH). Every method raises EngineUnreachableError."""

    host: str
    real_paths: Callable[[Sequence[str]], Mapping[str, str]] = _real_paths
    """Resolves the symlinks of the directories in labels; it must not wait for a hanging file system."""
    _client: docker.APIClient | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def facts(self) -> EngineFacts:
        """Query version, running containers (all, not only Compose's) and time."""
        with self._talking() as client:
            info = client.info()
            moment = datetime.fromisoformat(info["SystemTime"])
            running = number(info["ContainersRunning"], 0, LIMITS.count)
            return EngineFacts(clean_line(info["ServerVersion"], LIMITS.version), running, int(moment.timestamp()))

    def containers(self, wanted: Callable[[Container], bool] = lambda _: True) -> dict[str, Container]:
        """Return all containers of Compose projects by id, each inspected: only that has health and exit codes."""
        with self._talking() as client:
            rows = client.containers(all=True, filters={"label": PROJECT})
            unresolved = [(key_id(row["Id"]), of_labels(row["Labels"], str)) for row in rows]
        labelled = [(container_id, label) for container_id, label in unresolved if label is not None]
        real = self.real_paths([label.directory for _, label in labelled])
        mine = (i for i, label in labelled if wanted(replace(label, directory=real[label.directory])))
        found = (self._inspect(container_id, lambda path: real.get(path, path)) for container_id in mine)
        return {c.state.id: c for c in islice(filter(None, found), LIMITS.containers)}

    def states(self) -> dict[str, str]:
        """Return only the states of all containers of Compose projects, by id: one cheap call."""
        with self._talking() as client:
            rows = client.containers(all=True, filters={"label": PROJECT})
            return {key_id(row["Id"]): state_word(row["State"]) for row in rows[: LIMITS.containers]}

    def container(self, container_id: str) -> Container | None:
        """Inspect one container; None if it is gone, or in no Compose project."""
        return self._inspect(container_id, lambda path: self.real_paths([path])[path])

    def _inspect(self, container_id: str, real_path: RealPath) -> Container | None:
        with self._talking() as client:
            try:
                about = client.inspect_container(container_id)
            except docker.errors.NotFound:
                return None
            try:
                return of_inspection(about, real_path)
            except UntrustedError:
                return None  # a single unreadable container is not one of ours

    def events(self, since: int) -> EventStream:
        """Open the stream of container events from an Engine's time (epoch seconds) on."""
        with self._talking() as client:
            stream: EventStream = client.events(
                since=since, filters={"type": "container", "event": list(EVENTS)}, decode=True
            )
        return stream

    def remove(self, container_id: str) -> None:
        """Stop a container with its own grace period, and remove it; no error if it is gone."""
        with self._talking() as client:
            for step in (self._stop, self._remove):
                try:
                    step(client, container_id)
                except docker.errors.NotFound:
                    return

    def unpause(self, container_id: str) -> None:
        """Unpause a container; an error is ignored, since the next command on the container reports it better."""
        with self._talking() as client, suppress(docker.errors.APIError):
            client.unpause(container_id)

    def remove_networks(self, project: str) -> tuple[list[str], dict[str, list[str]]]:
        """Remove a project's unused networks; return their names, and the remaining ones with their users.

        The users are the names of containers.
        """
        removed: list[str] = []
        left: dict[str, list[str]] = {}
        with self._talking() as client:
            for network in client.networks(filters={"label": f"{PROJECT}={project}"}):
                name, identity = clean_line(network["Name"], LIMITS.name), key_id(network["Id"])
                try:
                    client.remove_network(identity)
                except docker.errors.NotFound:
                    continue
                except docker.errors.APIError:
                    left[name] = self._users(client, identity)
                else:
                    removed.append(name)
        return removed, left

    def close(self) -> None:
        """Close the connection: a replaced Engine may have another API version."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> docker.APIClient:
        # Outside the lock: with a hanging Engine each caller waits its own timeout, not all of them in turn.
        made = docker.APIClient(base_url=self.host, version="auto", timeout=_TIMEOUT_SECONDS)
        with self._lock:
            client = self._client = self._client or made
        if client is not made:
            made.close()
        return client

    @staticmethod
    def _users(client: docker.APIClient, network_id: str) -> list[str]:
        try:
            found = client.inspect_network(network_id)["Containers"] or {}
        except docker.errors.APIError:
            return []
        return sorted(clean_line(each["Name"], LIMITS.name) for each in islice(found.values(), _MOST_USERS))

    @staticmethod
    def _stop(client: docker.APIClient, container_id: str) -> None:
        about = client.inspect_container(container_id)
        grace = about["Config"].get("StopTimeout")
        # The call lasts as long as the container's own grace period: the timeout must be longer.
        client.stop(container_id, timeout=10 if grace is None else grace)

    @staticmethod
    def _remove(client: docker.APIClient, container_id: str) -> None:
        try:
            client.remove_container(container_id, force=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:  # noqa: PLR2004 - HTTP: its removal is in progress already
                raise

    @contextmanager
    def _talking(self) -> Iterator[docker.APIClient]:
        try:
            yield self._client or self._connect()
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise EngineUnreachableError(_sentence(self.host, error)) from error
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EngineUnreachableError(
                f"The Docker Engine at {self.host} answered with what isn't its API: see on the host what it is."
            ) from error


def _sentence(host: str, error: Exception) -> str:
    if isinstance(error, docker.errors.APIError):
        return clean_sentence(f"The Docker Engine answered with an error: {error.explanation or error}")
    return f"The Docker Engine at {host} doesn't answer: see on the host that it runs ({type(error).__name__})."
