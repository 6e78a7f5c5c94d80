"""The host's policy file, on a real file system."""

import os
from pathlib import Path

import pytest
from moorage_agent.apps.policy import Policy, write_policy
from moorage_agent.errors import RefusalError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "srv"
    made.mkdir()
    return made


@pytest.fixture
def file(tmp_path: Path, root: Path) -> Path:
    made = tmp_path / "policy.toml"
    write_policy(made, [str(root)])
    return made


def _code(policy: Policy, path: Path | str) -> str:
    with pytest.raises(RefusalError) as refused:
        policy.real_directory(str(path))
    return refused.value.code


def test_path_in_root_is_allowed_even_if_missing(file: Path, root: Path) -> None:
    policy = Policy(file)
    (root / "app").mkdir()
    assert policy.real_directory(str(root)) == str(root)
    assert policy.real_directory(f"{root}/app/../app/") == str(root / "app")
    assert policy.real_directory(f"{root}/not/there") == str(root / "not" / "there")


def test_path_outside_roots_is_refused(file: Path, root: Path) -> None:
    policy = Policy(file)
    (root / "out").symlink_to("/etc")
    for path in ("/", "/etc", f"{root}-beside", f"{root}/..", f"{root}/out", f"{root}/out/not-there", root.parent):
        assert _code(policy, path) == "path_not_allowed"
    for path in ("", "srv", "./srv", f"{root}/a\0b"):
        assert _code(policy, path) == "invalid_request"


def test_root_may_be_symlink_and_may_change_target(file: Path, root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    write_policy(file, [str(link)])
    policy = Policy(file)
    assert policy.real_directory(f"{link}/app") == f"{root}/app"
    other = tmp_path / "other"
    other.mkdir()
    link.unlink()
    link.symlink_to(other)
    assert policy.real_directory(f"{link}/app") == f"{other}/app"
    assert _code(policy, root / "app") == "path_not_allowed"


def test_policy_change_applies_to_next_request(file: Path, root: Path) -> None:
    policy = Policy(file)
    assert _code(policy, "/etc/x") == "path_not_allowed"
    about = file.stat()
    file.write_text(f'allowed_roots = ["{root}", "/etc"]\n')
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # only the size differs
    assert policy.real_directory("/etc/x") == "/etc/x"
    write_policy(file, [])
    assert _code(policy, "/etc/x") == "path_not_allowed"


@pytest.mark.parametrize(
    "text",
    [
        'allowed_roots = "/srv"\n',  # a string, whose first letter is the root of everything
        "allowed_roots = ['srv']\n",
        "allowed_roots = ['']\n",
        "allowed_roots = [1]\n",
        "allowed_roots = {a = '/'}\n",
        'allowed_roots = ["/srv\\u0000"]\n',
        "allowed_roots = [\n",
        b"\xff",
    ],
)
def test_invalid_policy_allows_nothing_and_is_reported(file: Path, text: str | bytes) -> None:
    policy = Policy(file)
    assert policy.roots()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for path in ("/", "/srv/app", "/etc"):
        assert _code(policy, path) == "policy_unreadable"


def test_missing_policy_allows_nothing(tmp_path: Path) -> None:
    assert _code(Policy(tmp_path / "none.toml"), "/srv") == "policy_unreadable"


def test_policy_without_roots_allows_nothing(file: Path) -> None:
    file.write_text("allowed_root = ['/']  # a letter is missing\n")
    assert _code(Policy(file), "/") == "path_not_allowed"


@pytest.mark.parametrize(
    "name", ["plain", "with space", 'dou"ble', "quo'te", "back\\slash", "new\nline", "ünïcode", "\x7f"]
)
def test_any_root_survives_serialisation(file: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    write_policy(file, [str(root)])
    assert list(Policy(file).roots()) == [str(root)]
