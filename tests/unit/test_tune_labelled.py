"""Files of labels as people have them: what counts, what is skipped, and what is said about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.tune import labelled
from service.tune.labelled import Labelled, Question, digest
from service.tune.lot import Lot


def read(tmp_path: Path, *lines: Any, most_pairs: int = 10_000) -> Labelled:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines))
    return labelled.read(file, most_pairs=most_pairs)


def pair(a: str, b: str, label: Any, **more: Any) -> dict[str, Any]:
    return {"a": a, "b": b, "label": label, **more}


def test_a_pair_has_no_direction_and_people_labelled_it_unless_said_otherwise(tmp_path: Path) -> None:
    found = read(tmp_path, pair("b?", "a?", 1), pair("c?", "d?", 0, by="judge"))

    assert [(one.asked, one.stored, one.wrong, one.by) for one in found.pairs] == [
        ("a?", "b?", False, "people"),
        ("c?", "d?", True, "judge"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{not json", "no JSON in UTF-8"),
        (b'{"a": "\xff", "b": "b", "label": 1}', "no JSON in UTF-8"),
        (b"[" * 100_000, "no JSON in UTF-8"),
        ({"a": "a", "b": "b"}, "neither a, b and label (0 or 1) nor text and cluster"),
        (pair("a", "b", 2), "neither a, b and label (0 or 1) nor text and cluster"),
        (pair("a", "b", "1"), "neither a, b and label (0 or 1) nor text and cluster"),
        ([1, 2], "neither a, b and label (0 or 1) nor text and cluster"),
        ({"text": "a", "cluster": {}}, "neither a, b and label (0 or 1) nor text and cluster"),
        (pair("a", "b", 1, by="my cat"), "by is none of people, judge, automatic"),
        (pair("a", "b", 1, by=["people"]), "by is none of people, judge, automatic"),
        (pair(" ", "b", 1), "an empty question"),
        ({"text": "\n", "cluster": "x"}, "an empty question"),
        (pair("a", "a", 0), "different from itself"),
        (pair("a", "a", 1), "twice the same text: the exact tier's"),
    ],
)
def test_a_bad_line_is_counted_named_and_skipped(tmp_path: Path, line: Any, why: str) -> None:
    found = read(tmp_path, pair("a?", "b?", 1), line, b"  ", pair("c?", "d?", 1))

    assert len(found.pairs) == 2
    assert found.unread == {why: 1}
    assert found.named == [f"pairs.jsonl:2: {why}"]


def test_only_the_first_bad_lines_are_named_and_none_is_quoted(tmp_path: Path) -> None:
    found = read(tmp_path, *[b"secret"] * 20)

    assert found.unread == {"no JSON in UTF-8": 20}
    assert len(found.named) == 5
    assert "secret" not in str(found.named)


def test_contradictory_labels_count_once_and_as_wrong(tmp_path: Path) -> None:
    found = read(tmp_path, pair("a", "b", 1), pair("b", "a", 0), pair("a", "b", 1))

    assert [one.wrong for one in found.pairs] == [True]
    assert (found.repeated, found.contradictory) == (2, 1)


def test_people_outweigh_what_was_compared_automatically(tmp_path: Path) -> None:
    found = read(tmp_path, pair("a", "b", 1), pair("b", "a", 0, by="automatic"))

    assert [(one.wrong, one.by) for one in found.pairs] == [(False, "people")]
    assert found.contradictory == 0


def test_a_question_in_two_clusters_is_nobodys(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"text": "a", "cluster": "x"},
        {"text": "b", "cluster": 7},
        {"text": "a", "cluster": "y"},
        {"text": "c", "cluster": "oos"},
        {"text": "d"},
    )

    assert found.questions == [
        Question("a", None, "people"),
        Question("b", "7", "people"),
        Question("c", None, "people"),
        Question("d", None, "people"),
    ]
    assert found.contradictory == 1


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "如何重置密码?", "👩‍👩‍👧‍👦🎉", "def f(x):\n    return {**x}", "\u202eevil", "\x00"]
)
def test_any_text_is_a_question(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, pair(text, "another", 0))

    assert {found.pairs[0].asked, found.pairs[0].stored} == {text, "another"}


def test_an_empty_file_has_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == Labelled([], [], {}, [], 0, 0, 0)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    found = read(tmp_path, b'{"a": "' + b"x" * (labelled.LONGEST_LINE + 10), pair("a", "b", 1))

    assert found.unread == {"longer than 16 MB": 1}
    assert len(found.pairs) == 1


def test_of_too_many_a_fair_share_is_kept_whatever_their_order(tmp_path: Path) -> None:
    lines = [pair(f"a{i}", f"b{i}", i % 2) for i in range(1_000)]

    found, turned = read(tmp_path, *lines, most_pairs=100), read(tmp_path, *lines[::-1], most_pairs=100)

    assert len(found.pairs) == 100
    assert found.left_out == 900
    assert 25 < sum(one.wrong for one in found.pairs) < 75
    assert {one.asked for one in found.pairs} == {one.asked for one in turned.pairs}


def test_a_lot_keeps_to_its_room() -> None:
    lot: Lot[int] = Lot(1_000, room=10_000)
    for i in range(500):
        lot.put(digest(str(i)), i, size=100)

    assert 40 < len(list(lot.items())) <= 100


def test_what_is_kept_always_is_not_drawn() -> None:
    always = {digest(str(i)) for i in range(10)}
    lot: Lot[int] = Lot(20, always=always)
    for i in reversed(range(500)):
        lot.put(digest(str(i)), i)

    assert set(range(10)) <= {item for _, item in lot.items()}
    assert len(list(lot.items())) == 30
