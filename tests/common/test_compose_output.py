"""What Compose prints, made readable. The raw lines are Compose 5.6.1's."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.compose_output import error_sentence, render

UP = """\
{"id":"Network web_default","status":"Working","text":"Creating"}
{"id":"Network web_default","status":"Done","text":"Created"}
{"id":"Container web-app-1","status":"Working","text":"Starting"}
{"id":"Container web-app-1","status":"Working","text":"Starting"}
{"id":"Container web-app-1","status":"Done","text":"Started"}
"""
FAILED = """\
{"id":"Image nosuch:latest","status":"Error","text":"Error","details":"pull access denied"}
{"error":true,"message":"Error response from daemon:\\n pull access denied for nosuch"}
"""


def test_progress_is_shown_as_lines_without_repetition() -> None:
    assert render(UP).splitlines() == [
        "Network web_default Creating",
        "Network web_default Created",
        "Container web-app-1 Starting",
        "Container web-app-1 Started",
    ]


def test_what_is_not_progress_is_shown_as_it_is() -> None:
    raw = 'plain\n{"level":"warning","msg":"the attribute `version` is obsolete"}\n{not json\n[1]\n{"other":1}\n'
    assert render(raw).splitlines() == [
        "plain",
        "the attribute `version` is obsolete",
        "{not json",
        "[1]",
        '{"other":1}',
    ]


def test_terminal_control_is_taken_out() -> None:
    assert render("\x1b[32mgreen\x1b[0m\x1b]0;title\x07 \x1b[2Kline\r\n\x1b[1A\n") == "green line"


def test_the_reason_is_the_error_then_the_detail_then_the_last_line() -> None:
    assert error_sentence(FAILED) == "Error response from daemon: pull access denied for nosuch"
    assert error_sentence(FAILED.splitlines()[0]) == "Image nosuch:latest: pull access denied"
    assert error_sentence("first\nno configuration file provided: not found\n\n") == (
        "no configuration file provided: not found"
    )
    assert error_sentence("") is None
    assert error_sentence("\n \x1b[0m\n") is None


@given(st.text())
def test_any_output_is_rendered_without_control_characters(raw: str) -> None:
    for shown in (render(raw), error_sentence(raw) or ""):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", shown)


json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
entries = st.dictionaries(
    st.sampled_from(["id", "text", "details", "status", "error", "message", "msg", "level"]) | st.text(max_size=3),
    json_values | st.sampled_from([True, "Error"]),
    max_size=6,
)


@given(st.lists(entries, max_size=4))
def test_any_json_is_rendered_and_gives_one_line(found: list[dict[str, object]]) -> None:
    raw = "\n".join(json.dumps(entry) for entry in found)
    assert len(render(raw).split("\n")) <= max(1, raw.count("\\n") + len(found))
    assert len((error_sentence(raw) or "").splitlines()) <= 1


@pytest.mark.parametrize("line", ['{"id":null}', '{"id":""}', '{"error":true,"message":"  "}', '{"id":" "}'])
def test_an_entry_that_says_nothing_is_shown_as_it_is(line: str) -> None:
    assert render(line) == line
    assert error_sentence(line) == " ".join(line.split())


def test_control_sequences_inside_json_strings_are_taken_out() -> None:
    line = '{"id":"Container \\u001b[31mx","text":"Started\\u001b[0m\\u0007"}'
    assert render(line) == "Container x Started"
    assert error_sentence('{"error":true,"message":"\\u001b[1mbad\\u001b[0m"}') == "bad"


def test_an_error_without_words_falls_back_to_what_was_said_before() -> None:
    raw = '{"id":"Image x","status":"Error","details":"no such host"}\n{"error":true,"message":" "}'
    assert error_sentence(raw) == "Image x: no such host"
