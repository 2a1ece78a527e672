from __future__ import annotations

import pytest

from danlu.data.template import Template
from danlu.errors import DataError, RecipeError


def test_a_name_is_the_field_and_a_template_joins_fields() -> None:
    row = {"a": "1", "b": "{x}"}
    assert Template.parse("a").render(row, "f:1") == "1"
    assert Template.parse("{{{b}}}: {a}{a}!").render(row, "f:1") == "{{x}}: 11!"
    assert Template.parse("{b}{a}{b}").fields == ("b", "a")


@pytest.mark.parametrize("field", ["", "{", "}", "{}", "{a.b} {", "{a!r}", "{a:>5}", "{{a}}"])
def test_what_is_no_template_is_refused(field: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.field"):
        Template.parse(field)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"txet": "x"}, "f:3: the row has no field 'text'. Did you mean 'txet'?"),
        ({}, "f:3: the row has no field 'text'."),
        ({"text": 3}, "f:3: field 'text' is int, not a string"),
        ({"text": None}, "f:3: field 'text' is null, not a string"),
    ],
)
def test_a_row_without_the_text_is_refused(row: dict[str, object], says: str) -> None:
    with pytest.raises(DataError) as caught:
        Template.parse("text").render(row, "f:3")
    assert str(caught.value).startswith(says)
