"""Replacements in a text, and where the rest has gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.redact import Edit, applied, difference, label, moved, origin, redaction


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    text = draw(st.text(max_size=40))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pairs = [(start, end) for start, end in zip(places[::2], places[1::2], strict=False) if start < end]
    return text, [Edit(start, end, draw(st.text(max_size=5))) for start, end in pairs]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("email", "EMAIL"),
        ("us-ssn", "US_SSN"),
        ("aws.key id", "AWS_KEY_ID"),
        ("1password", "X_1PASSWORD"),
        ("ключ", "X"),
        ("a" * 99, "A" * 48),
        ("a]<b>", "A_B"),
    ],
)
def test_a_label_is_plain_whatever_the_kind(kind: str, expected: str) -> None:
    assert label(kind) == expected
    assert redaction(kind) == f"[{expected}]"


def test_edits_count_in_code_points() -> None:
    text = "👩‍👩‍👧 e\u0301 שלום a@b.co מ"
    start = text.index("a@b.co")

    assert applied(text, [Edit(start, start + 6, "[EMAIL]")]) == "👩‍👩‍👧 e\u0301 שלום [EMAIL] מ"


@given(edited())
def test_nothing_outside_the_edits_changes(given_edits: tuple[str, list[Edit]]) -> None:
    text, edits = given_edits

    rest = applied(text, edits)

    at = 0
    for edit in edits:
        before = text[at : edit.start]
        assert rest.startswith(before + edit.text)
        rest = rest[len(before) + len(edit.text) :]
        at = edit.end
    assert rest == text[at:]


@given(edited())
def test_a_place_outside_moves_there_and_back(given_edits: tuple[str, list[Edit]]) -> None:
    text, edits = given_edits
    there = applied(text, edits)

    for place in range(len(text)):
        if not any(edit.start <= place < edit.end for edit in edits):
            assert there[moved(place, [e for e in edits if e.end <= place])] == text[place]
            now = moved(place, [e for e in edits if e.end <= place])
            assert origin(now, now + 1, edits) == (place, place + 1)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 2), (0, 2)),
        ((4, 6), (3, 9)),  # in the replacement: all it replaced
        ((0, 5), (0, 9)),
        ((8, 12), (3, 11)),
        ((10, 12), (9, 11)),
        ((3, 10), (3, 9)),
    ],
)
def test_a_span_of_the_edited_text_is_one_of_the_text(span: tuple[int, int], expected: tuple[int, int]) -> None:
    text, edits = "at a@b.cc ok", [Edit(3, 9, "[EMAIL]")]
    assert applied(text, edits) == "at [EMAIL] ok"

    assert origin(*span, edits) == expected


@pytest.mark.parametrize(("place", "expected"), [(0, 0), (3, 3), (5, 10), (9, 10), (11, 12)])
def test_a_place_inside_an_edit_moves_to_its_end(place: int, expected: int) -> None:
    assert moved(place, [Edit(3, 9, "[EMAIL]")]) == expected


@given(st.text(alphabet="ab"), st.text(alphabet="ab"))
def test_the_difference_makes_one_text_of_the_other(before: str, after: str) -> None:
    assert applied(before, [difference(before, after)]) == after
