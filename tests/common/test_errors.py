import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.common.errors import explain, listed, printable, shown
from stages.common.params import Section


class Outer(Section):
    class Inner(Section):
        size: int

    name: str
    inner: Inner


@given(st.text())
def test_any_text_is_made_one_printable_line_of_bounded_length(text):
    for line, most in ((printable(text), 300), (printable(text, 9), 9), (shown(text), 80)):
        assert line.isprintable()
        assert len(line) <= most


def test_what_is_printable_stays_white_space_becomes_one_space_and_a_list_has_an_end():
    assert [shown(value) for value in ("café\u202e", [1, None])] == ["'café\\u202e'", "[1, None]"]
    assert printable(" a\n\tb  é × 猫\x00") == "a b é × 猫\\x00"
    assert [printable("x" * length, 60) for length in (60, 61)] == ["x" * 60, "x" * 57 + "..."]
    assert [listed(list(of)) for of in ("abcde", "abcdefg")] == ["a; b; c; d; e", "a; b; c; d; e; and 2 more"]


def test_a_problem_names_its_key_its_value_and_what_is_allowed_or_known():
    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"name": 3, "inner": {"size2": 2}})
    problems = "name = 3: must be a valid string; inner.size is missing; inner.size2 is unknown; known here: size"
    assert explain(error.value, Outer) == problems
