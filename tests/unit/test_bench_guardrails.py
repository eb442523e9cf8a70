"""What the benchmark of detectors reads, and how it counts."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guardrails.base import DetectorError
from models.errors import ConfigError
from models.finding import Finding, Segment
from service.bench import guardrails
from service.bench.guardrails import OF_THE_DATA, Score, as_object, read, run, table, worst_inputs

Json = dict[str, Any]


class Words:
    """Finds each word that `kinds` has a pattern for."""

    name = "words"
    revision = "1"
    reach: int | None = 0
    inline = True

    def __init__(self, **patterns: str) -> None:
        self.kinds = frozenset(patterns)
        self._patterns = {kind: re.compile(pattern) for kind, pattern in patterns.items()}

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        return [
            Finding(segment.index, kind, match.start(), match.end())
            for segment in segments
            for kind, pattern in self._patterns.items()
            for match in pattern.finditer(segment.text)
        ]


class Broken(Words):
    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        del segments
        raise DetectorError("the dictionary is closed")


def written(folder: Path, *lines: Json | str, name: str = "set.jsonl") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return folder


async def counted(folder: Path, detector: Words) -> Json:
    """Of the one set in `folder`."""
    (labelled,) = read(folder)
    score = Score(labelled, detector.kinds)
    for case in labelled.cases:
        score.add(case, await detector.detect([Segment(0, case.text)]))
    return score.as_object()


async def test_a_label_is_found_when_all_its_letters_and_digits_are(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {"text": "call (030) 12 34 now", "spans": [{"start": 5, "end": 16, "kind": "phone"}]},
        {"text": "call 030-99", "spans": [["PHONE_NUMBER", 5, 11, "030-99"]]},
        {"text": "call nobody", "spans": []},
    )

    result = await counted(folder, Words(phone=r"030\) 12 34|030"))

    phone = result["kinds"]["phone"]
    assert (phone["labelled"], phone["found"], phone["partly"], phone["recall"]) == (2, 1, 1, 0.5)
    assert (phone["reported"], phone["right"], phone["precision"]) == (2, 2, 1.0)
    assert result["missed"] == [{"place": "set.jsonl:2", "kind": "phone", "start": 5, "end": 11}]


async def test_what_no_label_of_its_kind_overlaps_is_a_false_alarm(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {"text": "ada lives in Rome", "spans": [{"start": 0, "end": 3, "kind": "person"}]},
        {"text": "Rome and ada", "spans": []},
        {"text": "nothing here", "positive": False},
        {"text": "ada again", "positive": False},
    )

    result = await counted(folder, Words(person="ada", place="Rome"))

    assert result["kinds"]["person"]["precision"] == 0.5
    assert result["kinds"]["place"]["precision"] == 0.0
    assert result["false_alarms"] == {"texts": 4, "with_one": 3, "by_kind": {"place": 2, "person": 2}}


async def test_a_positive_text_counts_as_found_whatever_is_found_in_it(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {"text": "token abc", "label": 1, "rule": "vendor"},
        {"text": "token ???", "label": 1, "rule": "vendor"},
        {"text": "token abc", "label": 1, "rule": "other"},
    )

    result = await counted(folder, Words(token="abc"))

    assert result["positive"] == {"texts": 3, "found": 2, "recall": 0.6667}
    assert result["groups"] == {"other": {"texts": 1, "found": 1}, "vendor": {"texts": 2, "found": 1}}
    assert result["missed"] == [{"place": "set.jsonl:2", "group": "vendor"}]


async def test_only_the_kinds_a_text_is_about_are_judged(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {"text": "ada in Rome", "recognizer": "person", "label": 1, "positions": [[0, 3]]},
        {"text": "Rome", "kinds": ["person"], "positive": False},
        {"text": "AB 12 CDE", "recognizer": "licence_plate", "label": 1, "positions": [[0, 9]]},
    )

    result = await counted(folder, Words(person="ada", place="Rome"))

    assert list(result["kinds"]) == ["person"]
    assert result["false_alarms"] == {"texts": 2, "with_one": 0, "by_kind": {}}
    assert result["not_looked_for"] == {"licence_plate": 1}


async def test_numbers_whose_check_digits_are_wrong_are_counted_apart(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {"text": "4111 1111 1111 1111", "spans": [["CREDIT_CARD", 0, 19]]},
        {"text": "4111 1111 1111 1112", "spans": [["CREDIT_CARD", 0, 19]]},
        {"text": "not even digits", "spans": [["CREDIT_CARD", 0, 15]]},
        {"text": "ÄÖ no account", "spans": [["IBAN_CODE", 0, 13]]},
    )

    result = await counted(folder, Words(credit_card="[0-9 ]{19}", iban="XX"))

    card = result["kinds"]["credit_card"]
    assert (card["labelled"], card["invalid"], card["found"], card["precision"]) == (1, 2, 1, 1.0)
    assert result["kinds"]["iban"]["invalid"] == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{not json", "no JSON"),
        ("[" * 5000, "no JSON"),
        ('["a"]', "no text"),
        ({"text": ""}, "no text"),
        ({"text": 5, "label": 1}, "no text"),
        ({"text": "a"}, "no label"),
        ({"text": "a", "label": None}, "no label"),
        ({"text": "a", "label": "toxic"}, "no label"),
        ({"text": "a", "spans": [["x", 0, 2]]}, "spans outside the text"),
        ({"text": "a", "spans": [["x", 1, 0]]}, "spans outside the text"),
        ({"text": "a", "spans": ["x"]}, "spans that are none"),
        ({"text": "a", "spans": 5}, "spans that are none"),
    ],
)
def test_a_line_that_says_nothing_is_counted_with_the_reason(tmp_path: Path, line: Json | str, why: str) -> None:
    folder = written(tmp_path, {"text": "a", "label": 0}, line)

    (labelled,) = read(folder)

    assert labelled.unread == {why: 1}
    assert len(labelled.cases) == 1


def test_a_folder_is_read_with_those_in_it_and_a_file_alone(tmp_path: Path) -> None:
    written(tmp_path, {"text": "a", "label": 0}, name="b.jsonl")
    written(tmp_path, {"text": "b", "label": 0}, name="inner/a.jsonl")

    assert [labelled.name for labelled in read(tmp_path)] == ["b.jsonl", "inner/a.jsonl"]
    assert [labelled.name for labelled in read(tmp_path / "b.jsonl")] == ["b.jsonl"]


@pytest.mark.parametrize("name", ["empty.jsonl", "notes.txt"])
def test_nothing_to_measure_is_an_error_that_names_the_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "no label"}')

    with pytest.raises(ConfigError, match=r"docs/guardrails\.md"):
        read(tmp_path)


def test_a_folder_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="elsewhere: there is no such file or folder"):
        read(tmp_path / "elsewhere")


def test_kinds_have_other_names_in_other_places(tmp_path: Path) -> None:
    folder = written(tmp_path, {"text": "a b", "spans": [["MOBILE", 0, 1], ["EMAIL_ADDRESS", 2, 3]]})

    (labelled,) = read(folder, aliases={"mobile": "phone"})

    assert labelled.cases[0].labels is not None
    assert [label.kind for label in labelled.cases[0].labels] == ["phone", "email"]


def test_a_run_gives_the_same_figures_as_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(
        tmp_path,
        {"text": "ada", "spans": [["person", 0, 3]]},
        {"text": "abc", "label": 1, "rule": "vendor"},
        {"text": "x ada", "label": 0},
        "{",
    )

    result = as_object(*run(read(folder), [Words(person="ada", place="Rome")], kinds={"person"}))
    shown = table(result)

    assert "set.jsonl: 3 texts" in shown
    assert "not read: 1 texts (no JSON)" in shown
    assert "found 0 of 1: 0.00 %" in shown
    assert "vendor: missed 1 of 1" in shown
    assert re.search(r"person +1 +1 +100\.00 % +0 +0 +1 +100\.00 %", shown)
    assert "false alarms in 1 of 2 texts: person 1" in shown
    assert set(result["speed"]["words"]["worst"]) == {OF_THE_DATA, *worst_inputs(1024)}
    assert capsys.readouterr().out == ""


def test_a_long_run_tells_on_stderr_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, *({"text": f"text {number}", "label": 0} for number in range(3)))
    monkeypatch.setattr(guardrails, "_PROGRESS", 0.0)

    run(read(folder), [Words(person="ada")])

    told = capsys.readouterr()
    assert "set.jsonl: 2 of 3 texts" in told.err
    assert "words: speed on" in told.err
    assert told.out == ""


def test_texts_a_detector_could_not_look_at_are_told(tmp_path: Path) -> None:
    folder = written(tmp_path, {"text": "ada", "label": 1}, {"text": "eve", "label": 0})

    result = as_object(*run(read(folder), [Broken(person="ada")]))

    one = result["sets"]["set.jsonl"]
    assert one["failed"] == {"words: the dictionary is closed": 2}
    assert one["positive"]["texts"] == 0
    assert "could not look: 2 texts (words: the dictionary is closed)" in table(result)
    assert result["speed"] == {"words": None}


def test_a_kilobyte_is_timed_in_texts_of_four_however_little_there_is(tmp_path: Path) -> None:
    seen: list[str] = []

    class Reader(Words):
        async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
            seen.extend(segment.text for segment in segments)
            return ()

    folder = written(tmp_path, {"text": "ada", "label": 0}, {"text": "eve", "label": 0})

    run(read(folder), [Reader(person="ada")])

    repeated = [text for text in seen if set(text) == set("ada\neve")]
    assert {len(text) for text in repeated} == {4096}


def test_worst_inputs_are_of_the_length_asked_for_and_the_same_each_time() -> None:
    inputs = worst_inputs(3000)

    assert inputs == worst_inputs(3000)
    assert {name: len(text) for name, text in inputs.items() if not 2700 <= len(text) <= 3000} == {}
