"""Two questions that cannot have one answer are told apart whatever their similarity."""

import time

import pytest

from service.caching.vetoes import veto


@pytest.mark.parametrize(
    ("asked", "stored", "reason"),
    [
        ("Where is order 8812?", "Where is order 8831?", "numbers"),
        ("Where is order 8812?", "Where is my order?", "numbers"),
        ("Is Python 3.11 supported?", "Is Python 3.12 supported?", "numbers"),
        ("Is Python 3.1 supported?", "Is Python 3.10 supported?", "numbers"),
        ("Open at 10:30?", "Open at 10:45?", "numbers"),
        ("What is 2 plus 2?", "What is 2 plus?", "numbers"),
        ("Give me three reasons", "Give me four reasons", "numbers"),
        ("Give me three reasons", "Give me 3 reasons", None),
        ("Can the two of us share it?", "Can we share it?", None),
        ("Is 1,000 enough?", "Is 1000 enough?", None),
        ("Is 10k enough?", "Is 10,000 enough?", None),
        ("Meet on the 5th?", "Meet on the 6th?", "numbers"),
        ("When, on the 5th?", "When, on the 6th no wait the 5th?", None),
        ("Gate A-17 or B2?", "Gate B-17 or A2?", "identifiers"),
        ("Is the 6s waterproof?", "Is the 6 waterproof?", "identifiers"),
        ("Write to <EMAIL_7f3a9c>", "Write to <EMAIL_7f3a9d>", "placeholders"),
        ("Write to <EMAIL_7f3a9c>", "Please write to <EMAIL_7f3a9c>", None),
        ("How far is 5 km?", "How far is 5 miles?", "units"),
        ("How far is 5 km?", "How far is 5 kilometres?", None),
        ("Is $5 fair?", "Is €5 fair?", "units"),
        ("Is $5 fair?", "Are 5 dollars fair?", None),
        ("Are you open on Monday?", "Are you open on Tuesday?", "dates"),
        ("Are you open on Monday?", "Are you open?", None),
        ("Is it legal to sell this?", "Is it illegal to sell this?", "opposites"),
        ("How do I enable sync?", "How do I disable sync?", "opposites"),
        ("How can I become more patient?", "How can I become less impatient?", None),
        ("Is it safe to swim?", "Is it not safe to swim?", None),  # the verifier's business
        ("Is it not unsafe to swim?", "Is it safe to swim?", None),
        ("How do I get from London to Paris?", "How do I get from Paris to London?", "from-to"),
        ("How do I get from London to Paris?", "How do I get to Paris from London?", None),
        ("Fly London to Paris", "Fly Paris to London", "from-to"),
        ("Is a cat faster than a dog?", "Is a dog faster than a cat?", "word-order"),
        ("Did Ann pay Bob?", "Did Bob pay Ann?", "word-order"),
        ("Is Ann married to Bob?", "Is Bob married to Ann?", None),
        ("Are Ann and Bob related?", "Are Bob and Ann related?", None),
        ("How do I sort a list in Python?", "In Python, how do I sort a list?", None),
        ("How do I reset my password?", "How can I reset my password?", None),
        ("how do i reset my password", "How do I reset my password?", None),
        ("Where is order 8812?", "order 8812, where is it", None),
        ("A is 5 and B is 6?", "A is 6 and B is 5?", "word-order"),
        ("我想买苹果", "我想买苹果。", None),
        ("我想买苹果", "苹果想买我", "word-order"),
        ("🙂", "🙃", None),
        ("", "", None),
    ],
)
def test_a_veto_tells_why(asked: str, stored: str, reason: str | None) -> None:
    assert veto(asked, stored) == reason
    assert veto(stored, asked) == reason


def test_what_follows_a_very_long_beginning_still_counts() -> None:
    beginning = "the same words over and over again " * 500

    assert veto(f"{beginning} first", f"{beginning} second") == "length"
    assert veto(f"{beginning} first", f"{beginning} first") is None


@pytest.mark.parametrize("piece", ["a", "7 ", "a b c ", "not ", "中", "x1 ", "'", "from a to b ", "<EMAIL_"])
def test_a_hostile_text_takes_no_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]

    started = time.process_time()
    veto(text, text[1:])

    assert time.process_time() - started < 0.2


@pytest.mark.parametrize(
    ("one", "other", "vetoed"),
    [
        ("Is 5 > 3 true?", "Is 5 < 3 true?", True),
        ("What does == do in JavaScript?", "What does === do in JavaScript?", True),
        ("return a + b", "return a - b", True),
        ("SELECT * FROM t WHERE id=1", "SELECT * FROM t WHERE id!=1", True),
        ("if (a && b)", "if (a || b)", True),
        ("shipping - how long does it take?", "shipping, how long does it take?", False),
        ("Q & A session", "Q and A session", False),
        ("Wow! How do I pay?", "How do I pay?", False),
        ("a < b", "a < b", False),
    ],
)
def test_other_operators_make_another_question(one: str, other: str, vetoed: bool) -> None:
    assert (veto(one, other) is not None) is vetoed
