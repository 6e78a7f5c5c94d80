"""Every invalid value of every field of every body gets a sentence of ours, without Pydantic's wording."""

import pytest
from moorage_controller.api.http.field_errors import UNKNOWN, field_errors
from moorage_controller.api.routes import ROUTES
from pydantic import BaseModel, ValidationError

SQLITE_ONLY = "what lies between the socket and the services asks no database"

WRONG = [None, True, -1, 10**30, 1.5, "", "x", "x" * 20_000, "\ud800", "a\0b", [], ["x"] * 60, [1], {}, {"a": 1}]
BODIES = sorted({route.body for route in ROUTES if route.body is not None}, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_wrong_values_get_moorage_sentences(model: type[BaseModel]) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]
    told: list[str] = []
    for document in [{}, *({name: value} for name in names for value in WRONG)]:
        try:
            model.model_validate(document)
        except ValidationError as error:
            told += field_errors(error).values()
    assert UNKNOWN not in told
    for sentence in told:
        assert sentence.endswith(".")
        assert "nput should" not in sentence
        assert "required" not in sentence
        assert "alid" not in sentence
