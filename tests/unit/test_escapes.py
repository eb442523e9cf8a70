import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.patterns import opened


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (r"a\nb", "a \nb"),
        (r"a\tb", "a \tb"),
        (r"a\\nb", "a\\ \nb"),
        (r"a\u0022b", 'a     "b'),
        (r"a\u003Db", "a     =b"),
        ("a\x1b[1;32mb", "a       b"),
        (r"a\u0041\d\x41", r"a\u0041\d\x41"),
    ],
)
def test_an_escape_gives_way_to_what_it_means(text: str, seen: str) -> None:
    assert opened(text) == seen


@given(st.text(alphabet="\\nrtu0234d\x1b[;m\u20ac"))
def test_every_character_stays_in_its_place(text: str) -> None:
    seen = opened(text)

    assert len(seen) == len(text)
    assert all(was in "\\nrtu0234d\x1b[;m" for was, now in zip(text, seen, strict=True) if was != now)
