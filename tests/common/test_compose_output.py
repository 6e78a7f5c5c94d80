"""Rendering of Compose's output. The raw lines are Compose 5.6.1's."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_common.compose.output import crash, error_sentence, remarks, render, render_end

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


def test_non_progress_output_is_shown_unchanged() -> None:
    raw = 'plain\n{"level":"warning","msg":"the attribute `version` is obsolete"}\n{not json\n[1]\n{"other":1}\n'
    assert render(raw).splitlines() == [
        "plain",
        "the attribute `version` is obsolete",
        "{not json",
        "[1]",
        '{"other":1}',
    ]


def test_terminal_control_sequences_are_removed() -> None:
    assert render("\x1b[32mgreen\x1b[0m\x1b]0;title\x07 \x1b[2Kline\r\n\x1b[1A\n") == "green line"


def test_reason_is_the_error_then_the_detail_then_the_last_line() -> None:
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
def test_empty_json_entry_is_shown_unchanged(line: str) -> None:
    assert render(line) == line
    assert error_sentence(line) == " ".join(line.split())


def test_control_sequences_in_json_strings_are_removed() -> None:
    line = '{"id":"Container \\u001b[31mx","text":"Started\\u001b[0m\\u0007"}'
    assert render(line) == "Container x Started"
    assert error_sentence('{"error":true,"message":"\\u001b[1mbad\\u001b[0m"}') == "bad"


def test_empty_error_falls_back_to_previous_output() -> None:
    raw = '{"id":"Image x","status":"Error","details":"no such host"}\n{"error":true,"message":" "}'
    assert error_sentence(raw) == "Image x: no such host"


ASKED = 'Volume "shop_data" exists but doesn\'t match configuration in compose file. Recreate (data will be lost)?'
PANIC = """\
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x8 pc=0xd0c1a5]

goroutine 1 [running]:
github.com/docker/compose/v5/pkg/compose.(*composeService).down(0x1)
\tgithub.com/docker/compose/v5/pkg/compose/down.go:86 +0x1
"""


def test_compose_prompt_gets_its_own_line() -> None:
    other = ASKED.replace("shop_data", "shop_more")
    raw = f'{ASKED}{other}{{"id":"Container shop-web-1","status":"Done","text":"Running"}}\n'
    assert render(raw).split("\n") == [ASKED, other, "Container shop-web-1 Running"]
    assert error_sentence(f'{ASKED}{{"error":true,"message":"no space"}}') == "no space"


def test_json_entry_after_text_is_split_and_lookalike_is_kept() -> None:
    assert render('waiting... {"id":"Container x","text":"Started"}') == "waiting...\nContainer x Started"
    for line in ('says {"id":"x"', 'says {"id":"x"} and more', 'says {"name":"x"}', '{"id":' * 100):
        assert render(line) == line


def test_unapplied_change_is_reported_in_a_sentence() -> None:
    (said,) = remarks(render(f'{ASKED}{{"id":"Container shop-web-1","text":"Running"}}\n{ASKED}'))
    assert said.startswith("The change of the volume shop_data was not applied")
    assert remarks(render(UP)) == []


def test_network_left_in_use_is_reported_with_its_users() -> None:
    busy = '{"id":"Network shop_default","status":"Warning","text":"Resource is still in use"}\n'
    users = '{"id":"Network shop_default","status":"Warning","text":"Still in use","details":"by stranger, other"}\n'
    for raw, by in (
        (busy, "what is not part of the app"),
        (busy + users, "stranger, other"),
        (users + busy, "stranger"),
    ):
        (said,) = remarks(render(raw))
        assert said.startswith(f"The network shop_default was left, since it is used by {by}")
    gone = '{"id":"Network shop_default","status":"Done","text":"Removed"}\n'
    assert remarks(render(busy + gone)) == []


@pytest.mark.parametrize(
    "died",
    [
        PANIC,
        "fatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1 [semacquire]:\nsync.x()\n",
        "SIGABRT: abort\nPC=0x492ba1 m=0 sigcode=0\n\ngoroutine 0 gp=0x1feb m=0 mp=0x1fed [idle]:\nruntime.x()\n",
    ],
)
def test_compose_crash_is_detected_by_its_message(died: str) -> None:
    swept = '{"id":"Container shop-web-1","status":"Done","text":"Removed"}\n'
    for raw in (died, UP + died, UP + died + swept, ASKED + died):
        assert crash(raw, 0) == died.partition("\n")[0]


def test_other_messages_and_exit_codes_are_no_crash() -> None:
    quoted = json.dumps({"id": "Image x", "text": "Building", "details": f"\n{PANIC}"})
    indented = "\n".join(f"web-1 | {line}" for line in PANIC.splitlines())
    for raw in (UP, FAILED, quoted, indented, "panic: at the disco\n", "goroutine 1 [running]:\n", ""):
        assert crash(raw, 1) is None
        assert crash(raw, 137) is None
    assert crash("", 139) == "exit code 139"


def test_overwritten_progress_line_shows_last_state() -> None:
    assert render("copy 10%\rcopy 50%\rcopy 100%\r\nnext\r\n") == "copy 100%\nnext"
    assert render('{"id":"Image x","text":"10%\\r100%","details":"a\\r\\nb"}') == "Image x 100% a\nb"


def test_directory_without_valid_project_name_gets_advice() -> None:
    said = error_sentence('{"error":true,"message":"project name must not be empty"}') or ""
    assert said.startswith("project name must not be empty: the name of its directory has no Latin letter")
    assert "`name:`" in said


def test_truncated_output_begins_with_a_complete_line() -> None:
    data = ('{"id":"Container é","text":"Started"}\n' * 9).encode()
    assert render_end(data, len(data) + 1) == "Container é Started"
    for limit in range(50, 90):
        assert render_end(data[-limit:], limit) == "[Earlier lines are left out.]\nContainer é Started"
