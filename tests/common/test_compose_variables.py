"""Compose variables and env files: every interpolation we resolve equals that of the pinned Compose."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moorage_common.compose.command import clean_environment
from moorage_common.compose.variables import UnsureError, Variables
from moorage_lab.programs.processes import installed

_ALPHABET = st.sampled_from(
    [
        "$",
        "${",
        "{",
        "}",
        "A",
        "B",
        "C",
        "_x",
        "1",
        ":",
        "-",
        "?",
        "+",
        ":-",
        ":+",
        "$$",
        "/",
        ".",
        " ",
        "#",
        '"',
        "'",
        "\\",
    ]
)
_TEXT = st.lists(_ALPHABET, max_size=12).map("".join)
_LINE = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["A", "B", "C", "export A", "D.x", "A ", " B", "#A", "A B"]),
    st.sampled_from(["=", ":", "= ", "\n", ""]),
    st.one_of(_TEXT, _TEXT.map('"{}"'.format), _TEXT.map("'{}'".format)),
    st.sampled_from(["", " # note", "\r", "#", "\n\n"]),
)


def _compose(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(str(directory), {"HOME": "/root"})
    argv = [installed("docker-compose"), "config", *arguments]
    return subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=30, check=False)


def _fixed(directory: Path) -> Variables:
    return Variables(clean_environment(str(directory), {"HOME": "/root"}))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(_TEXT, min_size=60, max_size=60))
def test_interpolation_equals_compose(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / ".env").write_text("A=one\nB=\n")
    variables = _fixed(tmp_path).with_files("A=one\nB=\n")
    told = {}
    for number, text in enumerate(texts):
        try:
            told[f"k{number}"] = text, variables.fill(text)
        except UnsureError:
            continue
    labels = {key: text for key, (text, _) in told.items()}
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": {"a": {"image": "x", "labels": labels}}}))
    printed = _compose(tmp_path, "--format", "json")
    assert printed.returncode == 0, printed.stderr
    made = json.loads(printed.stdout)["services"]["a"].get("labels", {})
    assert {key: made[key].replace("$$", "$") for key in told} == {key: filled for key, (_, filled) in told.items()}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(_LINE, max_size=4))
def test_env_file_parsing_equals_compose(tmp_path: Path, lines: list[str]) -> None:
    text = "\n".join(lines)
    (tmp_path / ".env").write_bytes(text.encode())
    labels = {name: f"${{{name}-unset}}" for name in "ABC"}
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": {"a": {"image": "x", "labels": labels}}}))
    variables, told = _fixed(tmp_path).with_files(text), {}
    for name in "ABC":
        try:
            told[name] = variables.fill(labels[name])
        except UnsureError:
            continue
    printed = _compose(tmp_path, "--format", "json")
    if printed.returncode == 0:
        made = json.loads(printed.stdout)["services"]["a"]["labels"]
        assert {name: made[name].replace("$$", "$") for name in told} == told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=plain", "plain"),
        ("A=plain # note", "plain"),
        ("export A = 'sin$gle'", "sin$gle"),
        ('A="two\nlines"\nB=x', "two\nlines"),
        ('A="\\$five"', "$five"),
        ("A=${B:-other}/x", "other/x"),
        ("PATH=/evil\nA=${PATH}", "/usr/bin"),
        ("KEY-with.dots=1\r\nA=x\r\n", "x"),
        ("A=first\nA=second", "second"),
    ],
)
def test_ordinary_env_lines_are_read(text: str, value: str) -> None:
    assert Variables({"PATH": "/usr/bin"}).with_files(text).get("A") == value


@pytest.mark.parametrize("text", ['A="\\x41"', "A='open", "A=$", "A=${B?no}", "! A=x", "A=\\n", 'A="x" B=y', "A=\x01"])
def test_ambiguous_env_lines_are_not_guessed(text: str) -> None:
    with pytest.raises(UnsureError):
        Variables({}).with_files(text).get("A")
