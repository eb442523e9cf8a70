"""Placeholders that stand for values, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.placeholders import Placeholders, open_prefix, restorations, restore
from guardrails.redact import Edit, applied

HERE = Placeholders(b"the key of this group of workers")
ANN = "ann@example.com"

# Text that is full of what looks like placeholders, or nearly.
TRICKY = st.lists(
    st.sampled_from(
        ["<", ">", "<EMAIL_", "7f3a9c", "<EMAIL_7f3a9c>", "<A_000000>", "EMAIL", "_", "e\u0301", "👩‍👧", "ש"]
    )
    | st.text(max_size=3)
).map("".join)


def masked(text: str, spans: list[tuple[int, int]], issued: dict[str, str]) -> str:
    edits = [Edit(start, end, HERE.issue("email", text[start:end], issued)) for start, end in spans]
    return applied(text, sorted([*edits, *HERE.escapes(text, issued, beside=edits)]))


def test_a_placeholder_tells_its_kind_and_nothing_else() -> None:
    placeholder = HERE.issue("email", ANN, {})

    assert placeholder.startswith("<EMAIL_")
    assert len(placeholder) == len("<EMAIL_7f3a9c>")
    assert "ann" not in placeholder


def test_the_same_value_has_the_same_placeholder_wherever_the_key_is() -> None:
    there = Placeholders(b"the key of this group of workers")

    assert there.issue("email", ANN, {}) == HERE.issue("email", ANN, {})
    assert there.revision == HERE.revision


def test_another_key_makes_others() -> None:
    other = Placeholders(b"the key of another installation.")

    assert other.issue("email", ANN, {}) != HERE.issue("email", ANN, {})
    assert other.revision != HERE.revision


def test_another_kind_or_value_is_another_placeholder() -> None:
    issued: dict[str, str] = {}

    found = {HERE.issue("email", ANN, issued), HERE.issue("user", ANN, issued), HERE.issue("email", "bob", issued)}

    assert len(found) == 3
    assert set(issued) == found


def test_where_two_values_collide_the_second_is_longer() -> None:
    short = HERE.issue("email", ANN, {})
    issued = {short: "somebody else"}

    longer = HERE.issue("email", ANN, issued)

    assert longer.startswith(short[:-1])
    assert len(longer) == len(short) + 4
    assert restore(f"{short} {longer}", issued) == f"somebody else {ANN}"


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Placeholders(b"short")


@given(TRICKY, st.data())
def test_what_was_masked_is_restored(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = list(zip(places[::2], places[1::2], strict=False))
    issued: dict[str, str] = {}

    there = masked(text, spans, issued)

    assert restore(there, issued) == text


@given(TRICKY)
def test_everything_that_looks_like_a_placeholder_upstream_was_issued(text: str) -> None:
    issued: dict[str, str] = {}

    there = masked(text, [], issued)

    assert all(found.text in issued.values() for found in restorations(there, issued))
    assert masked(there, [], {}).count("<") == there.count("<")
    assert restore(there, {}) == there


def test_only_what_was_issued_is_restored() -> None:
    issued: dict[str, str] = {}
    mine = HERE.issue("email", ANN, issued)

    assert restore(f"{mine} <EMAIL_000000> {mine[1:-1]}", issued) == f"{ANN} <EMAIL_000000> {mine[1:-1]}"


def test_a_value_that_looks_like_a_placeholder_is_not_restored_twice() -> None:
    assert restore("<A_000001>", {"<A_000001>": "<A_000002>", "<A_000002>": "no"}) == "<A_000002>"


def test_a_literal_of_the_caller_never_gets_somebodys_value() -> None:
    issued: dict[str, str] = {}
    literal = HERE.issue("email", ANN, {})  # what a caller could have seen earlier
    text = f"{literal} is {ANN}"

    there = masked(text, [(len(text) - len(ANN), len(text))], issued)

    assert there.endswith(f" is {literal}")
    assert not there.startswith(literal)
    assert restore(there, issued) == text


VALUES = st.text().filter(lambda value: not any("\ud800" <= c <= "\udfff" for c in value))


@given(VALUES)
def test_in_json_a_value_is_written_as_json_needs(value: str) -> None:
    issued: dict[str, str] = {}
    placeholder = HERE.issue("email", value, issued)

    restored = restore(json.dumps({"to": f"{placeholder}!"}), issued, json=True)

    assert json.loads(restored) == {"to": f"{value}!"}


def test_in_json_brackets_may_be_escapes() -> None:
    issued: dict[str, str] = {}
    name = HERE.issue("email", ANN, issued)[1:-1]

    assert restore(rf'{{"to": "\u003c{name}\u003E"}}', issued, json=True) == f'{{"to": "{ANN}"}}'
    assert restore(rf'{{"to": "\\u003c{name}>"}}', issued, json=True) == rf'{{"to": "\\u003c{name}>"}}'


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("hello", 5),
        ("", 0),
        ("a <", 2),
        ("a <E", 2),
        ("a <EMAIL_", 2),
        ("a <EMAIL_7f3", 2),
        ("a <EMAIL_7f3a9c>", 16),
        ("a < b", 5),
        ("a <b", 4),
        ("<<E", 1),
        ("<EMAIL_7f3a9c> <EM", 15),
        ("<" + "A" * 300, 301),
    ],
)
def test_the_end_of_a_text_may_be_the_beginning_of_a_placeholder(text: str, opened: int) -> None:
    assert open_prefix(text) == opened


def test_with_what_was_issued_only_the_beginning_of_that_is_open() -> None:
    assert open_prefix("a <EMAIL_7f", {"<EMAIL_7f3a9c>": ""}) == 2
    assert open_prefix("a <EMAIL_8f", {"<EMAIL_7f3a9c>": ""}) == 11


@pytest.mark.parametrize("text", [r"a \u003", r"a \u003cEM", "a \\", r"a <EMAIL_7f3a9c\u00", "a <EM"])
def test_in_json_an_escape_may_be_open(text: str) -> None:
    assert open_prefix(text, json=True) == 2


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("a \\\\", 4),
        ("a \\\\\\", 4),
        (r"a \\u003", 8),
        (r"a \\u003cEM", 11),
        (r"a \\\u003cEM", 4),
        (r"a \\<EM", 4),
        (r"a \\<EM\u00", 4),
        (r"\\u003cA\u003c", 8),
    ],
)
def test_of_an_escaped_backslash_no_escape_begins(text: str, opened: int) -> None:
    assert open_prefix(text, json=True) == opened


@given(st.text(max_size=5), st.text(max_size=5), st.integers(0, 200))
def test_no_cut_through_a_placeholder_is_closed(before: str, value: str, cut: int) -> None:
    placeholder = HERE.issue("email", value, {})
    end = len(before) + 1 + cut % (len(placeholder) - 1)

    assert open_prefix(f"{before}{placeholder}"[:end]) <= len(before)


def test_a_million_brackets_take_no_time_to_speak_of() -> None:
    text = "<A_" * 300_000 + "<AAAA_" + "A_" * 200_000

    assert HERE.escapes(text, {}) == []
    assert open_prefix(text) == len(text)
    assert open_prefix("\\" * 1_000_001, json=True) == 1_000_000
