"""What is looked at in two questions: sixty-odd numbers from their words, their order and their cosine.

Each is named in `FEATURES` with the group an ablation drops it in. Where a
number exists for either question (a word the other lacks, say), the larger and
the smaller are given, so the row is the same whichever of the two was stored.
"""

import re
import unicodedata
import zlib
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.caching.vocabulary import (
    NO_KINDS,
    NUMBER_WORDS,
    OPEN_KINDS,
    UNITS,
    UNKNOWN_WEIGHT,
    Word,
    canonical_number,
    known_word,
    relation,
    words_of,
)

FEATURES: dict[str, tuple[str, str]] = {
    # name: (group, meaning)
    "cosine": ("cosine", "cosine similarity of the two embeddings"),
    "cover_most": ("overlap", "share of a question's word weight that the other has too; the larger of both"),
    "cover_least": ("overlap", "the same, the smaller of both"),
    "jaccard": ("overlap", "weight of the shared words over that of all"),
    "soft_cover": ("overlap", "cover_least with near spellings and synonyms counted as shared"),
    "bigrams": ("overlap", "pairs of neighbouring words shared, over those of the shorter question"),
    "content": ("overlap", "shared words that are not function words, over those of the longer question"),
    "content_words": ("overlap", "number of shared words that are not function words"),
    "function_words": ("overlap", "number of function words that one of the two lacks"),
    "shared_heaviest": ("overlap", "weight of the heaviest shared word"),
    "heaviest_most": ("unmatched", "weight of the heaviest word the other lacks; the larger of both sides"),
    "heaviest_least": ("unmatched", "the same, the smaller"),
    "lacking_most": ("unmatched", "total weight of the words the other lacks; the larger of both sides"),
    "lacking_least": ("unmatched", "the same, the smaller"),
    "lacking_words_most": ("unmatched", "number of content words the other lacks; the larger of both sides"),
    "lacking_words_least": ("unmatched", "the same, the smaller"),
    "rare_most": ("unmatched", "number of words outside the vocabulary the other lacks; the larger of both sides"),
    "rare_least": ("unmatched", "the same, the smaller"),
    "added": ("unmatched", "weight of the words one question adds to the other; 0 unless the other adds none"),
    "added_after_article": ("unmatched", "1 if such a word stands between an article and a shared word"),
    "said": ("unmatched", "what the unmatched words say, learned from pairs: below 0 for another answer"),
    "fillers": ("unmatched", "number of words as 'actually', 'please' that one has more"),
    "near_spellings": ("unmatched", "pairs of unmatched words that differ in spelling or ending only"),
    "synonyms": ("unmatched", "pairs of unmatched words that mean the same in most questions"),
    "numbers_most": ("numbers", "numbers the other does not name; the larger of both sides"),
    "numbers_least": ("numbers", "the same, the smaller: above 0, the two conflict"),
    "numbers_shared": ("numbers", "numbers both name"),
    "units": ("numbers", "1 if both name units and not the same"),
    "dates": ("numbers", "names of days, months and relative times that one of the two lacks"),
    "identifiers": ("numbers", "words of letters and digits, placeholders and versions that one of the two lacks"),
    "symbols": ("numbers", "signs as + # % = that one of the two lacks"),
    "names_most": ("names", "capitalised words inside the sentence the other lacks; the larger of both sides"),
    "names_least": ("names", "the same, the smaller: above 0, the two speak of different ones"),
    "names_shared": ("names", "capitalised words inside the sentence both have"),
    "name_weight": ("names", "weight of the heaviest such word that one of the two lacks"),
    "negation": ("negation", "difference in the number of negations"),
    "negation_parity": ("negation", "1 if one has an odd number of negations and the other not"),
    "antonyms": ("negation", "unmatched words of the two that are opposites"),
    "opposed": ("negation", "antonyms and negations and more/less together: 1 if odd"),
    "more_less": ("negation", "difference in 'more', 'most' less that in 'less', 'least', 'fewer'"),
    "before_after": ("relations", "difference in 'before', 'until' less that in 'after', 'since'"),
    "used_to": ("relations", "1 if only one asks for what used to be or was"),
    "becoming": ("relations", "1 if only one asks for what becomes, starts or stops"),
    "tense": ("relations", "difference in past less that in present and future auxiliaries"),
    "modal": ("relations", "difference in kinds of modal verbs (can, should, must, will)"),
    "and_or": ("relations", "1 if one joins with 'and' where the other joins with 'or'"),
    "prepositions": ("relations", "prepositions that one has more often than the other"),
    "quantity": ("relations", "words as 'all', 'some', 'only', 'first', 'last' that one of the two lacks"),
    "person": ("relations", "difference in kinds of persons spoken of (I, you, he, she, they)"),
    "pronoun_order": ("relations", "1 if 'he' and 'she' stand in another order"),
    "actor": ("relations", "1 if another acts ('can I', 'can you'), 2 in questions of yes or no"),
    "addressed": ("relations", "1 if only one asks the reader to act ('can you', 'would you')"),
    "asked_for": ("questions", "1 if the question words differ"),
    "asked_for_both": ("questions", "1 if both have question words and share none"),
    "yes_no": ("questions", "1 if only one can be answered with yes or no"),
    "how_many": ("questions", "1 if only one asks how much, many, long, old or far"),
    "inversions": ("order", "share of pairs of shared words that stand in another order"),
    "content_inversions": ("order", "the same for content words"),
    "swapped": ("order", "number of content words shared in another order where neither lacks one"),
    "passive": ("order", "1 if only one is passive"),
    "roles": ("order", "1 if shared words are turned round without a passive, or not with one; 0 if any lacks"),
    "symmetric": ("order", "1 if both use words whose sides may be changed (and, or, between, married)"),
    "reversed": ("order", "words on the two sides of 'to', 'into', 'than', 'over' changed from one to the other"),
    "prefix": ("spelling", "share of the longer question that both begin with, in words"),
    "suffix": ("spelling", "the same for the end"),
    "gap_most": ("spelling", "words between the common beginning and end; the larger of both"),
    "gap_least": ("spelling", "the same, the smaller"),
    "gap_weight": ("spelling", "if one word stands where the other has another: the lesser of their weights"),
    "trigrams": ("spelling", "letter trigrams shared (Dice), spaces left out"),
    "gap_trigrams": ("spelling", "the same of the words that one of the two lacks"),
    "corrections": ("spelling", "difference in words of self-correction ('no wait', 'I mean', 'sorry')"),
    "length": ("length", "words of the longer question"),
    "length_difference": ("length", "difference in words"),
    "length_ratio": ("length", "words of the shorter over words of the longer"),
    "sentences": ("length", "difference in number of sentences"),
    "foreign": ("length", "share of words outside the vocabulary in the two together"),
    "repeats": ("length", "difference in number of repeated words"),
}  # fmt: skip
NAMES = tuple(FEATURES)
GROUPS = tuple(dict.fromkeys(group for group, _ in FEATURES.values()))

# Longer texts are compared so far; `beyond` keeps what is behind apart.
_MOST_CHARACTERS = 4_000
_MOST_WORDS = 400
_MOST_COMPARED = 8  # unmatched words of a side that are looked at for synonyms and spellings

_SIGNS = frozenset("$€£¥₹%+*/=<>^&|~")
_SENTENCE_END = frozenset("!?.")


class Prepared:
    """A text read once. Keep that of a stored question beside it: reading costs more than comparing."""

    __slots__ = (
        "actor", "addressed", "beyond", "bigrams", "content", "content_places", "dates", "directions", "figures",
        "fillers", "genders", "identifiers", "kinds", "length", "names", "numbers", "passive", "places", "questions",
        "rare", "repeats", "says", "sentences", "signs", "symbols", "text", "total", "trigrams", "units", "weights",
        "words",
    )  # fmt: skip

    text: str
    words: list[str]  # stems in their order
    weights: dict[str, float]
    total: float
    places: dict[str, int]  # of the first of each
    content: frozenset[str]
    content_places: dict[str, int]
    bigrams: frozenset[tuple[str, str]]
    trigrams: frozenset[str]
    numbers: frozenset[str]
    figures: tuple[str, ...]  # all with digits, as often as they stand there, and numbers in words with a space ahead
    units: frozenset[str]
    dates: frozenset[str]
    identifiers: frozenset[str]
    symbols: frozenset[str]
    signs: tuple[str, ...]  # operators that stand alone or between two operands, in their order
    names: frozenset[str]
    rare: frozenset[str]
    says: dict[str, float]  # of the stems that say something where the other text lacks them
    fillers: frozenset[str]
    questions: frozenset[str]
    directions: frozenset[tuple[str, str, str]]
    genders: str
    kinds: dict[str, int]  # how many words of each of `_MARKS`
    actor: str  # of the first auxiliary that a person stands behind: "I" for we, too
    addressed: bool
    passive: bool
    sentences: int
    repeats: int
    length: int
    beyond: int  # a hash of what was not read, 0 if nothing


_PAST_USE = re.compile(r"\bused? to (?!do\b|make\b|describe\b|measure\b)")
_QUANTITIES = frozenset({"many", "much", "long", "old", "far", "often", "tall", "big", "few"})
_AUXILIARY = frozenset({
    "is", "are", "am", "was", "were", "do", "does", "did", "have", "has", "had", "can", "could", "will", "would",
    "should", "shall", "may", "might", "must", "be", "need",
})  # fmt: skip
_DIRECTIONS = frozenset({"to", "into", "than", "over", "onto", "towards", "via"})

# Kinds of words by the feature that counts their difference.
_PREPOSITIONS = frozenset({
    "by", "from", "to", "with", "for", "in", "on", "at", "of", "against", "over", "under", "than", "through", "about",
    "between", "as", "off", "out", "up", "down",
})  # fmt: skip
_MODALS = frozenset({"can", "may", "should", "must", "will"})
_QUANTITY = frozenset({"all", "some", "only", "first", "last", "best", "worst"})
_PERSONS = frozenset({"I", "we", "you", "he", "she", "they", "it"})
_ACTORS = _PERSONS - {"it"}
_ASKING = frozenset({"can", "could", "would", "will"})
_MARKS = _PREPOSITIONS | _MODALS | _QUANTITY | _PERSONS | {
    "negation", "before", "after", "more", "less", "past", "present", "and", "or", "becoming", "correction",
    "symmetric",
}  # fmt: skip
_QUESTION_WORDS = ("what", "how", "why", "when", "where", "who", "which")


_OPERATOR = re.compile(r"(?<!\S)[-+*/%<>=!&|^~]{1,3}(?!\S)|(?<=[\w)\]])(?:[=!<>]=+|&&|\|\||[<>=])(?=[\w(\[])")


def prepare(text: str) -> Prepared:
    """Reads the text. Any text will do: an empty one has no words, of a long one the beginning is read."""
    normal = text if text.isascii() else unicodedata.normalize("NFKC", text[: 2 * _MOST_CHARACTERS])
    beyond = text[_MOST_CHARACTERS:] if normal is text else (normal[_MOST_CHARACTERS:] + text[2 * _MOST_CHARACTERS :])
    prepared = Prepared()
    stems: list[str] = []
    weights: dict[str, float] = {}
    says: dict[str, float] = {}
    places: dict[str, int] = {}
    content: dict[str, int] = {}
    counted_kinds: dict[str, int] = {}
    actor, addressed = "", False
    numbers: set[str] = set()
    units: set[str] = set()
    dates: set[str] = set()
    identifiers: set[str] = set()
    symbols: set[str] = set()
    names: set[str] = set()
    rare: set[str] = set()
    fillers: set[str] = set()
    questions: set[str] = set()
    figures: list[str] = []
    genders, sentences, begins = "", 0, True
    previous, before = "", ""
    passive = saw_be = number_before = False
    directions: set[tuple[str, str, str]] = set()
    waiting: tuple[str, str] | None = None  # a word before a direction, and the direction
    shouted = not any(map(str.islower, normal[:200]))
    for written, lower in words_of(normal[:_MOST_CHARACTERS]):
        if lower in _SENTENCE_END:
            sentences += 0 if begins else 1
            begins = True
            continue
        if lower in _SIGNS:
            (units if lower in "$€£¥₹%" else symbols).add(lower)
            continue
        if len(stems) >= _MOST_WORDS:
            beyond += lower
            continue
        counted, number = number_before, NUMBER_WORDS.get(lower)
        number_before = number is not None or any(map(str.isdigit, lower))
        if number_before:
            canonical = number or canonical_number(lower)
            known = Word(canonical, 6.0, NO_KINDS, True)
            figures.append(canonical if number is None else f" {canonical}")
            if canonical.replace(".", "").replace(",", "").replace(":", "").isdigit():
                numbers.add(canonical)
            else:
                identifiers.add(canonical)
        elif lower[0] == "<":
            known = Word(lower, UNKNOWN_WEIGHT, NO_KINDS, True)
            figures.append(lower)
            identifiers.add(lower)
        else:
            known = known_word(lower)
            if not begins and written[0].isupper() and not shouted and lower != "i":
                names.add(known.stem)
            if not known.known:
                rare.add(known.stem)
        base, weight, kinds, _, said = known
        is_content = True
        for kind in kinds:
            if kind in _MARKS:
                counted_kinds[kind] = counted_kinds.get(kind, 0) + 1
                if not actor and kind in _ACTORS and previous in _AUXILIARY:
                    actor = "I" if kind == "we" else kind
                    addressed = kind == "you" and previous in _ASKING
            elif kind == "day":
                dates.add(base)
            elif kind == "unit" and counted:
                units.add(UNITS.get(lower.removesuffix("s"), UNITS.get(lower, base)))
            elif kind == "filler":
                fillers.add(base)
            elif kind in _QUESTION_WORDS:
                questions.add(kind)
            is_content = is_content and kind in OPEN_KINDS and kind != "filler"
        if is_content:
            if base not in content:
                content[base] = len(stems)
            if waiting is not None:
                directions.add((waiting[0], waiting[1], base))
                waiting = None
            before = base
        elif lower in _DIRECTIONS and before:
            waiting = before, lower
        if "he" in kinds:
            genders += "h"
        elif "she" in kinds:
            genders += "s"
        if base == "be" or lower in ("get", "got"):
            saw_be = True
        elif lower == "by" and saw_be:
            passive = True
        if previous == "how" and lower in _QUANTITIES:
            questions.add("quantity")
        if begins and not stems and lower in _AUXILIARY:
            questions.add("yes")
        if base not in places:
            places[base] = len(stems)
            weights[base] = weight
            if said:
                says[base] = said
        stems.append(base)
        previous, begins = lower, False
    squeezed = "".join(stems)[:1000]
    prepared.text = text
    prepared.words = stems
    prepared.weights = weights
    prepared.total = sum(weights.values())
    prepared.places = places
    prepared.content = frozenset(content)
    prepared.content_places = content
    prepared.bigrams = frozenset(pairwise(stems))
    prepared.trigrams = frozenset(squeezed[at : at + 3] for at in range(max(1, len(squeezed) - 2)))
    prepared.numbers = frozenset(numbers)
    prepared.figures = tuple(sorted(figures))
    prepared.units = frozenset(units)
    prepared.dates = frozenset(dates)
    prepared.identifiers = frozenset(identifiers)
    prepared.symbols = frozenset(symbols)
    prepared.signs = tuple(_OPERATOR.findall(normal, 0, _MOST_CHARACTERS))
    prepared.names = frozenset(names)
    prepared.rare = frozenset(rare)
    prepared.says = says
    prepared.fillers = frozenset(fillers)
    prepared.questions = frozenset(questions)
    prepared.directions = frozenset(directions)
    prepared.genders = genders[:20]
    prepared.passive = passive
    if ("use" in places or "used" in places) and _PAST_USE.search(normal[:_MOST_CHARACTERS].lower()) is not None:
        counted_kinds["used to"] = 1
    prepared.kinds = counted_kinds
    prepared.actor = actor
    prepared.addressed = addressed
    prepared.sentences = sentences + (0 if begins else 1)
    prepared.repeats = len(stems) - len(places)
    prepared.length = len(stems)
    prepared.beyond = zlib.crc32(beyond.encode("utf-8", "replace")) | 1 if beyond else 0
    return prepared


def counts(text: Prepared, mark: str) -> int:
    """How many words of the kind `mark` it has."""
    return text.kinds.get(mark, 0)


def shared_tenths(asked: Prepared, stored: Prepared) -> int:
    """Content words shared, over those of the longer question, in tenths; 10 where there are none to share."""
    most = max(len(asked.content), len(stored.content))
    return 10 * len(asked.content & stored.content) // most if most else 10


def features(asked: Prepared, stored: Prepared, cosine: float) -> NDArray[np.float64]:
    """One row in the order of `NAMES`, all finite, the same with the two changed. Cost grows with the words, never
    with their square."""
    return np.array(numbers_of(asked, stored, cosine), np.float64)


def numbers_of(asked: Prepared, stored: Prepared, cosine: float) -> list[float]:
    """`features` before they are an array: several rows make one array faster than arrays do."""
    a, b = asked, stored
    only_a, only_b = a.weights.keys() - b.weights.keys(), b.weights.keys() - a.weights.keys()
    weights_a, weights_b = a.weights, b.weights
    lack_a = lack_b = said = 0.0
    heavy_a = heavy_b = 0.0
    says_a, says_b = a.says, b.says
    for one in only_a:
        weight = weights_a[one]
        lack_a += weight
        if one in says_a:
            said += says_a[one]
        if weight > heavy_a:
            heavy_a = weight
    for one in only_b:
        weight = weights_b[one]
        lack_b += weight
        if one in says_b:
            said += says_b[one]
        if weight > heavy_b:
            heavy_b = weight
    content_a, content_b = a.content - b.content, b.content - a.content
    shared_content = a.content & b.content
    shared_heaviest = max((weights_a[one] for one in shared_content), default=0.0)
    near = same = opposed = 0
    softened_a = softened_b = 0.0
    if content_a and content_b:
        for one in _heaviest(content_a, weights_a):
            for other in _heaviest(content_b, weights_b):
                kind = relation(one, other)
                if kind:
                    if kind == 3:
                        opposed += 1
                    else:
                        near += kind == 1
                        same += kind == 2
                        softened_a += weights_a[one]
                        softened_b += weights_b[other]
                        break
    cover_a = 1 - lack_a / a.total if a.total else 0.0
    cover_b = 1 - lack_b / b.total if b.total else 0.0
    soft_a = 1 - max(0.0, lack_a - softened_a) / a.total if a.total else 0.0
    soft_b = 1 - max(0.0, lack_b - softened_b) / b.total if b.total else 0.0
    both = a.total - lack_a
    shorter, longer = (a.length, b.length) if a.length < b.length else (b.length, a.length)
    most_content = max(len(a.content), len(b.content))

    added = added_after_article = 0.0
    if bool(content_a) != bool(content_b):
        side, extra = (a, content_a) if content_a else (b, content_b)
        for one in extra:
            added += side.weights[one]
            place = side.places[one]
            if place and side.words[place - 1] in ("a", "an", "the") and place + 1 < len(side.words):
                added_after_article = 1.0

    kinds: dict[str, int] = {}
    prepositions = modals = quantities = persons = 0
    if a.kinds != b.kinds:
        kinds_a, kinds_b = a.kinds, b.kinds
        for mark, _ in kinds_a.items() ^ kinds_b.items():
            if mark in kinds:
                continue
            kinds[mark] = apart = kinds_a.get(mark, 0) - kinds_b.get(mark, 0)
            if mark in _PREPOSITIONS:
                prepositions += abs(apart)
            elif mark in _PERSONS:
                persons += 1
            elif mark in _MODALS:
                modals += 1
            elif mark in _QUANTITY:
                quantities += 1
    difference = kinds.get
    negation = abs(difference("negation", 0))
    more_less = difference("more", 0) - difference("less", 0)
    past, present = difference("past", 0), difference("present", 0)
    also, either = difference("and", 0), difference("or", 0)
    words_a, words_b = a.words, b.words
    prefix = 0
    while prefix < shorter and words_a[prefix] == words_b[prefix]:
        prefix += 1
    suffix = 0
    while suffix < shorter - prefix and words_a[-1 - suffix] == words_b[-1 - suffix]:
        suffix += 1
    gap_least, gap_most = shorter - prefix - suffix, longer - prefix - suffix
    gap_weight = 0.0
    if gap_least == gap_most == 1:
        gap_weight = min(weights_a[words_a[prefix]], weights_b[words_b[prefix]])

    inverted, pairs = _inversions(a.places, b.places)
    content_inverted, content_pairs, outermost = 0, 0, False
    if inverted:
        content_inverted, content_pairs = _inversions(a.content_places, b.content_places)
        outermost = content_inverted > 0 and _outermost_inverted(a.content_places, b.content_places)
    complete = not content_a and not content_b and len(shared_content) > 1
    passive = a.passive != b.passive
    reversals = 0
    if a.directions and b.directions:
        reversals = sum((right, by, left) in b.directions and left != right for left, by, right in a.directions)

    names_a, names_b = a.names - b.weights.keys(), b.names - a.weights.keys()
    name_weight = 0.0
    for one in names_a:
        name_weight = max(name_weight, weights_a[one])
    for one in names_b:
        name_weight = max(name_weight, weights_b[one])
    rare_a, rare_b = len(a.rare - b.weights.keys()), len(b.rare - a.weights.keys())
    numbers_a, numbers_b = len(a.numbers - b.numbers), len(b.numbers - a.numbers)
    asked_for = (a.questions ^ b.questions) - {"yes", "quantity"}
    bigrams = min(len(a.bigrams), len(b.bigrams))
    trigrams = len(a.trigrams) + len(b.trigrams)
    opposing = opposed + negation + (1 if more_less and not opposed else 0)
    total = a.length + b.length
    return [
        cosine,
        cover_a if cover_a > cover_b else cover_b,
        cover_b if cover_a > cover_b else cover_a,
        both / (both + lack_a + lack_b) if a.total or b.total else 0.0,
        soft_a if soft_a < soft_b else soft_b,
        len(a.bigrams & b.bigrams) / bigrams if bigrams else 0.0,
        len(shared_content) / most_content if most_content else 0.0,
        len(shared_content),
        len(only_a) + len(only_b) - len(content_a) - len(content_b),
        shared_heaviest,
        heavy_a if heavy_a > heavy_b else heavy_b,
        heavy_b if heavy_a > heavy_b else heavy_a,
        lack_a if lack_a > lack_b else lack_b,
        lack_b if lack_a > lack_b else lack_a,
        max(len(content_a), len(content_b)),
        min(len(content_a), len(content_b)),
        rare_a if rare_a > rare_b else rare_b,
        rare_b if rare_a > rare_b else rare_a,
        added,
        added_after_article,
        said,
        len(a.fillers ^ b.fillers),
        near,
        same,
        numbers_a if numbers_a > numbers_b else numbers_b,
        numbers_b if numbers_a > numbers_b else numbers_a,
        len(a.numbers & b.numbers),
        1.0 if a.units and b.units and a.units != b.units else 0.0,
        len(a.dates ^ b.dates),
        len(a.identifiers ^ b.identifiers),
        len(a.symbols ^ b.symbols),
        max(len(names_a), len(names_b)),
        min(len(names_a), len(names_b)),
        len(a.names & b.names),
        name_weight,
        negation,
        negation % 2,
        opposed,
        opposing % 2,
        abs(more_less),
        abs(difference("before", 0) - difference("after", 0)),
        abs(difference("used to", 0)),
        1.0 if "becoming" in kinds else 0.0,
        abs(past - present) if past * present < 0 else 0,
        modals,
        1.0 if also * either < 0 else 0.0,
        prepositions,
        quantities,
        persons,
        1.0 if a.genders != b.genders and len(a.genders) == len(b.genders) else 0.0,
        (2.0 if "yes" in a.questions and "yes" in b.questions else 1.0)
        if a.actor != b.actor and a.actor and b.actor
        else 0.0,
        1.0 if a.addressed != b.addressed else 0.0,
        1.0 if asked_for else 0.0,
        1.0 if asked_for and not (a.questions & b.questions) and a.questions and b.questions else 0.0,
        1.0 if ("yes" in a.questions) != ("yes" in b.questions) else 0.0,
        1.0 if ("quantity" in a.questions) != ("quantity" in b.questions) else 0.0,
        inverted / pairs if pairs else 0.0,
        content_inverted / content_pairs if content_pairs else 0.0,
        content_inverted if complete else 0,
        1.0 if passive else 0.0,
        1.0 if complete and outermost != passive else 0.0,
        1.0 if "symmetric" in a.kinds and "symmetric" in b.kinds else 0.0,
        reversals,
        prefix / longer if longer else 0.0,
        suffix / longer if longer else 0.0,
        gap_most,
        gap_least,
        gap_weight,
        2 * len(a.trigrams & b.trigrams) / trigrams,
        _gap_trigrams(only_a, only_b),
        abs(difference("correction", 0)),
        longer,
        longer - shorter,
        shorter / longer if longer else 0.0,
        abs(a.sentences - b.sentences),
        (len(a.rare) + len(b.rare)) / total if total else 0.0,
        abs(a.repeats - b.repeats),
    ]


def _heaviest(stems: frozenset[str], weights: dict[str, float]) -> Sequence[str]:
    if len(stems) <= _MOST_COMPARED:
        return sorted(stems)
    return sorted(stems, key=lambda one: (-weights[one], one))[:_MOST_COMPARED]


def _inversions(one: dict[str, int], other: dict[str, int]) -> tuple[int, int]:
    """Pairs of shared words in another order, of how many. Both have their words in the order of their places."""
    seen: list[int] = []
    inverted = 0
    for shared in one:
        place = other.get(shared)
        if place is None:
            continue
        if seen and place < seen[-1]:
            at = bisect(seen, place)
            inverted += len(seen) - at
            seen.insert(at, place)
        else:
            seen.append(place)
    return inverted, len(seen) * (len(seen) - 1) // 2


def _outermost_inverted(one: dict[str, int], other: dict[str, int]) -> bool:
    shared = [other[stem] for stem in one if stem in other]
    return len(shared) > 1 and shared[0] > shared[-1]


def _gap_trigrams(only_a: set[str], only_b: set[str]) -> float:
    if not only_a or not only_b:
        return 0.0
    one, other = _trigrams("".join(sorted(only_a))), _trigrams("".join(sorted(only_b)))
    return 2 * len(one & other) / (len(one) + len(other))


def _trigrams(letters: str) -> set[str]:
    return {letters[at : at + 3] for at in range(max(1, min(len(letters), 200) - 2))}
