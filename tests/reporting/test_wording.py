import pytest
from markdown_it import MarkdownIt

from stages.reporting import wording


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (wording.scientific, 1.25e-3, "1.25e-3"),
        (wording.points, -1e-5, "+0.00"),
        (wording.p_value, 0.0123, "p = 0.012"),
        (wording.p_value, 0, "p < 1e-99"),
        (wording.duration, 59.96, "1 min 00 s"),
        (lambda name: wording.short(name, 8), "abcdefghi", "abcd…ghi"),
        (lambda name: wording.short(name, 8), "a\nb\x1bm", "a b\\x1bm"),
    ],
)
def test_numbers_and_names_are_for_people(function, value, text):
    assert function(value) == text


def test_markdown_shows_any_name_as_it_is_and_github_finds_nothing_to_link():
    links = "www.evil.example http://x.y a@b.c @somebody #123 o/r#4 GH-5 WWW.X.Y :cat:"
    name = f"`a` |*b* _c_ [d](e) <!--<script> ~~f~~ $g$ \\| &amp; {links}"
    (token,) = MarkdownIt("commonmark").enable("table").parseInline(wording.markdown(name))
    assert {child.type for child in token.children} <= {"text", "text_special"}
    shown = "".join(child.content for child in token.children)
    assert shown.replace("\u200b", "") == name
    broken = "www|.evil.example http:|//x.y a@|b.c @|somebody #|123 o/r#|4 GH|-5 WWW|.X.Y :|cat:"
    assert shown.endswith(broken.replace("|", "\u200b"))
