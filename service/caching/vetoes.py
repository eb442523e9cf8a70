"""What no similarity outweighs: two questions that cannot have one answer, however near their vectors lie.

To MiniLM "order 8812" and "order 8831" have cosine .97, "London to Paris" and
"Paris to London" .99. A veto only ever costs a hit. Negation is none: it stands
in half of all questions asked with a slip of the tongue, and the verifier weighs it.
"""

from collections import Counter

from service.caching.features import Prepared, counts, prepare
from service.caching.vocabulary import opposites

# Another one whenever they decide otherwise: what was decided under an earlier one is decided anew.
REVISION = 1


def veto(asked: str, stored: str) -> str | None:
    """`conflict` of two texts that are not prepared."""
    return conflict(prepare(asked), prepare(stored))


def conflict(asked: Prepared, stored: Prepared) -> str | None:
    """Why the answer to `stored` cannot be that to `asked`, as a word for `Cache-Status`; None if it may be.

    `placeholders`, `identifiers`, `numbers`: they do not name the same, equally often.
    `units`: the same numbers, in other units. `dates`: both name days, months or seasons, and not the same.
    `signs`: operators ("a < b", "x != 1") that are not the same.
    `opposites`: a word of one is the opposite of a word of the other.
    `from-to`: the sides of a direction are exchanged. `word-order`: the same words in another order.
    `length`: they differ behind what was compared.
    """
    if asked.beyond != stored.beyond:
        return "length"
    if asked.figures != stored.figures:
        reason = _figures(asked, stored)
        if reason is not None:
            return reason
    if asked.units != stored.units and asked.units - stored.units and stored.units - asked.units:
        return None if _corrected(asked, stored) else "units"
    if asked.dates != stored.dates and asked.dates - stored.dates and stored.dates - asked.dates:
        return None if _corrected(asked, stored) else "dates"
    if asked.signs != stored.signs and asked.signs and stored.signs:
        return "signs"
    if asked.directions and stored.directions and _reversed(asked, stored):
        return "from-to"
    if asked.content != stored.content:
        return "opposites" if _opposed(asked, stored) else None
    if asked.words != stored.words and _other_order(asked, stored):
        return "word-order"
    return None


def _figures(asked: Prepared, stored: Prepared) -> str | None:
    only_asked, only_stored = _lacking(asked, stored), _lacking(stored, asked)
    if not only_asked and not only_stored:
        return None
    # A number in words may be none ("the two of us"): it conflicts with another one only.
    written = [one for one in (*only_asked, *only_stored) if not one.startswith(" ")]
    if not written and not (only_asked and only_stored):
        return None
    if _corrected(asked, stored) and not (only_asked and only_stored):
        return None
    if any(one.startswith("<") for one in written):
        return "placeholders"
    return "identifiers" if any(any(map(str.isalpha, one)) for one in written) else "numbers"


def _lacking(one: Prepared, other: Prepared) -> list[str]:
    have = Counter(figure.strip() for figure in other.figures)
    lacking = []
    for figure in one.figures:
        if have[figure.strip()] > 0:
            have[figure.strip()] -= 1
        else:
            lacking.append(figure)
    return lacking


def _corrected(one: Prepared, other: Prepared) -> bool:
    """Whether one speaker corrects himself ("on the 5th, no wait, the 6th"), and so names what he does not mean."""
    return counts(one, "correction") != counts(other, "correction")


def _reversed(one: Prepared, other: Prepared) -> bool:
    there = other.directions
    return any(left != right and (right, by, left) in there for left, by, right in one.directions)


def _opposed(one: Prepared, other: Prepared) -> bool:
    """Whether exactly one word is turned into its opposite, with no negation to turn it back."""
    ours, theirs = one.content - other.content, other.content - one.content
    if not ours or not theirs or len(ours) > 4 or len(theirs) > 4:
        return False
    if any(counts(one, mark) != counts(other, mark) for mark in ("negation", "more", "less", "correction")):
        return False
    return sum(opposites(a, b) for a in ours for b in theirs) == 1


def _other_order(one: Prepared, other: Prepared) -> bool:
    if len(one.words) != len(other.words) or sorted(one.words) != sorted(other.words):
        return False
    if list(one.content_places) == list(other.content_places):
        return _numbers_moved(one, other)
    if counts(one, "symmetric") and counts(other, "symmetric"):
        return _numbers_moved(one, other)
    # A part moved as a whole ("in Python, how do I …", "to Paris from London") says the same.
    return sorted(_parts(one)) != sorted(_parts(other))


def _numbers_moved(one: Prepared, other: Prepared) -> bool:
    """Whether a number stands behind another word than before: "A is 5 and B is 6" against "A is 6 and B is 5"."""
    return len(set(one.figures)) > 1 and _order(one) != _order(other)


def _order(one: Prepared) -> list[str]:
    return [word for word in one.words if any(map(str.isdigit, word))]


def _parts(one: Prepared) -> list[list[str]]:
    """The words, cut before every preposition and question word."""
    parts: list[list[str]] = [[]]
    for word in one.words:
        if word in _LEADS:
            parts.append([])
        parts[-1].append(word)
    return [part for part in parts if part]


_LEADS = frozenset({
    "in", "on", "at", "from", "to", "for", "with", "by", "via", "under", "over", "through", "about",
    "what", "how", "why", "when", "wher", "who", "which", "if",
})  # fmt: skip
