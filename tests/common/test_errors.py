import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.common.errors import explain, listed, printable, shown
from stages.common.params import Section


class Inner(Section):
    size: int


class Outer(Section):
    name: str
    inner: Inner


def test_a_value_is_shown_as_python_writes_it_printable_and_short():
    assert [shown(value) for value in ("café", [1, None, True])] == ["'café'", "[1, None, True]"]
    assert shown("a\x1b[31m\u202e") == "'a\\x1b[31m\\u202e'"
    assert shown("x" * 10_000) == "'" + "x" * 76 + "..."


@given(st.text())
def test_any_text_is_made_one_printable_line_of_bounded_length(text):
    for line, most in ((printable(text), 300), (printable(text, 9), 9), (shown(text), 80)):
        assert line.isprintable()
        assert len(line) <= most


def test_what_is_printable_stays_and_white_space_becomes_one_space():
    assert printable(" a\n\tb  é × 猫\x00") == "a b é × 猫\\x00"
    assert printable("x" * 60, 60) == "x" * 60


def test_the_first_problems_are_listed_and_the_others_counted():
    assert listed(list("abcde")) == "a; b; c; d; e"
    assert listed(list("abcdefg")) == "a; b; c; d; e; and 2 more"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"name": 3, "inner": {}}, "name = 3: must be a valid string; inner.size is missing"),
        ({"name": "a", "inner": {"size": 1, "size2": 2}}, "inner.size2 is unknown; known here: size"),
    ],
)
def test_a_problem_names_its_key_its_value_and_what_is_allowed_or_known(values, line):
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(values)
    assert explain(error.value, Outer) == line
