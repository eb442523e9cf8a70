"""Two questions that cannot have one answer are told apart whatever their similarity."""

import pytest

from service.caching.vetoes import veto


@pytest.mark.parametrize(
    ("asked", "stored", "reason"),
    [
        ("Where is order 8812?", "Where is order 8831?", "numbers"),
        ("Where is order 8812?", "Where is my order?", "numbers"),
        ("Is Python 3.11 supported?", "Is Python 3.12 supported?", "numbers"),
        ("Open at 10:30?", "Open at 10:45?", "numbers"),
        ("Gate A-17 or B2?", "Gate B-17 or A2?", "numbers"),
        ("What is 2 plus 2?", "What is 2 plus?", "numbers"),
        ("Fly London to Paris", "Fly Paris to London", "word-order"),
        ("Did Ann pay Bob?", "Did Bob pay Ann?", "word-order"),
        ("How do I reset my password?", "How can I reset my password?", None),
        ("how do i reset my password", "How do I reset my password?", None),
        ("Where is order 8812?", "order 8812, where is it", None),
        ("A is 5 and B is 6?", "A is 6 and B is 5?", "word-order"),
        ("我想买苹果", "我想买苹果。", None),
        ("", "", None),
    ],
)
def test_a_veto_tells_why(asked: str, stored: str, reason: str | None) -> None:
    assert veto(asked, stored) == reason
    assert veto(stored, asked) == reason
