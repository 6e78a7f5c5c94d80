"""The rules of a host's policy file: what a compose file may make the host read, run or fetch."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

EVERYWHERE = ("/",)


@dataclass(frozen=True, slots=True)
class Rules:
    """`roots`, `paths` and a list of `binds` are absolute paths, compared with their symlinks resolved.

    Apps are below the roots. Files that Compose reads are there or below `paths`; sources of bind mounts are anywhere
    (True), nowhere (False), or below one of `binds`. `providers` are the types that `provider:` may name.
    """

    roots: Sequence[str]
    paths: Sequence[str] = ()
    providers: frozenset[str] = frozenset()
    remote: bool = False
    binds: bool | Sequence[str] = True

    @property
    def readable(self) -> Sequence[str]:
        """The directories below which Compose may read files."""
        return (*self.roots, *self.paths)

    @property
    def listed(self) -> Sequence[str]:
        """All paths used in comparisons."""
        return (*self.readable, *(self.binds if isinstance(self.binds, Sequence) else ()))

    def resolved(self, real: Mapping[str, str]) -> "Rules":
        """Return the rules with each path resolved by `real`."""
        binds = self.binds if isinstance(self.binds, bool) else tuple(real[path] for path in self.binds)
        roots, paths = (tuple(real[path] for path in listed) for listed in (self.roots, self.paths))
        return replace(self, roots=roots, paths=paths, binds=binds)


def parse_rules(text: str) -> Rules:
    """Parse the rules of a policy file (TOML). Raises ValueError for invalid values; ignores unknown names."""
    told = tomllib.loads(text)
    binds = told.get("allow_bind_mounts", True)
    remote = told.get("allow_remote_resources", False)
    providers = told.get("allow_providers", [])
    if remote is not True and remote is not False:
        raise ValueError("allow_remote_resources must be true or false")
    if not isinstance(providers, list) or not all(isinstance(p, str) and p for p in providers):
        raise ValueError("allow_providers must be a list of provider types")
    return Rules(
        roots=_paths("allowed_roots", told.get("allowed_roots", [])),
        paths=_paths("allow_paths", told.get("allow_paths", [])),
        providers=frozenset(providers),
        remote=remote,
        binds=binds if isinstance(binds, bool) else _paths("allow_bind_mounts", binds),
    )


def is_below(path: str, directories: Sequence[str]) -> bool:
    """Whether a path is one of the directories or below one; all have their symlinks resolved."""
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in directories)


def _paths(name: str, listed: object) -> Sequence[str]:
    # Strict: a single string would be iterated by character, and "" would be the agent's own directory.
    if not isinstance(listed, list) or not all(
        isinstance(p, str) and p.startswith("/") and "\0" not in p for p in listed
    ):
        raise ValueError(f"{name} must be a list of absolute paths")
    return tuple(listed)
