"""Check of an app's compose files, before Compose reads them: what they would make their host read, run or fetch.

Pure: the walk yields the paths it needs, and its caller looks them up on the host (`Found`).
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from posixpath import basename, dirname, join, normpath

from moorage_common.compose.places import Places, ambiguous, where
from moorage_common.compose.rules import EVERYWHERE, Rules, is_below
from moorage_common.compose.variables import UnsureError, Variables
from moorage_common.compose.yaml_nodes import Node, UnreadableError, parse, weigh
from moorage_common.docker.app_identity import COMPOSE_FILES, OVERRIDE_FILES
from moorage_common.journal.types import Refused

_MOST_FILES = 64
_MOST_PATHS = 2000
_MOST_TASKS = 256
_MOST_BYTES = 4 << 20
_MOST_NODES = 1_000_000
"""Visited nodes in total: each inclusion of a file counts its nodes again."""
_DEFAULT_FILES = (*COMPOSE_FILES, *OVERRIDE_FILES)
_RESOLVED_BYTES = 8 << 20


class Kind(StrEnum):
    """The kind of file at a path, symlinks followed."""

    FILE = "file"
    DIRECTORY = "directory"
    NOTHING = "nothing"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Ask:
    """A path to look up. `content`: include a regular file's bytes, FILE_BYTES + 1 at most."""

    path: str
    content: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The result for a path. `real` has its symlinks resolved; `content` is None if not requested or not readable."""

    kind: Kind
    real: str
    content: bytes | None = None


Walk = Generator[Sequence[Ask], Mapping[str, Found], "Walked"]
"""Yields paths to look up, is sent the results by path, and returns the outcome."""


@dataclass(frozen=True, slots=True)
class Walked:
    """`files` are all paths the result depends on, existing or not. `refusal` is why Compose must not read them.

    `quotable`: Compose's errors may be shown; else they may quote another user's file. `services` are all that the
    files declare, those of inactive profiles too. `config_files` are those that Compose reads first, symlinks resolved.
    """

    files: Sequence[str]
    refusal: Refused | None
    quotable: bool = True
    services: Collection[str] = ()
    config_files: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Task:
    """A compose file to check, named at `place`. Relative paths begin at `base`; `service` limits it to one."""

    file: str
    base: str
    variables: Variables
    place: str
    service: str | None = None
    by_extends: bool = False
    """Whether a service elsewhere extends one in this file."""

    @property
    def key(self) -> object:
        """Its identity: with other variables the same file has another meaning."""
        return self.file, self.base, self.service, self.by_extends, self.variables.state


def walk_app(directory: str, variables: Variables, home: str, rules: Rules, compose_files: Sequence[str] = ()) -> Walk:
    """Check the files of the app in a real directory. `rules` have their symlinks resolved.

    `compose_files` are those that the app names, in place of the default names.
    """
    walk = _AppWalk(directory, home, rules, [normpath(join(directory, file)) for file in compose_files])
    refusal = None
    try:
        yield from walk.run(variables)
    except Refused as error:
        refusal = error
    first = tuple(walk.found[file].real for file in walk.first if file in walk.found)
    return Walked(tuple(walk.read | walk.stamped), refusal, walk.quotable, frozenset(walk.services), first)


def walk_resolved(config: str, directory: str, rules: Rules) -> Walk:
    """Check Compose's merged result of all files (`config --format json`): merging must not add anything forbidden."""
    walk = _AppWalk(directory, directory, rules)
    refusal = None
    try:
        try:
            documents = parse(config.encode(errors="replace"), _RESOLVED_BYTES)
        except UnreadableError as error:
            raise Refused(
                "unreadable_compose_file", f"What Compose makes of {directory} can't be read: {error}."
            ) from None
        for document in documents:
            walk.places.services(document, where(directory), directory, Variables({}))
        yield from walk.check_places()
    except Refused as error:
        refusal = error
    return Walked((), refusal)


@dataclass(slots=True)
class _AppWalk:
    directory: str
    home: str
    rules: Rules
    first: Sequence[str] = ()
    """The files that Compose reads first: the given ones, else those it finds."""
    found: dict[str, Found] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    stamped: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    parsed: dict[str, tuple[Sequence[Node], int]] = field(default_factory=dict)
    weight: int = 0
    places: Places = field(init=False)
    quotable: bool = True
    given: bool = False

    def __post_init__(self) -> None:
        self.places = Places(self.rules, self.home)
        self.given = bool(self.first)

    def run(self, variables: Variables) -> Generator[Sequence[Ask], Mapping[str, Found], None]:
        """Check all files. Raises Refused."""
        files, beside = self.first, self.directory
        if self.given:
            beside = ""  # Compose only reads the .env beside the first file
        else:
            settings = join(beside, ".env")
            yield from self._request_paths([Ask(join(beside, n), content=True) for n in (".env", *_DEFAULT_FILES)])
            variables = yield from self._with_files(variables, [settings], where(settings))
            files = self.first = yield from self._first_files(variables)
        if not files:
            return
        base = dirname(files[0]) or "/"
        if base != beside:
            settings = join(base, ".env")
            variables = yield from self._with_files(variables, [settings], where(settings))
        yield from self._request_paths([Ask(file, content=True) for file in files])
        self._name_project(files, base, variables)
        tasks, seen = [_Task(file, base, variables, self._named_at(file)) for file in files], set[object]()
        while tasks:
            fresh = {task.key: task for task in tasks if task.key not in seen}
            seen |= fresh.keys()
            new = list(fresh.values())
            if len(seen) > _MOST_TASKS:
                raise self._too_many()
            yield from self._request_paths([Ask(task.file, content=True) for task in new])
            tasks = []
            for task in new:
                documents = self._documents(task.file, task.place)
                if task.by_extends and len(documents) > 1:
                    # Compose merges them before it resolves what a service there extends.
                    raise Refused("unreadable_compose_file", f"{task.place}: what it names must be one document.")
                for document in documents:
                    tasks += yield from self._document(document, task)
        yield from self.check_places()

    def check_places(self) -> Generator[Sequence[Ask], Mapping[str, Found], None]:
        """Check that all named paths are in allowed places."""
        places = [p for p in self.places.named if p.read or p.allowed != EVERYWHERE]
        yield from self._request_paths([Ask(path) for p in places for path in (p.path, p.same_as) if path is not None])
        for place in places:
            about = self.found[place.path]
            if place.path == "/dev/null":
                continue
            if place.same_as is not None and about.real != self.found[place.same_as].real:
                raise Refused(place.code, f"{place.where}: it names a path with `..` behind a link: write it without.")
            if not is_below(about.real, place.allowed):
                raise Refused(place.code, f"{place.where}: {place.outside}")
            if place.read and about.kind is Kind.OTHER:
                raise Refused("unreadable_compose_file", f"{place.where}: it names something that is no ordinary file.")
            if place.read:
                self.stamped.add(place.path)
                self._note_quotable(about.real)

    def _request_paths(self, asks: Sequence[Ask]) -> Generator[Sequence[Ask], Mapping[str, Found], None]:
        wanted = {a.path: a for a in sorted(asks, key=lambda ask: ask.content)}
        new = [a for a in wanted.values() if a.path not in self.found or (a.content and a.path not in self.read)]
        self.read |= {ask.path for ask in new if ask.content}
        if len(self.read) > _MOST_FILES or len(self.found) + len(new) > _MOST_PATHS:
            raise self._too_many()
        if new:
            self.found |= yield new
            if sum(len(about.content or b"") for about in self.found.values()) > _MOST_BYTES:
                raise self._too_many()

    def _too_many(self) -> Refused:
        return Refused(
            "unreadable_compose_file",
            f"The compose files in {self.directory} name too many other files, or too much in them.",
        )

    def _content(self, path: str, place: str) -> bytes | None:
        """Return the bytes of a readable regular file; None if there is none, which Compose reports better."""
        about = self.found[path]
        if path == "/dev/null":
            return None
        if not is_below(about.real, self.rules.readable):
            # The path itself is not shown: it may contain a secret from a variable.
            allowed = ", ".join(self.rules.readable) or "nothing yet"
            subject = f"{dirname(about.real) or '/'} is" if place == path else "it leads"
            sentence = f"{place}: {subject} outside the directories that the host's policy allows ({allowed})."
            raise Refused("path_not_allowed", sentence)
        if about.kind is Kind.OTHER:
            raise Refused("unreadable_compose_file", f"{place}: it is no ordinary file of a usual size.")
        if about.kind is not Kind.FILE:
            return None
        self._note_quotable(about.real)
        return about.content

    def _note_quotable(self, real: str) -> None:
        mine = is_below(real, [self.directory])
        self.quotable &= mine or ("/" not in self.rules.roots and is_below(real, self.rules.roots))

    def _with_files(
        self, variables: Variables, files: Sequence[str], place: str
    ) -> Generator[Sequence[Ask], Mapping[str, Found], Variables]:
        yield from self._request_paths([Ask(file, content=True) for file in files])
        texts = []
        for file in files:
            content = self._content(file, place)
            if content is not None:
                try:
                    text = content.decode("utf-8-sig")
                except UnicodeDecodeError:
                    raise Refused("unreadable_compose_file", f"{place}: it is not UTF-8.") from None
                texts.append(text)
        return variables.with_files(*texts)

    def _first_files(self, variables: Variables) -> Generator[Sequence[Ask], Mapping[str, Found], Sequence[str]]:
        try:
            named = variables.get("COMPOSE_FILE")
            separator = variables.get("COMPOSE_PATH_SEPARATOR") or ":"
        except UnsureError:
            raise Refused(
                "path_not_allowed", f"{self.directory}/.env: COMPOSE_FILE can't be told for sure: write it plainly."
            ) from None
        if named:
            return [normpath(join(self.directory, file)) for file in named.split(separator) if file != "-"]
        above = [self.directory]
        if not self._there(self.directory, COMPOSE_FILES):
            while above[-1] != "/":
                above.append(dirname(above[-1]))
            yield from self._request_paths([Ask(join(each, name)) for each in above for name in _DEFAULT_FILES])
        for each in above:
            self.stamped |= {join(each, name) for name in _DEFAULT_FILES}
            if main := self._there(each, COMPOSE_FILES):
                return [*main[:1], *self._there(each, OVERRIDE_FILES)]
        return []

    def _there(self, directory: str, names: Sequence[str]) -> list[str]:
        paths = [join(directory, name) for name in names]
        return [path for path in paths if self.found[path].kind is not Kind.NOTHING]

    def _name_project(self, files: Sequence[str], base: str, variables: Variables) -> None:
        """Set the variable that Compose sets itself while it reads: the project's name."""
        try:
            name = variables.get("COMPOSE_PROJECT_NAME") or ""
            if not name:
                named = [n for f in files for d in self._documents(f, self._named_at(f)) for n in d.texts("name") if n]
                name = variables.fill(named[-1]) if named else basename(base)
        except UnsureError:
            variables.doubt("COMPOSE_PROJECT_NAME")
            return
        plain = "".join(c for c in name.lower() if c.isascii() and (c.isalnum() or c in "_-")).lstrip("_-")
        variables.set("COMPOSE_PROJECT_NAME", plain)

    def _named_at(self, file: str) -> str:
        """Return the place that names a first file: itself, if given or of a default name, else COMPOSE_FILE."""
        if self.given or basename(file) in _DEFAULT_FILES:
            return where(file)
        return where(join(self.directory, ".env"), key="COMPOSE_FILE")

    def _documents(self, file: str, place: str) -> Sequence[Node]:
        content = self._content(file, place)
        try:
            if file not in self.parsed:
                documents = parse(content) if content is not None else ()
                self.parsed[file] = documents, sum(weigh(document) for document in documents)
        except UnreadableError as error:
            raise Refused("unreadable_compose_file", f"{file} can't be read as a compose file: {error}.") from None
        found, weight = self.parsed[file]
        self.weight += weight
        if self.weight > _MOST_NODES:
            raise self._too_many()
        return found

    def _document(self, document: Node, task: _Task) -> Generator[Sequence[Ask], Mapping[str, Found], list[_Task]]:
        self.places.services(document, where(task.file), task.base, task.variables, task.service)
        more = [
            _Task(file, dirname(file) or "/", task.variables, place, service, by_extends=True)
            if file
            else _Task(task.file, task.base, task.variables, place, service)
            for file, service, place in self.places.take_extended()
        ]
        if task.service is None:
            self.services.update(name for name, _ in document.entries("services"))
            for element in document.elements("include"):
                more += yield from self._include(element, task)
        return more

    def _include(self, element: Node, task: _Task) -> Generator[Sequence[Ask], Mapping[str, Found], list[_Task]]:
        place = where(task.file, key="include")
        if not element.is_plain():
            raise ambiguous(place)

        def path(text: str, base: str) -> str:
            return self.places.local(text, place, base, task.variables)

        texts = [element.text] if element.text is not None else element.texts("path")
        files = [path(text, task.base) or task.base for text in texts]
        if not files:
            return []
        directories = [path(text, task.base) for text in element.texts("project_directory")]
        base = next(filter(None, directories), dirname(files[0]) or "/")
        named = [path(text, task.base) or task.base for text in element.texts("env_file")]
        variables = yield from self._with_files(task.variables, named or [join(base, ".env")], place)
        return [_Task(file, base, variables, place) for file in files]
