"""The keys of a compose file that make the host read, run or fetch something, and their checks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from posixpath import join, normpath

from moorage_common.compose.rules import EVERYWHERE, Rules
from moorage_common.compose.variables import UnsureError, Variables
from moorage_common.compose.yaml_nodes import Node
from moorage_common.journal.types import Refused
from moorage_common.untrusted import clean_line

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|github\.com/|[^/\s]+@[^/\s]*:|git@", re.ASCII)
_BUILT_ELSEWHERE = ("docker-image://", "service:", "target:")
"""Build contexts that are neither files nor URLs: images, and results of the same build."""
_OCI_LAYOUT = "oci-layout://"
_LAYERS = re.compile(r"(?:lower|upper|work)dir=([^,]*)")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_NO_PATH = frozenset({"volume", "tmpfs", "image", "cluster", "npipe"})
_SHOWN = 80
_OUTSIDE = "it names a path outside the directories that the host's policy (`allowed_roots`, `allow_paths`) allows."
_MOUNTED = "the host's policy (`allow_bind_mounts`) doesn't allow to mount that into a container."


@dataclass(frozen=True, slots=True)
class Place:
    """A path that a file names. `allowed`: the directories it may be below. `read`: Compose itself reads it."""

    path: str
    where: str
    allowed: Sequence[str]
    code: str = "path_not_allowed"
    outside: str = _OUTSIDE
    read: bool = False
    same_as: str | None = None
    """The lexically cleaned path, which must resolve to the same file as `path`: Compose leaves some uncleaned."""


def where(file: str, service: str = "", key: str = "") -> str:
    """Return the beginning of a sentence about a place in a file."""
    named = [file, f"service {clean_line(service, _SHOWN)}" if service else "", f"`{key}`" if key else ""]
    return ", ".join(part for part in named if part)


@dataclass(slots=True)
class Places:
    """The collected names of the files: paths to check, and other compose files that services extend."""

    rules: Rules
    home: str
    named: list[Place] = field(default_factory=list)
    _extended: list[tuple[str, str, str]] = field(default_factory=list)
    _at: "_At" = field(init=False)

    def take_extended(self) -> list[tuple[str, str, str]]:
        """Return file (empty: the same), service and place of each `extends` since the last call."""
        taken, self._extended = self._extended, []
        return taken

    def local(self, text: str, place: str, base: str, variables: Variables) -> str:
        """Return the path that a compose file names; empty for an empty text.

        Raises Refused for a remote one, and if it can't be determined.
        """
        try:
            filled = variables.fill(text)
        except UnsureError:
            raise _unsure(place) from None
        if not filled:
            return ""
        if _REMOTE.match(filled):
            # Even if the policy allows it: its content isn't available for the check.
            raise Refused("remote_resource_not_allowed", f"{place}: compose files from elsewhere are not fetched.")
        path = _path_of(filled, base, place)
        self._see_where_it_leads(filled, Place(path, place, self.rules.readable))
        return path

    def services(self, document: Node, file: str, base: str, variables: Variables, only: str | None = None) -> None:
        """Check a document of a file; `only` is the single service that is extended there. Raises Refused."""
        self._at = _At(file, base, variables)
        for name, service in document.entries("services"):
            if only is None or name == only:
                self._at.service = name
                self._service(service)
        self._at.service = ""
        if only is not None:
            return
        for kind in ("configs", "secrets"):
            for _, entry in document.entries(kind):
                for text in entry.texts("file"):
                    self._path(text, f"{kind}.file", read=True)
        for _, volume in document.entries("volumes"):
            self._device(volume)

    def _service(self, service: Node) -> None:
        self._provider(service)
        for extends in service.get("extends"):
            self._extends(extends)
        self._container(service)
        for hook in ("pre_start", "post_start", "pre_stop"):
            for element in service.elements(hook):
                self._container(element)
        for build in service.get("build"):
            self._build(build)
        for rule in service.elements("develop", "watch"):
            for text in rule.texts("path"):
                self._path(text, "develop.watch.path")

    def _container(self, service: Node) -> None:
        """Check the keys common to services and to hooks of a service."""
        for key in ("env_file", "label_file"):
            for element in service.elements(key):
                for text in [element.text] if element.text is not None else element.texts("path"):
                    self._path(text, key, read=True)
        for text in service.texts("credential_spec", "file"):
            self._path(text.removeprefix("file://"), "credential_spec.file", read=True)
        for text in service.texts("security_opt"):
            found = re.match(r"seccomp[=:](.*)", text, re.DOTALL)
            if found is not None and found.group(1) not in {"unconfined", "builtin"}:
                self._path(found.group(1), "security_opt", read=True)
        for volume in service.elements("volumes"):
            self._volume(volume)
        if self.rules.binds is not True and any(t.lower() != "false" for t in service.texts("use_api_socket")):
            raise Refused("bind_mount_not_allowed", f"{self._at.place('use_api_socket')}: {_MOUNTED}")

    def _provider(self, service: Node) -> None:
        for provider in service.get("provider"):
            if provider.null:
                continue
            types = list(provider.texts("type"))
            try:
                named = {self._at.variables.fill(text) for text in types}
            except UnsureError:
                named = set()
            if not named or not named <= self.rules.providers:
                raise Refused(
                    "provider_not_allowed",
                    f"{self._at.place('provider')}: it runs a program on the host that the host's policy "
                    "(`allow_providers`) doesn't list.",
                )

    def _extends(self, extends: Node) -> None:
        if extends.text is not None:
            self._extended.append(("", self._interpolated(extends.text, "extends"), self._at.place("extends")))
            return
        if not extends.is_plain():
            raise ambiguous(self._at.place("extends"))
        files = [
            self.local(text, self._at.place("extends.file"), self._at.base, self._at.variables)
            for text in extends.texts("file")
        ]
        for service in extends.texts("service"):
            named = self._interpolated(service, "extends")
            self._extended += [(file, named, self._at.place("extends.file")) for file in files or [""]]

    def _build(self, build: Node) -> None:
        if build.text is not None and not build.null:
            self._context(build.text, "build", ["Dockerfile"])
            return
        dockerfiles = list(build.texts("dockerfile"))
        for text in build.texts("context") if any(build.texts("context")) else ["."]:
            self._context(text, "build.context", dockerfiles or ["Dockerfile"])
        for name, value in build.entries("additional_contexts"):
            del name
            self._context(value.text or ".", "build.additional_contexts", [])
        for text in build.texts("additional_contexts"):
            self._context(text.partition("=")[2], "build.additional_contexts", [])
        for text in [*build.texts("ssh"), *(f"={v.text}" for _, v in build.entries("ssh") if v.text and not v.null)]:
            if path := text.partition("=")[2]:
                self._path(path, "build.ssh", read=True)
        for key in ("cache_from", "cache_to"):
            for text in build.texts(key):
                for path in re.findall(r"(?:src|dest)=\"?([^,\"]*)", text):
                    self._path(path, f"build.{key}")

    def _context(self, text: str, key: str, dockerfiles: Sequence[str]) -> None:
        filled = self._interpolated(text, key)
        if filled.startswith(_BUILT_ELSEWHERE):
            return
        if _REMOTE.match(filled) and not filled.startswith(_OCI_LAYOUT):
            if not self.rules.remote:
                raise Refused(
                    "remote_resource_not_allowed",
                    f"{self._at.place(key)}: it fetches from elsewhere, which the host's policy "
                    "(`allow_remote_resources`) doesn't allow.",
                )
            return
        self._note(filled.removeprefix(_OCI_LAYOUT), self._reading(key))
        for dockerfile in dockerfiles:
            named = join(filled, self._interpolated(dockerfile, "build.dockerfile"))
            self._note(named, self._reading("build.dockerfile", read=True))

    def _volume(self, volume: Node) -> None:
        if self.rules.binds is True:
            return
        if volume.text is not None:
            source, colon, _ = self._interpolated(volume.text, "volumes").partition(":")
            if colon:
                self._bind(volume.text if _WINDOWS.match(volume.text) else source, "volumes")
            return
        kinds = set(volume.texts("type"))
        for source in volume.texts("source"):
            self._bind(self._interpolated(source, "volumes"), "volumes", sure=not kinds or not kinds <= _NO_PATH)

    def _device(self, volume: Node) -> None:
        """Check the mounts of a volume of the driver `local`."""
        if self.rules.binds is True:
            return
        key = "volumes.driver_opts"
        for text in volume.texts("driver_opts", "device"):
            device = self._interpolated(text, key)
            if not device.startswith("//"):  # a network file system's
                self._bind(device, key)
        for text in volume.texts("driver_opts", "o"):
            for paths in _LAYERS.findall(self._interpolated(text, key)):
                for path in paths.split(":"):
                    self._bind(path, key, sure=True)

    def _bind(self, source: str, key: str, *, sure: bool = False) -> None:
        """Add the source of a mount; `sure`: it is a path, not a volume's name, regardless of its form."""
        binds = self.rules.binds if isinstance(self.rules.binds, Sequence) else ()
        place = Place("", self._at.place(key), binds, "bind_mount_not_allowed", _MOUNTED)
        if _WINDOWS.match(source):
            raise Refused(place.code, f"{place.where}: {place.outside}")
        if sure or source.startswith(("/", ".", "~")):
            self._note(source, place)

    def _path(self, text: str, key: str, *, read: bool = False) -> None:
        self._note(self._interpolated(text, key), self._reading(key, read=read))

    def _reading(self, key: str, *, read: bool = False) -> Place:
        allowed = self.rules.readable
        return Place("", self._at.place(key), EVERYWHERE if "/" in allowed else allowed, read=read)

    def _interpolated(self, text: str, key: str) -> str:
        """Interpolate the variables of a text. Raises Refused if that can't be determined."""
        try:
            return self._at.variables.fill(text)
        except UnsureError:
            raise _unsure(self._at.place(key)) from None

    def _note(self, filled: str, place: Place) -> None:
        if filled.startswith("~"):
            filled = f"{self.home}/{filled[1:]}"
        named = replace(place, path=_path_of(filled, self._at.base, place.where))
        self.named.append(named)
        self._see_where_it_leads(filled, named)

    def _see_where_it_leads(self, filled: str, named: Place) -> None:
        """Add a path with `..` uncleaned, too: after a symlink it is another one."""
        if filled.startswith("/") and ".." in filled.split("/"):
            self.named.append(replace(named, path=filled, same_as=named.path, read=False))


def _path_of(text: str, base: str, place: str) -> str:
    """Make a path absolute as Compose does. Raises Refused for an invalid path, or one that can't be shown."""
    try:
        text.encode()
        plain = not {"\0", "\n", "\r"} & set(text)
    except UnicodeEncodeError:
        plain = False
    if not plain:
        raise Refused("path_not_allowed", f"{place}: it names a path with a line break in it, or one that isn't UTF-8.")
    return normpath(join(base, text))


def ambiguous(place: str) -> Refused:
    """Return the refusal of an ambiguous file."""
    return Refused(
        "unreadable_compose_file", f"{place}: write each key once, without `!reset` and `!override`, to be sure of it."
    )


def _unsure(place: str) -> Refused:
    return Refused("path_not_allowed", f"{place}: what it names can't be told for sure: write it without variables.")


@dataclass(slots=True)
class _At:
    """The current position of the check."""

    file: str
    base: str
    variables: Variables
    service: str = ""

    def place(self, key: str) -> str:
        """Return the beginning of a sentence about a key."""
        return where(self.file, self.service, key)
