import math

import pytest
from dvc.utils.serialize import parse_yaml as parse_as_dvc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.common.yaml12 import MAX_BYTES, parse_yaml, read_yaml

SCALARS = [
    "1",
    "-1",
    "+1",
    "0",
    "007",
    "0o17",
    "0x1F",
    "1e-05",
    "1e5",
    "5E-4",
    "1.",
    ".5",
    "-.5",
    "+.5",
    "1.5e+3",
    "1:30",
    ".inf",
    "-.Inf",
    "+.INF",
    ".nan",
    ".NaN",
    "~",
    "null",
    "Null",
    "NULL",
    "nULL",
    "true",
    "True",
    "TRUE",
    "tRUE",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "false",
    "auto",
    "1e",
    "0x",
    "1.2.3",
    "-",
]


@pytest.mark.parametrize("text", [*SCALARS, "'1'", '"no"', "[1, a]", "{a: 1}", "\ufeffa: 1", "a: |\n  b\n", "é"])
def test_a_document_is_read_as_dvc_reads_it(text):
    document = f"{{x: {text}}}" if text in SCALARS else text
    ours, theirs = parse_yaml(document, "x"), parse_as_dvc(document, "x")
    if text.lower() == ".nan":
        assert math.isnan(ours["x"])
        assert math.isnan(theirs["x"])
    else:
        assert ours == theirs
        assert str(ours) == str(theirs)  # 1 is neither 1.0 nor true


@pytest.mark.parametrize("text", ["1_000", "0b1", "2020-01-01"])
def test_what_dvc_reads_as_more_than_yaml_1_2_has_stays_a_text_that_no_number_is_taken_for(text):
    assert parse_yaml(text, "x") == text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(9 * [f'*{chr(97 + i)}'])}]\n" for i in range(20)
)
REFUSED = {
    "5,000 digits": "seed: " + 5000 * "7",
    "5,000 brackets": 5000 * "[",
    "5,000 brackets closed": 5000 * "[" + 5000 * "]",
    "tab": "a:\n\tb: 1",
    "control character": "a: \x00",
    "key twice": "a: 1\na: 2",
    "key twice below": "a: {b: 1, b: 1}",
    "mapping as key": "? {a: 1}\n: 2",
    "undefined alias": "a: *b",
    "two documents": "a: 1\n---\na: 2",
    "object": "a: !!python/object/apply:os.system [ls]",
    "wrong bool": "a: !!bool x",
    "wrong float": "a: !!float x",
    "wrong int": "a: !!int x",
    "wrong time": "a: !!timestamp x",
    "wrong bytes": "a: !!binary 'ä'",
    "conflict": "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> x\n",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_document_is_refused_in_one_line(text):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "params.yaml")
    assert str(error.value).startswith("params.yaml: not valid YAML: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_aliases_of_aliases_take_no_more_memory_than_their_text():
    assert len(parse_yaml(BOMB, "params.yaml")) == 21  # 9**20 words when written out


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.sampled_from("!&*%@`|>{}[]<:,-?#'\"ab1. \n\t~"), max_size=40) | st.text(max_size=40))
def test_any_text_is_a_document_or_refused_in_one_line(tried, text):
    try:
        parse_yaml(text, "params.yaml")
        tried("any text as YAML", "read as it is")
    except UserError as error:
        tried("any text as YAML", "named in one line")
        assert str(error).isprintable()
        assert len(str(error)) < 400


def test_files_that_are_missing_large_or_no_text_are_named(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml: no such file here; run this in the folder of the project"):
        read_yaml(path)
    path.write_bytes("launcher: café".encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml: cannot be read: .*utf-8"):
        read_yaml(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match=r"params\.yaml: larger than 1,048,576 bytes"):
        read_yaml(path)
    with pytest.raises(UserError, match="zero: no such file"):
        read_yaml(path.parent / "zero")
