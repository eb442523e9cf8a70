"""The log of look-ups read for one endpoint, and verdicts written into it beside the gateway."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.caching.lookups import LOG, OLDER, Lookup, Row, Verdict, encoded, labels
from service.tune import lookup_log
from service.tune.lookup_log import Log, is_decided, learned
from service.tune.undecided import undecided

AROUND = (0.9, 0.1, 0.1, 0.9, 0.9, 1.0, 1.0, 0.9)


def lookup(asked: str = "q", entry: str = "e", **more: Any) -> Lookup:
    fields: dict[str, Any] = {"time": 100.0, "endpoint": "faq", "request_id": "r", "cosine": 0.9, "embedder": "emb"}
    fields |= {"verifier": "trees", "chance": 0.9, "agreement": AROUND}
    return Lookup(asked=asked, entry=entry, **{**fields, **more})


def verdict(asked: str = "q", entry: str = "e", *, wrong: bool = False, **more: Any) -> Verdict:
    fields: dict[str, Any] = {"time": 200.0, "endpoint": "faq", "by": "people"}
    return Verdict(asked=asked, entry=entry, wrong=wrong, **{**fields, **more})


def written(tmp_path: Path, *rows: Lookup | Verdict | bytes, name: str = LOG) -> Path:
    file = tmp_path / name
    file.write_bytes(b"".join(row if isinstance(row, bytes) else encoded(row) + b"\n" for row in rows))
    return file


def read(*files: Path, since: float | None = None, most: int = 1_000) -> Log:
    return lookup_log.read(files, endpoint="faq", embedder="emb", verifier="trees", since=since, most=most)


def test_a_pair_has_the_numbers_of_its_last_look_up_and_all_its_labels(tmp_path: Path) -> None:
    log = read(
        written(tmp_path, lookup(cosine=0.8, outcome="same"), lookup(cosine=0.7), verdict(wrong=True), lookup("other"))
    )

    first, second = learned(log, verifier=True).among
    samples = learned(log, verifier=True).samples
    assert (first.cosine, second.cosine) == (0.7, 0.9)
    assert [(wrong, by) for wrong, by in zip(samples.wrong, samples.by, strict=True)] == [(True, "people")]
    assert samples.among is not None
    assert samples.among.shape == (2, 9)
    assert dict(log.labels) == {"people": 1, "automatic": 1, "judge": 0}


def test_both_files_are_read_the_older_first(tmp_path: Path) -> None:
    written(tmp_path, lookup(cosine=0.5), name=OLDER)
    written(tmp_path, lookup(cosine=0.6))

    files = lookup_log.files_of(tmp_path)

    assert [file.name for file in files] == [OLDER, LOG]
    assert [pair.cosine for pair in read(*files).pairs.values()] == [0.6]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (lookup(embedder="other"), "of another embedder"),
        (lookup(verifier="other"), "of another verifier"),
        (lookup(time=1.0), "older than asked for"),
    ],
)
def test_rows_that_say_nothing_of_here_and_now_are_counted_and_left_out(tmp_path: Path, row: Lookup, why: str) -> None:
    log = read(written(tmp_path, lookup("first"), row), since=50.0)

    assert log.left_out == {why: 1}
    assert len(log.pairs) == 1


def test_other_endpoints_are_none_of_ours(tmp_path: Path) -> None:
    log = read(written(tmp_path, lookup(endpoint="other"), verdict(endpoint="other"), lookup()))

    assert (log.others, log.rows, log.orphans) == (2, 1, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"\xff\xfe\n",
        b'{"kind": "lookup"}\n',
        encoded(lookup()).replace(b'"cosine":0.9', b'"cosine":1e300') + b"\n",
        encoded(lookup()).replace(b'"cosine":0.9', b'"cosine":1e999') + b"\n",
        encoded(lookup()).replace(b'"cosine":0.9', b'"cosine":"high"') + b"\n",
    ],
)
def test_lines_that_are_no_row_are_counted(tmp_path: Path, line: bytes) -> None:
    log = read(written(tmp_path, lookup(), line, lookup("other")))

    assert log.unread == {"not a row of the log": 1}
    assert log.named == [f"{LOG}:2: not a row of the log"]
    assert log.rows == 2


def test_a_last_line_that_is_cut_off_is_said_to_be_that(tmp_path: Path) -> None:
    log = read(written(tmp_path, lookup(), encoded(lookup("other"))[:-20]))

    assert log.unread == {"the last line is cut off": 1}
    assert log.rows == 1


def test_an_empty_log_and_one_without_labels_teach_nothing(tmp_path: Path) -> None:
    for rows in ((), (lookup(),)):
        found = learned(read(written(tmp_path, *rows)), verifier=True)

        assert len(found.samples.wrong) == 0
        assert found.samples.features.shape == (0, 9)


def test_a_log_without_agreement_is_one_of_cosine_and_verifier(tmp_path: Path) -> None:
    alone = learned(read(written(tmp_path, lookup(agreement=None, outcome="same"))), verifier=True)
    mixed = learned(
        read(written(tmp_path, lookup(agreement=None, outcome="same"), lookup("b", outcome="same"))), verifier=True
    )

    assert len(alone.samples.wrong) == 1
    assert mixed.samples.left_out == {"logged without agreement": 1}


def test_what_was_undone_was_never_said(tmp_path: Path) -> None:
    rows: list[Row] = [lookup(outcome="same"), verdict(wrong=True), verdict(wrong=True, undone=True)]

    log = read(written(tmp_path, *rows))

    assert [(one.wrong, one.by) for one in labels(rows)] == [(False, "automatic")]
    assert [is_decided(pair) for pair in log.pairs.values()] == [False]


def test_undoing_takes_back_only_what_the_same_kind_of_labeller_said(tmp_path: Path) -> None:
    rows: list[Row] = [lookup(), verdict(by="judge"), verdict(wrong=True), verdict(wrong=True, undone=True)]

    samples = learned(read(written(tmp_path, *rows)), verifier=True).samples

    assert (samples.by, samples.wrong.tolist()) == (["judge"], [False])


def test_verdicts_without_a_look_up_are_counted(tmp_path: Path) -> None:
    log = read(written(tmp_path, verdict(), verdict(asked="")))

    assert (log.orphans, log.reports) == (1, 1)


def test_of_a_large_log_what_has_a_verdict_is_kept_and_the_rest_by_lot(tmp_path: Path) -> None:
    rows: list[Row] = [*[lookup(str(i)) for i in range(500)], *[verdict(str(i)) for i in range(0, 500, 50)]]

    log = read(written(tmp_path, *rows), most=50)

    assert sum(is_decided(pair) for pair in log.pairs.values()) == 10
    assert len(log.pairs) <= 60
    assert log.drawn >= 440


def test_texts_are_read_where_they_are(tmp_path: Path) -> None:
    log = read(written(tmp_path, lookup("a"), lookup("b", question="how?", stored="how so?", kept="so"), lookup("b")))

    without, with_texts = log.pairs.values()
    found = lookup_log.texts(log, with_texts)

    assert lookup_log.texts(log, without) is None
    assert found is not None
    assert (found.question, found.kept) == ("how?", "so")


def test_a_log_that_was_replaced_meanwhile_gives_no_other_pairs_texts(tmp_path: Path) -> None:
    file = written(tmp_path, lookup("a", question="how?", stored="how so?"))
    log = read(file)
    (pair,) = log.pairs.values()

    written(tmp_path, lookup("z", question="secret?", stored="how so?"))
    replaced = lookup_log.texts(log, pair)
    file.unlink()

    assert replaced is None
    assert lookup_log.texts(log, pair) is None


def test_a_verdict_is_a_line_of_its_own_behind_one_that_was_cut_off(tmp_path: Path) -> None:
    written(tmp_path, lookup(), b'{"kind":"look')

    lookup_log.add(tmp_path, [verdict(wrong=True)])

    log = read(tmp_path / LOG)
    assert [is_decided(pair) for pair in log.pairs.values()] == [True]
    assert sum(log.unread.values()) == 1


def test_a_verdict_goes_into_a_log_that_is_not_there_yet_and_nobody_else_reads_it(tmp_path: Path) -> None:
    lookup_log.add(tmp_path, [verdict()])

    assert json.loads((tmp_path / LOG).read_bytes())["kind"] == "verdict"
    assert (tmp_path / LOG).stat().st_mode & 0o777 == 0o600


def test_what_a_cut_would_serve_is_asked_first_by_lot_then_what_is_near_below(tmp_path: Path) -> None:
    texts = {"question": "q", "stored": "s"}
    likely = [lookup(f"likely {i}", cosine=0.97, chance=0.99, **texts) for i in range(40)]
    below = [
        lookup(
            f"below {i}",
            cosine=0.6,
            chance=0.05 + i / 100,
            agreement=(0.6, *AROUND[1:3], 0.1, 0.1, 0.3, 9.0, 0.5),
            **texts,
        )
        for i in range(10)
    ]
    found = learned(read(written(tmp_path, *likely, *below, lookup("no texts"), verdict("likely 3"))), verifier=True)

    asked = undecided(found, limit=0.05, tuned=None)

    names = [pair.asked for pair in asked.pairs]
    assert (asked.above, asked.decided, asked.without_texts) == (39, 1, 1)
    assert set(names[:39]) == {f"likely {i}" for i in range(40) if i != 3}
    assert names[:39] != sorted(names[:39])
    assert names[39:] == [f"below {i}" for i in reversed(range(10))]
    assert asked.chances[39:] == sorted(asked.chances[39:], reverse=True)


def test_how_often_a_right_answer_comes_out_different_is_known_from_what_people_said_of_it(tmp_path: Path) -> None:
    log = read(
        written(
            tmp_path,
            lookup("right, and compared as such", outcome="same"),
            lookup("right, in other words", outcome="different"),
            lookup("wrong", outcome="different"),
            lookup("nobody said", outcome="different"),
            lookup("never compared"),
            verdict("right, and compared as such"),
            verdict("right, in other words"),
            verdict("wrong", wrong=True),
            verdict("never compared"),
        )
    )

    assert lookup_log.misjudged(log) == (1, 2)
