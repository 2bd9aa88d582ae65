"""Any JSON value in any place of a document: what a hand, a merge or another program may leave in a file."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

Place = tuple[str | int, ...]

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e-300, "", "a" * 2000, "../x", "\x1b[31m", "auto"])
    | st.floats()
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def places(document: Any, where: Place = ()) -> Iterator[Place]:
    """Every place in a JSON document, that of the whole first."""
    yield where
    inside = enumerate(document) if isinstance(document, list) else ()
    for key, value in document.items() if isinstance(document, dict) else inside:
        yield from places(value, (*where, key))


def replaced(document: Any, place: Place, value: Any) -> Any:
    """A copy of the document with another value in this place."""
    if not place:
        return value
    copy = document.copy()
    copy[place[0]] = replaced(document[place[0]], place[1:], value)
    return copy


def found(model: Any, place: Place) -> Any:
    """The value in this place of a pydantic model."""
    for key in place:
        model = getattr(model, str(key)) if isinstance(model, BaseModel) else model[key]
    return model
