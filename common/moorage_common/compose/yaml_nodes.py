"""A compose file as a tree of plain nodes, parsed within limits: nothing is built before its size is checked.

Looser than Compose if that finds more (all documents, all duplicates of a key, merged keys beside own ones), and
stricter if the two could read different things: such a file is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

FILE_BYTES = 1 << 20
_DEPTH = 64
_EVENTS = 200_000
_VISITS = 400_000
"""Nodes with aliases expanded: a file that expands to more is no compose file."""

_ALTERING = frozenset({"!reset", "!override"})
_TAGS = _ALTERING | frozenset(
    {
        f"tag:yaml.org,2002:{kind}"
        for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge")
    }
)
"""Not `!!binary`: Compose decodes it, and so reads a text other than the written one."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"


class UnreadableError(Exception):
    """A file can't be parsed within the limits; `str()` is the reason, and doesn't quote the file."""


@dataclass(slots=True)
class Node:
    """A scalar (`text`), a list (`items`) or a mapping (`pairs`); exactly one of them is not None."""

    text: str | None = None
    items: list["Node"] | None = None
    pairs: list[tuple[str, "Node"]] | None = None
    null: bool = False
    altering: bool = False
    """Tagged `!reset` or `!override`: Compose may remove it."""

    def get(self, *keys: str) -> Iterator["Node"]:
        """Yield the values of a key, or of a path of keys, in a mapping; nothing for other nodes.

        Keys are given in lower case and match in any case: Compose accepts `Path` for `path` in an `include`.
        """
        if not keys:
            yield self
            return
        for name, value in self.members():
            if name.casefold() == keys[0]:
                yield from value.get(*keys[1:])

    def entries(self, *keys: str) -> Iterator[tuple[str, "Node"]]:
        """Yield the pairs of the mappings at a path of keys, merged ones too."""
        for found in self.get(*keys):
            yield from found.members()

    def elements(self, *keys: str) -> Iterator["Node"]:
        """Yield the items of the lists at a path of keys; another node is its own single item. Nothing for a null."""
        for found in self.get(*keys):
            if not found.null:
                yield from [found] if found.items is None else found.items

    def texts(self, *keys: str) -> Iterator[str]:
        """Yield the scalars at a path of keys, or in lists there; no nulls."""
        for element in self.elements(*keys):
            if element.text is not None and not element.null:
                yield element.text

    def is_plain(self) -> bool:
        """Whether it is unambiguous: each key once, merged ones too, and no tag that removes or overrides."""
        pending = [self]
        while pending:
            node = pending.pop()
            names = [name.casefold() for name, _ in node.members()]
            if node.altering or len(set(names)) < len(names):
                return False
            pending += [value for _, value in node.pairs or ()]
            pending += node.items or ()
        return True

    def members(self) -> Iterator[tuple[str, "Node"]]:
        """Yield the pairs of a mapping, merged ones too."""
        for name, value in self.pairs or ():
            if name == _MERGE:
                for merged in [value] if value.items is None else value.items:
                    yield from merged.members()
            else:
                yield name, value


@dataclass(slots=True)
class _Open:
    node: Node
    anchor: str | None
    key: str | None = None


def parse(content: bytes, limit: int = FILE_BYTES) -> list[Node]:
    """Return the documents of a file of at most `limit` bytes. Raises UnreadableError."""
    if len(content) > limit:
        raise UnreadableError(f"it is larger than {limit >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableError("it is not UTF-8") from None
    try:
        documents = list(_documents(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1} is not YAML" if mark is not None else "it is not YAML"
        raise UnreadableError(line) from None
    for document in documents:
        weigh(document)
    return documents


def _documents(text: str) -> Iterator[Node]:
    """Build from the parser's events, one by one: the parser itself doesn't recurse."""
    builder = _Builder()
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if count > _EVENTS:
            raise UnreadableError("it holds too much")
        built = builder.take(event)
        if built is not None:
            yield built


class _Builder:
    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: yaml.Event) -> Node | None:
        """Process an event; return the document that it completed, if any."""
        match event:
            case yaml.DocumentStartEvent():
                self._anchors.clear()
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise UnreadableError("it refers to an anchor that isn't there, or to itself")
                return self._put(self._anchors[event.anchor])
            case yaml.ScalarEvent():
                _check_tag(event.tag)
                null = not event.style and event.tag is None and event.value in {"", "~", "null", "Null", "NULL"}
                node = Node(text=event.value, null=null, altering=event.tag in _ALTERING)
                if event.anchor is not None:
                    self._anchors[event.anchor] = node
                return self._put(node)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                _check_tag(event.tag)
                if len(self._open) >= _DEPTH:
                    raise UnreadableError(f"it is nested more than {_DEPTH} deep")
                is_list = isinstance(event, yaml.SequenceStartEvent)
                node = Node(items=[]) if is_list else Node(pairs=[])
                node.altering = event.tag in _ALTERING
                self._open.append(_Open(node, event.anchor))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                ended = self._open.pop()
                if ended.anchor is not None:
                    # Only at its end, so that a node can't contain itself: Compose rejects that, too.
                    self._anchors[ended.anchor] = ended.node
                return self._put(ended.node)
        return None

    def _put(self, node: Node) -> Node | None:
        if not self._open:
            return node
        inner = self._open[-1]
        if inner.node.items is not None:
            inner.node.items.append(node)
        elif inner.key is None:
            if node.text is None:
                raise UnreadableError("it has a key that is no text")
            inner.key = node.text
        else:
            assert inner.node.pairs is not None
            inner.node.pairs.append((inner.key, node))
            inner.key = None
        return None


def _check_tag(tag: str | None) -> None:
    if tag is not None and tag != "!" and tag not in _TAGS:
        raise UnreadableError("it has a tag that Compose doesn't know")


def weigh(document: Node) -> int:
    """Return how many nodes a document has with its aliases followed. Raises UnreadableError: too many, or too deep."""
    visits, pending = 0, [(document, 0)]
    while pending:
        node, depth = pending.pop()
        visits += 1
        if visits > _VISITS or depth > _DEPTH:
            raise UnreadableError("its aliases unfold to too much")
        pending += [(child, depth + 1) for child in node.items or ()]
        pending += [(child, depth + 1) for _, child in node.pairs or ()]
    return visits
