"""Times as people say them."""

from rskd.durations import about, exactly, span


def test_units_change_where_people_change_them():
    assert [about(n) for n in (0.2, 5, 89, 90, 5399, 5400)] == [
        "about 0 s", "about 5 s", "about 89 s", "about 2 min", "about 90 min", "about 1.5 h",
    ]  # fmt: skip


def test_a_span_names_its_unit_once_if_it_can():
    assert span(90, 5399) == "2 to 90 min"
    assert span(60, 120) == "60 s to 2 min"


def test_a_span_that_cannot_be_told_from_one_duration_is_one():
    assert span(230, 250) == "4 min"
    assert span(60.4, 89) == "60 to 89 s"


def test_what_is_over_is_told_exactly():
    assert [exactly(n) for n in (1, 59.6, 3599, 7260)] == ["1 second", "1 min 0 s", "59 min 59 s", "2 h 1 min"]
