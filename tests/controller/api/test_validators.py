"""Property tests of the validators: accepted values keep the contract's rules, everything else is a 422."""

import json
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moorage_controller.api import schemas
from moorage_controller.api.accounts import schemas as user_schemas
from moorage_controller.api.apps import schemas as app_schemas
from moorage_controller.api.fleet import schemas as server_schemas
from pydantic import TypeAdapter, ValidationError

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=600)
"""Includes lone surrogates: JSON can contain them, databases can't."""
SEGMENT = st.one_of(st.sampled_from(["", ".", "..", "...", "..a", " ", "~", "\0", "a\nb", "-rf", "$(id)"]), ANY_TEXT)
PATH = st.lists(SEGMENT, max_size=8).map("/".join)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)
TEXTS: dict[str, Any] = {
    "Name": schemas.Name,
    "Address": server_schemas.Address,
    "SshUser": server_schemas.SshUser,
    "Endpoint": schemas.Endpoint,
    "Description": schemas.Description,
    "CdPath": schemas.CdPath,
    "Url": schemas.Url,
    "Domain": schemas.Domain,
    "Email": user_schemas.Email,
    "FullName": user_schemas.FullName,
    "Password": user_schemas.Password,
}
BODIES = [
    schemas.LoginIn,
    server_schemas.ServerIn,
    server_schemas.ServerChanges,
    schemas.ProjectIn,
    schemas.ProjectChanges,
    app_schemas.AppIn,
    app_schemas.AppChanges,
    app_schemas.StartIn,
    app_schemas.StopIn,
    app_schemas.ExtendIn,
    schemas.EnrollIn,
    user_schemas.AccountIn,
    user_schemas.AccountChanges,
    user_schemas.PasswordIn,
    user_schemas.TokenIn,
]
GUESSES: list[type[schemas.Schema]] = [schemas.LoginIn, user_schemas.PasswordIn]
"""A guess at a password is only compared: it may be anything, and is never shown."""


def passed(kind: Any, value: object) -> Any:  # noqa: ANN401 - any field's type, any value
    """Return the validated value of a field, None where it is refused."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


@pytest.mark.parametrize("name", TEXTS)
def test_accepted_text_is_stable_and_encodable(name: str) -> None:
    @given(ANY_TEXT | PATH | st.emails() | st.ip_addresses().map("http://[{}]".format))
    @example("half a character \ud800")
    @settings(deadline=None)
    def check(text: str) -> None:
        found = passed(TEXTS[name], text)
        if found is not None:
            assert passed(TEXTS[name], found) == found
            found.encode()

    check()


@given(PATH)
@example("/srv/..")
@example("/srv/../etc")
@example("/srv/a\r\nb")
@settings(deadline=None, max_examples=500)
def test_cd_path_is_absolute_single_line_without_traversal(path: str) -> None:
    found = passed(schemas.CdPath, path)
    climbs = any(part == ".." for part in path.split("/"))
    if found is None:
        good = path.startswith("/") and not climbs and 0 < len(path) <= 500 and path.isprintable()
        assert not good, "a good one was refused"
        return
    assert found == path, "a path is never changed"
    assert path.startswith("/")
    assert not climbs
    assert not {"\0", "\n", "\r"} & set(path)
    assert len(path) <= 500
    assert os.path.normpath(path).lstrip("/") == os.path.normpath("/x/" + path).removeprefix("/x").lstrip("/")


@given(st.one_of(st.integers(), st.integers(-5, 50_000), st.floats(), st.booleans(), ANY_TEXT, ANY_JSON))
@example(True)  # noqa: FBT003 - what JSON has for a number here
@example(43_200)
@example(43_201)
@settings(deadline=None, max_examples=500)
def test_minutes_are_whole_from_1_to_43200(value: object) -> None:
    found = passed(schemas.Minutes, value)
    if isinstance(value, int) and not isinstance(value, bool):
        assert found == (value if 1 <= value <= 43_200 else None)
    elif found is not None:
        assert isinstance(value, (str, float))
        assert found == int(float(value))
        assert 1 <= found <= 43_200


@pytest.mark.parametrize("model", BODIES, ids=lambda model: str(model.__name__))
def test_arbitrary_body_causes_only_validation_errors(model: type[schemas.Schema]) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]

    @given(st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANY_JSON | ANY_TEXT | PATH)))
    @settings(deadline=None)
    def check(body: dict[str, object]) -> None:
        found = passed(model, body)
        if found is not None and model not in GUESSES:
            json.loads(found.model_dump_json())

    check()
