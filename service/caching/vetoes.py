"""What no similarity outweighs: two questions that cannot have one answer, however near their vectors lie.

To MiniLM "order 8812" and "order 8831" have cosine .97, "London to Paris" and
"Paris to London" .99. A veto only ever costs a hit.
"""

import re

# Digits with what is written onto them: 3.11, 10:30, 2026-11-20, A-17, 12kg.
_NUMBER = re.compile(r"[^\W_]*\d(?:[\w.,:/-]*\w)?")
_WORD = re.compile(r"\w+")


def veto(asked: str, stored: str) -> str | None:
    """Why the answer to `stored` cannot be that to `asked`, as a word for `Cache-Status`; None if it may be.

    `numbers`: they do not name the same numbers and identifiers equally often.
    `word-order`: the same words stand in another order.
    """
    asked, stored = asked.casefold(), stored.casefold()
    if sorted(_NUMBER.findall(asked)) != sorted(_NUMBER.findall(stored)):
        return "numbers"
    words, others = _WORD.findall(asked), _WORD.findall(stored)
    if words != others and sorted(words) == sorted(others):
        return "word-order"
    return None
