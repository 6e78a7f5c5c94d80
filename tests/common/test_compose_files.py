"""The inspection of an app's Compose files, on files in memory."""

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from moorage_agent.apps.app_files import run_walk
from moorage_agent.apps.projects import read_project
from moorage_common.compose.files import Ask, Found, Kind, Walked, walk_app, walk_resolved
from moorage_common.compose.rules import EVERYWHERE, Rules, parse_rules
from moorage_common.compose.variables import Variables
from moorage_common.compose.yaml_nodes import UnreadableError, parse
from moorage_lab.programs.processes import installed

ROOTS = Rules(["/srv"])


def walked(
    files: Mapping[str, str | bytes],
    rules: Rules = ROOTS,
    links: dict[str, str] | None = None,
    own: Sequence[str] = (),
) -> Walked:
    """Inspect the app in /srv/app of a host with these files, or its `own` ones."""
    asked: list[str] = []
    walk = walk_app("/srv/app", Variables({"HOME": "/root", "PATH": "/usr/bin"}), "/root", rules, own)

    def look_up(ask: Ask) -> Found:
        real = (links or {}).get(ask.path, ask.path)
        asked.append(ask.path)
        if real not in files:
            return Found(Kind.NOTHING, real)
        text = files[real]
        return Found(Kind.FILE, real, text if isinstance(text, bytes) else text.encode())

    try:
        asks = next(walk)
        while True:
            asks = walk.send({ask.path: look_up(ask) for ask in asks})
    except StopIteration as ended:
        told: Walked = ended.value
        return told


def code(text: str, rules: Rules = ROOTS, *, files: Mapping[str, str] | None = None) -> str:
    """Return the refusal code of an app with this compose file, empty where it is accepted."""
    beside = {f"/srv/app/{name}": content for name, content in (files or {}).items()}
    told = walked({"/srv/app/compose.yaml": text} | beside, rules)
    return told.refusal.code if told.refusal is not None else ""


def service(text: str) -> str:
    return f"services: {{web: {{image: x, {text}}}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        "env_file: web.env",
        "env_file: [/dev/null, {path: ../web.env}]",
        "env_file: '${X:-web.env}'",
        "label_file: a",
        "volumes: ['/etc:/x', '~/x:/y', 'name:/z', {type: bind, source: /, target: /a}, /only]",
        "build: .",
        "build: {context: ./x, additional_contexts: {a: 'docker-image://busybox', b: 'service:web', c: ../y}}",
        "build: {context: x, dockerfile: ../D, ssh: [default], cache_from: ['type=registry,ref=x'], secrets: [s]}",
        "security_opt: ['seccomp=unconfined', 'seccomp:./p.json', 'apparmor=x']",
        "develop: {watch: [{path: ./src, action: sync, target: /src}]}",
        "post_start: [{command: x}], pre_stop: [{command: y}]",
        "environment: {A: '$$x ${B:?must be there}'}, command: '${'",
        "extends: other",
        "provider: null",
    ],
)
def test_usual_compose_files_are_allowed(text: str) -> None:
    assert code(service(text)) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env_file: /etc/x", "path_not_allowed"),
        ("env_file: ../../etc/x", "path_not_allowed"),
        ("env_file: ~/x", "path_not_allowed"),
        ("env_file: '${X'", "path_not_allowed"),
        ('env_file: "a\\nb"', "path_not_allowed"),
        ('env_file: "\\0"', "path_not_allowed"),
        ("env_file: [{required: false, path: /etc/x}]", "path_not_allowed"),
        ("pre_start: [{image: x, env_file: /etc/x}]", "path_not_allowed"),
        ("develop: {watch: [{path: /etc}]}", "path_not_allowed"),
        ("credential_spec: {file: /etc/x}", "path_not_allowed"),
        ("build: {context: x, dockerfile: /etc/x}", "path_not_allowed"),
        ("build: {context: x, dockerfile: ../../../etc/x}", "path_not_allowed"),
        ("build: {additional_contexts: [a=/etc]}", "path_not_allowed"),
        ("build: {additional_contexts: {a: 'oci-layout:///etc'}}", "path_not_allowed"),
        ("build: {ssh: [key=/root/.ssh/id]}", "path_not_allowed"),
        ("build: {cache_from: ['type=local,src=/etc']}", "path_not_allowed"),
        ("build: {context: 'git@host:x'}", "remote_resource_not_allowed"),
        ("build: {additional_contexts: [a=https://host/x]}", "remote_resource_not_allowed"),
        ("extends: {file: /etc/x, service: a}", "path_not_allowed"),
        ("extends: '${X'", "path_not_allowed"),
        ("provider: {}", "provider_not_allowed"),
        ("provider: {type: model}", "provider_not_allowed"),
        ("provider: !override {type: model}", "provider_not_allowed"),
    ],
)
def test_path_outside_roots_is_refused(text: str, expected: str) -> None:
    assert code(service(text)) == expected


def test_only_extended_service_of_a_file_is_checked() -> None:
    text = service("extends: {file: base.yaml, service: a}")
    base = "services: {a: {image: x, extends: b}, b: {image: x}, c: {provider: {type: x}}}\n"
    assert code(text, files={"base.yaml": base}) == ""
    hidden = base.replace("b: {image: x}", "b: {extends: c}")
    assert code(text, files={"base.yaml": hidden}) == "provider_not_allowed"


def test_relative_paths_resolve_as_in_compose() -> None:
    files: dict[str, str | bytes] = {
        "/srv/app/.env": "COMPOSE_FILE=sub/a.yaml:b.yaml\n",
        "/srv/app/sub/a.yaml": "include: [{path: inc/c.yaml, project_directory: ../../proj}]\n"
        + service("env_file: 1"),
        "/srv/app/b.yaml": service("env_file: 2, extends: {file: ext/d.yaml, service: web}"),
        "/srv/app/sub/inc/c.yaml": service("env_file: 3"),
        "/srv/app/sub/ext/d.yaml": service("env_file: 4"),
    }
    told = walked(files)
    assert told.refusal is None
    expected = {"/srv/app/sub/1", "/srv/app/sub/2", "/srv/proj/3", "/srv/app/sub/ext/4", "/srv/proj/.env"}
    assert expected <= set(told.files)


def test_include_has_its_own_variables() -> None:
    include = "include: [{path: a.yaml, env_file: one.env}, {path: a.yaml, env_file: two.env}]\n"
    inner = service("env_file: '${X}'")
    files = {"a.yaml": inner, "one.env": "X=fine\n", "two.env": "X=/etc/x\n"}
    assert code(include, files=files) == "path_not_allowed"
    assert code(include, files=files | {".env": "X=fine\n"}) == ""


def test_project_name_is_available_in_paths() -> None:
    assert code("name: My-App\n" + service("env_file: './${COMPOSE_PROJECT_NAME}.env'")) == ""
    assert code("name: '${X'\n" + service("env_file: './${COMPOSE_PROJECT_NAME}.env'")) == "path_not_allowed"
    links = {"/srv/app/my-app.env": "/etc/x"}
    text = "name: My-App\n" + service("env_file: './${COMPOSE_PROJECT_NAME}.env'")
    told = walked({"/srv/app/compose.yaml": text}, links=links)
    assert told.refusal is not None
    assert told.refusal.code == "path_not_allowed"


def test_include_cycle_terminates() -> None:
    assert code("include: [a.yaml]\n", files={"a.yaml": "include: [compose.yaml]\n"}) == ""
    assert code("services: {a: {extends: b}, b: {extends: a}}\n") == ""
    env = {f"{n}.env": f"V{n}=1\n" for n in range(9)}
    entries = ", ".join(f"{{path: compose.yaml, env_file: {n}.env}}" for n in range(9))
    assert code(f"include: [{entries}]\n", files=env) == "unreadable_compose_file"


def test_quotable_file_is_in_app_directory_or_root() -> None:
    files: dict[str, str | bytes] = {
        "/srv/app/compose.yaml": "include: [../b/c.yaml]\n",
        "/srv/b/c.yaml": "services: {}\n",
    }
    assert walked(files).quotable
    assert not walked(files, Rules(EVERYWHERE)).quotable
    assert not walked({"/srv/app/compose.yaml": service("env_file: ../x")}, Rules(["/srv/app"], ["/srv"])).quotable


def test_sentences_never_quote_file_contents() -> None:
    files: dict[str, str | bytes] = {"/srv/app/compose.yaml": service("env_file: '/etc/${PASSWORD}'")}
    told = walked(files | {"/srv/app/.env": "PASSWORD=not-for-you\n"})
    assert told.refusal is not None
    assert str(told.refusal).startswith("/srv/app/compose.yaml, service web, `env_file`: ")
    assert "not-for-you" not in str(told.refusal)


def test_merged_compose_config_is_checked_again() -> None:
    def refused(config: object, rules: Rules) -> str:
        told = run_walk(walk_resolved(json.dumps(config), "/srv/app", rules))
        return told.refusal.code if told.refusal is not None else ""

    bind = {"services": {"a": {"volumes": [{"type": "bind", "source": "/srv/$${x", "target": "/x"}]}}}
    assert refused(bind, Rules(["/srv"], binds=["/srv"])) == ""
    assert refused(bind, Rules(["/srv"], binds=False)) == "bind_mount_not_allowed"
    assert refused({"services": {"a": {"provider": {"type": "x"}}}}, ROOTS) == "provider_not_allowed"
    assert refused({"services": {"a": {"build": {"context": "/etc"}}}}, ROOTS) == "path_not_allowed"


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("type: none, o: bind, device: /etc", False),
        ("type: overlay, device: overlay, o: 'lowerdir=/srv:/etc,upperdir=/srv/u,workdir=/srv/w'", False),
        ("type: nfs, o: 'addr=10.0.0.1,rw', device: ':/exports'", True),
        ("type: cifs, o: 'username=x', device: '//server/share'", True),
        ("type: none, o: bind, device: /srv/data", True),
    ],
)
def test_volume_driver_options_count_as_bind_mount(options: str, *, allowed: bool) -> None:
    text = f"volumes: {{v: {{driver_opts: {{{options}}}}}}}\n"
    assert code(text, Rules(["/srv"], binds=["/srv"])) == ("" if allowed else "bind_mount_not_allowed")
    assert code(text) == ""


@given(text=st.text(st.sampled_from("[]{}:,-&*!<>|'\"#%@`?~ \n\tabx1\u0085\ufeff"), max_size=60))
@example(text="? [a]\n: b")
@example(text="%YAML 1.1\n---\na: b")
@example(text="a: !!python/object:os.system x")
def test_parser_survives_arbitrary_text(text: str) -> None:
    try:
        parse(text.encode())
    except UnreadableError as error:
        assert str(error)  # noqa: PT017 - either will do


@given(content=st.binary(max_size=200))
def test_inspection_survives_arbitrary_bytes(content: bytes) -> None:
    for name in (".env", "compose.yaml"):
        told = walked({"/srv/app/compose.yaml": service("env_file: '${A}${B}'"), f"/srv/app/{name}": content})
        assert told.refusal is None or told.refusal.code in {"unreadable_compose_file", "path_not_allowed"}


_PART = st.sampled_from(["..", ".", "a", "link", "out", "${UP}", "${NONE:-..}", "$$", "~", "/", "", "outside"])
_PATH = st.lists(_PART, min_size=1, max_size=6).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=_PATH, way=st.sampled_from(["include", "extends", "env_file", "file"]))
def test_compose_reads_exactly_the_inspected_files(tmp_path: Path, path: str, way: str) -> None:
    """Compose must never read a file outside the roots; everything it shows was allowed."""
    app, outside = tmp_path / "root" / "app", tmp_path / "outside"
    for folder in (app / "a", outside / "a"):
        folder.mkdir(parents=True, exist_ok=True)
    if not (app / "link").is_symlink():
        (app / "link").symlink_to("a")
        (app / "out").symlink_to(outside)
        (outside / "x").write_text("services: {web: {image: x, scale: 7, labels: {not-for-you: x}}}\n")
        (app / "a" / "x").write_text("services: {web: {image: x}}\n")
    named = json.dumps(f"{path}/x")
    texts = {
        "include": f"include: [{named}]\n",
        "extends": f"services: {{web: {{extends: {{file: {named}, service: web}}}}}}\n",
        "env_file": f"services: {{web: {{image: x, env_file: {named}}}}}\n",
        "file": "services: {}\n",
    }
    (app / "compose.yaml").write_text(texts[way])
    (app / ".env").write_text(f"UP=..\n{f'COMPOSE_FILE={path}/x' if way == 'file' else ''}\n")
    rules = Rules([os.path.realpath(tmp_path / "root")])
    reading = asyncio.run(read_project(installed("docker-compose"), str(app.resolve()), {"HOME": str(app)}, rules))
    assert "not-for-you" not in reading.problem
    assert reading.replicas.get("web") != 7


@pytest.mark.parametrize(
    "text",
    [
        "allow_providers = 'model'\n",
        "allow_providers = [1]\n",
        "allow_remote_resources = 'yes'\n",
        "allow_bind_mounts = 'no'\n",
        "allow_bind_mounts = ['srv']\n",
        "allow_bind_mounts = 1\n",
        "allow_paths = ['']\n",
        "allow_paths = '/etc'\n",
    ],
)
def test_malformed_policy_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="allow_"):
        parse_rules(f"allowed_roots = ['/srv']\n{text}")


def test_policy_options_override_defaults() -> None:
    assert parse_rules("allowed_roots = ['/srv']\n") == Rules(("/srv",))
    every = parse_rules(
        "allowed_roots = []\nallow_paths = ['/a']\nallow_providers = ['model']\n"
        "allow_remote_resources = true\nallow_bind_mounts = ['/b']\n"
    )
    assert every == Rules((), ("/a",), frozenset({"model"}), remote=True, binds=("/b",))


def test_large_file_inspection_is_bounded() -> None:
    large = "x: [" + "a, " * 90_000 + "]\n"
    entries = ", ".join(f"{{path: large.yaml, env_file: {n}.env}}" for n in range(20))
    files = {f"{n}.env": f"V{n}=1\n" for n in range(20)} | {"large.yaml": large}
    began = time.monotonic()
    assert code(f"include: [{entries}]\n", files=files) == "unreadable_compose_file"
    assert (
        code("include: [1.y, 2.y, 3.y, 4.y, 5.y]\n", files={f"{n}.y": "# " + "x" * 900_000 for n in range(1, 6)}) != ""
    )
    assert time.monotonic() - began < 30


def test_own_config_files_replace_default_compose_files() -> None:
    there = {
        "/srv/app/compose.yaml": "services: {web: {provider: {type: evil}}}",
        "/srv/app/.env": "COMPOSE_FILE=/etc/other.yaml",
        "/srv/app/deploy/prod.yaml": "include: [more.yaml]",
        "/srv/app/deploy/more.yaml": "services: {web: {image: x}}",
        "/srv/app/last.yaml": "services: {web: {image: y}}",
    }
    told = walked(there, own=["deploy/prod.yaml", "last.yaml"])
    assert told.refusal is None
    assert told.config_files == ("/srv/app/deploy/prod.yaml", "/srv/app/last.yaml")
    assert "/srv/app/deploy/.env" in told.files, "Compose reads the settings beside the first file"
    assert not {"/srv/app/.env", "/srv/app/compose.yaml"} & set(told.files)


@pytest.mark.parametrize(
    ("content", "links", "code"),
    [
        ("services: {web: {provider: {type: evil}}}", {}, "provider_not_allowed"),
        ("services: {}", {"/srv/app/prod.yaml": "/etc/x.yaml"}, "path_not_allowed"),
    ],
)
def test_own_config_files_must_follow_host_policy(content: str, links: dict[str, str], code: str) -> None:
    told = walked({links.get("/srv/app/prod.yaml", "/srv/app/prod.yaml"): content}, links=links, own=["prod.yaml"])
    assert told.refusal is not None
    assert told.refusal.code == code
