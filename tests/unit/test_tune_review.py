"""A person in front of pairs: keys, undoing, and nothing lost or run by a terminal."""

import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from service.caching.lookups import LOG, Lookup, Row, Verdict, decoded, encoded
from service.tune import lookup_log
from service.tune.lookup_log import learned
from service.tune.review import Reviewed, keys_of, review
from service.tune.undecided import Undecided
from service.tune.wording import paragraph, plain, tell


def logged(tmp_path: Path, count: int = 3, question: str = "how?") -> None:
    rows = [
        Lookup(
            time=float(i),
            endpoint="faq",
            request_id="r",
            asked=f"asked {i}",
            entry="entry",
            cosine=0.9,
            embedder="emb",
            question=f"{question} {i}",
            stored="how so?",
            kept="so",
            fresh="thus",
        )
        for i in range(count)
    ]
    (tmp_path / LOG).write_bytes(b"".join(encoded(row) + b"\n" for row in rows))


def reviewed(tmp_path: Path, keys: Iterable[str], *, most: int | None = None) -> tuple[Reviewed, str]:
    log = lookup_log.read([tmp_path / LOG], endpoint="faq", embedder="emb", verifier="")
    pairs = learned(log, verifier=False).among
    found = Undecided(pairs, [0.9] * len(pairs), len(pairs), 0.0, 0, 0)
    pressed: Iterator[str] = iter(keys)
    out = io.StringIO()
    done = review(
        log,
        found,
        storage=tmp_path,
        endpoint="faq",
        keys=lambda: next(pressed, ""),
        most=most,
        out=out,
        clock=lambda: 7.0,
    )
    return done, out.getvalue()


def verdicts(tmp_path: Path) -> list[tuple[str, bool, bool]]:
    rows: list[Row] = [decoded(line) for line in (tmp_path / LOG).read_bytes().splitlines()]
    return [(row.asked, row.wrong, row.undone) for row in rows if isinstance(row, Verdict)]


def test_every_key_does_what_it_says(tmp_path: Path) -> None:
    logged(tmp_path)

    done, shown = reviewed(tmp_path, "ysN")

    assert done == Reviewed(same=1, different=1, skipped=1, gone=0)
    assert verdicts(tmp_path) == [("asked 0", False, False), ("asked 2", True, False)]
    assert all(text in shown for text in ("how? 0", "how so?", "so", "thus", "1 of 3 pairs"))


def test_undoing_takes_the_last_verdict_back_and_asks_again(tmp_path: Path) -> None:
    logged(tmp_path)

    done, _ = reviewed(tmp_path, "uynuuy")

    assert done == Reviewed(same=1, different=0, skipped=0, gone=0)
    assert verdicts(tmp_path) == [
        ("asked 0", False, False),
        ("asked 1", True, False),
        ("asked 1", True, True),
        ("asked 0", False, True),
        ("asked 0", False, False),
    ]


@pytest.mark.parametrize("keys", ["yq", "y", "y\x04"])
def test_quitting_and_the_end_of_a_pipe_keep_what_was_said(tmp_path: Path, keys: str) -> None:
    logged(tmp_path)

    done, _ = reviewed(tmp_path, keys)

    assert done.same == 1
    assert len(verdicts(tmp_path)) == 1


def test_an_interrupt_keeps_what_was_said(tmp_path: Path) -> None:
    logged(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        reviewed(tmp_path, "y\x03")

    assert len(verdicts(tmp_path)) == 1


def test_other_keys_are_asked_about_again(tmp_path: Path) -> None:
    logged(tmp_path)

    done, shown = reviewed(tmp_path, ["x", "\x1b", " ", "y"], most=1)

    assert done.same == 1
    assert "\x1b" not in shown


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    logged(tmp_path, count=10)

    done, _ = reviewed(tmp_path, "yyyyyyyyyy", most=4)

    assert done.same == 4


def test_texts_that_are_gone_are_counted(tmp_path: Path) -> None:
    logged(tmp_path)
    log = lookup_log.read([tmp_path / LOG], endpoint="faq", embedder="emb", verifier="")
    pairs = learned(log, verifier=False).among
    (tmp_path / LOG).unlink()

    done = review(
        log,
        Undecided(pairs, [0.9] * 3, 3, 0.0, 0, 0),
        storage=tmp_path,
        endpoint="faq",
        keys=lambda: "y",
        out=io.StringIO(),
        clock=time.time,
    )

    assert done == Reviewed(0, 0, 0, gone=3)


def test_a_verdict_that_cannot_be_kept_is_no_verdict(tmp_path: Path) -> None:
    logged(tmp_path)
    (tmp_path / LOG).rename(tmp_path / "elsewhere")
    (tmp_path / LOG).mkdir()

    log = lookup_log.read([tmp_path / "elsewhere"], endpoint="faq", embedder="emb", verifier="")
    pairs = learned(log, verifier=False).among
    with pytest.raises(OSError, match="directory"):
        review(
            log,
            Undecided(pairs, [0.9] * 3, 3, 0.0, 0, 0),
            storage=tmp_path,
            endpoint="faq",
            keys=lambda: "y",
            out=io.StringIO(),
        )


def test_a_text_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    logged(tmp_path, question="\x1b[2J\x1b]0;title\x07 \u202etxt \x9b31m \r\n\x00")

    _, shown = reviewed(tmp_path, "q")

    assert not set(shown) & set("\x1b\x07\u202e\x9b\r\x00")
    assert "\\x1b[2J" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tab\there", "tab here"),
        ("\ud800", "\\ud800"),
        ("👩‍👧", "👩‍👧"),
        ("如何", "如何"),
        ("x" * 400, "x" * 300 + "… (100 more characters)"),
    ],
)
def test_a_line_is_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_long_answer_is_shown_in_part() -> None:
    shown = paragraph("a\nb\n" + "c" * 100_000)

    assert shown.startswith("    a\n    b\n    ccc")
    assert shown.endswith("(98,504 more characters)")
    assert len(shown) < 2_000


def test_a_terminal_without_the_letters_is_told_all_the_same() -> None:
    bytes_out = io.BytesIO()
    out = io.TextIOWrapper(bytes_out, encoding="ascii")

    tell("如何?", out)

    assert bytes_out.getvalue() == b"\\u5982\\u4f55?\n"


def test_a_pipe_gives_the_first_letter_of_each_line() -> None:
    with keys_of(io.StringIO("yes\n\n  n\nq")) as keys:
        assert [keys() for _ in range(5)] == ["y", " ", "n", "q", ""]
