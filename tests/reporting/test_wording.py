from stages.reporting import wording


def test_numbers_and_names_are_for_people():
    assert wording.scientific(1.25e-3) == "1.25e-3"
    assert wording.points(-1e-5) == "+0.00"
    assert [wording.p_value(p) for p in (0.0123, 0.04997, 0)] == ["p = 0.012", "p = 0.04997", "p < 1e-99"]
    assert [wording.duration(seconds) for seconds in (59.96, 3600)] == ["1 min 00 s", "1 h 00 min"]
    assert [wording.short(name, 8) for name in ("abcdefghi", "a\nb\x1bm")] == ["abcd…ghi", "a b\\x1bm"]
