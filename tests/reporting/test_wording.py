from stages.reporting import wording


def test_numbers_and_names_are_for_people():
    assert wording.scientific(1.25e-3) == "1.25e-3"
    assert wording.points(-1e-5) == "+0.00"
    assert (wording.p_value(0.0123), wording.p_value(0)) == ("p = 0.012", "p < 1e-99")
    assert wording.duration(59.96) == "1 min 00 s"
    assert [wording.short(name, 8) for name in ("abcdefghi", "a\nb\x1bm")] == ["abcd…ghi", "a b\\x1bm"]
