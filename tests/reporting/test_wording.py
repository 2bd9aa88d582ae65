from markdown_it import MarkdownIt

from stages.reporting import wording


def test_numbers_and_names_are_for_people():
    assert wording.scientific(1.25e-3) == "1.25e-3"
    assert wording.points(-1e-5) == "+0.00"
    assert (wording.p_value(0.0123), wording.p_value(0)) == ("p = 0.012", "p < 1e-99")
    assert wording.duration(59.96) == "1 min 00 s"
    assert [wording.short(name, 8) for name in ("abcdefghi", "a\nb\x1bm")] == ["abcd…ghi", "a b\\x1bm"]


def test_markdown_shows_any_name_as_it_is_and_github_finds_nothing_to_link():
    links = "www.evil.example http://x.y a@b.c @somebody #123 o/r#4 GH-5 WWW.X.Y :cat:"
    name = f"`a` |*b* _c_ [d](e) <!--<script> ~~f~~ $g$ \\| &amp; {links}"
    (token,) = MarkdownIt("commonmark").enable("table").parseInline(wording.markdown(name))
    assert {child.type for child in token.children} <= {"text", "text_special"}
    shown = "".join(child.content for child in token.children)
    assert shown.replace("\u200b", "") == name
    broken = "www|.evil.example http:|//x.y a@|b.c @|somebody #|123 o/r#|4 GH|-5 WWW|.X.Y :|cat:"
    assert shown.endswith(broken.replace("|", "\u200b"))
