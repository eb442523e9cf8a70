"""Prompt injection: phrases that take over a conversation, and a small linear model of how such sentences sound."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from guardrails.patterns import Pattern, PatternSet
from models.finding import Finding, Role, Segment

# Whatever changes what is found, other than the patterns and the weights, raises it.
_LOGIC = "1"
_RULES = files("guardrails") / "rules"
_ROLES: Final[frozenset[Role]] = frozenset({"user", "tool_result", "document"})

Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class PromptInjectionDetector:
    """One finding for a text at most: the phrase or sentence that is surest, so that a long document with one bad
    line shows where it is, and redacting it leaves the rest. What callers write and tools and documents bring is
    looked at; what the operator writes (system prompts, tool definitions) and the model says is not.

    `confidence` is the model's, or that of the phrase, whose id is `rule`. It
    is a score for logs, not a defence: at the default threshold it finds a
    fifth to a half of the attempts that are unlike those it learned from, and
    reports one plain question in a thousand and three in a hundred that use
    an attacker's words. Known to pass: suffixes of random tokens, other
    encodings, misspelt or spaced letters, injections worded like any task
    ("add a link to your answer"), and where no phrase is known most languages
    but English and German.
    `benchmarks/train_prompt_injection.py` says what it was trained on, and
    measures it.
    """

    name = "prompt_injection"
    kinds = frozenset({"prompt_injection"})
    reach: int | None = None
    inline = True

    def __init__(self, threshold: float = 0.7, *, model: bytes | None = None) -> None:
        """`model` is what `dump` writes; None takes the one that comes with Keepgate."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} is not above 0 and at most 1")
        stored = (_RULES / "prompt_injection.bin").read_bytes() if model is None else model
        self._threshold = threshold
        self._model = load(stored)
        self._known, self._patterns, phrases = _phrases()
        said = f"{_LOGIC} {threshold}".encode()
        self.revision = blake2b(b"\0".join((said, phrases, stored)), digest_size=8).hexdigest()

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        looked_at = [segment for segment in segments if segment.role in _ROLES and segment.text]
        if not looked_at:
            return []
        # All at once: most of what a short text costs does not depend on its length.
        best: dict[int, Finding] = {}
        for finding in [*self._phrases(looked_at), *self._sentences(looked_at)]:
            known = best.get(finding.segment)
            if known is None or finding.confidence > known.confidence:
                best[finding.segment] = finding
        return [finding for finding in best.values() if finding.confidence >= self._threshold]

    def _phrases(self, segments: Sequence[Segment]) -> list[Finding]:
        starts = [0, *accumulate(len(segment.text) + 1 for segment in segments)]
        found = []
        for match in self._patterns.scan("\0".join([segment.text for segment in segments])):
            place = bisect_right(starts, match.start) - 1
            phrase, at = self._known[match.pattern], starts[place]
            found.append(
                Finding(
                    segments[place].index,
                    "prompt_injection",
                    match.start - at,
                    match.end - at,
                    phrase.confidence,
                    phrase.id,
                )
            )
        return found

    def _sentences(self, segments: Sequence[Segment]) -> list[Finding]:
        encoded = [segment.text.encode("utf-8", "replace") for segment in segments]
        starts = [0, *accumulate(len(text) + 1 for text in encoded)]
        surest: dict[int, tuple[float, int, int]] = {}
        for place, start, end, confidence in self._model.sure(b"\0".join(encoded), starts, self._threshold):
            if place not in surest or confidence > surest[place][0]:
                surest[place] = confidence, start - starts[place], end - starts[place]
        found = []
        for place, (confidence, start, end) in surest.items():
            text, segment = encoded[place], segments[place]
            first = len(text[:start].decode("utf-8", "ignore"))
            last = first + len(text[start:end].decode("utf-8", "ignore"))
            found.append(Finding(segment.index, "prompt_injection", first, last, confidence, "model"))
        return found


class _Phrase(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    confidence: float
    any: list[str]
    within: bool = False


class _Phrases(msgspec.Struct, forbid_unknown_fields=True):
    words: dict[str, str]
    phrases: list[_Phrase]


# What parts two words, and what may stand between them: never NUL, which parts two texts. Outside ASCII only where it
# must be: Hyperscan needs a second to compile many counts of all that UTF-8 can say.
_SPACE = r"""[ \t\r\n,:*_"'-]{1,2}"""
_GAP = r"[\x20\x22-\x2d/->@-~\t\r\n]{0,30}"
_GAP_WITHIN = r"[^\x00.!?]{0,30}"


@cache
def _phrases() -> tuple[list[_Phrase], PatternSet, bytes]:
    """Compiled once: that takes some hundred milliseconds, and policies are read again and again."""
    source = (_RULES / "prompt_injection.toml").read_bytes()
    known = msgspec.toml.decode(source, type=_Phrases)
    return known.phrases, PatternSet([Pattern(one.id, _expression(one, known.words)) for one in known.phrases]), source


def _expression(phrase: _Phrase, words: dict[str, str]) -> str:
    ways = "|".join(phrase.any)
    for name, alternatives in words.items():
        ways = ways.replace(f"{{{name}}}", f"(?:{alternatives})")
    ways = ways.replace(" .. ", _GAP_WITHIN if phrase.within else _GAP).replace(" ", _SPACE)
    return f"(?i)(?:{ways})" if phrase.within else rf"(?i)\b(?:{ways})\b"


class Sentences(NamedTuple):
    """`hashes` has a column for each word and a row for each kind of feature; `firsts` are the columns where a
    sentence begins. Its bytes are `start` to `end`, `words` how many it has."""

    hashes: Hashes
    firsts: Integers
    start: Integers
    end: Integers
    words: Integers


_SLICE = 16 * 1024
_WORDS = 40  # a sentence of more is cut
_STEM = 5  # bytes that stand for a word and its endings

_MULTIPLIER = 0x9E3779B97F4A7C15
_STEM_ALONE, _PAIR, _PAIR_OF_STEMS, _APART = map(
    np.uint64, (0xFF51AFD7ED558CCD, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0x165667B19E3779F9)
)
_FEATURES, _ALONE = 5, 2  # kinds of features; so many of them are of one word
_POWERS = np.cumprod(np.full(_SLICE + 1, _MULTIPLIER, np.uint64), dtype=np.uint64)
_INVERSES = np.cumprod(np.full(_SLICE + 1, pow(_MULTIPLIER, -1, 1 << 64), np.uint64), dtype=np.uint64)

_OTHER, _ENDS, _PARTS, _WORD = 0, 1, 2, 3
_CLASSES = bytes(
    _PARTS
    if byte == 0
    else _ENDS
    if byte in b".!?\n"
    else byte | 0x20
    if chr(byte).isascii() and chr(byte).isalpha()
    else 0x30
    if 0x30 <= byte <= 0x39
    else byte
    if byte >= 0x80
    else _OTHER
    for byte in range(256)
)


def sentences(data: bytes) -> Sentences:
    """Of at most `_SLICE` bytes. A sentence ends at `.`, `!`, `?` or a new line with no word right behind it, at NUL,
    and after 40 words; one without words is none.

    Features are words and their stems, alone, in pairs and with one left out.
    The hash of a word is that of its bytes wherever it stands: the difference
    of two running sums, moved back to the start.
    """
    classes = np.frombuffer(b"\0%b\0" % data.translate(_CLASSES), np.uint8)
    inside = classes >= _WORD
    edges = (inside[1:] != inside[:-1]).nonzero()[0]
    start, end = edges[::2], edges[1::2]
    count = len(start)
    hashes = np.empty((_FEATURES, count), np.uint64)
    if not count:
        return Sentences(hashes, start, start, start, start)

    breaks = classes[1:-1] == _PARTS
    breaks |= (classes[1:-1] == _ENDS) & ~inside[2:]
    later = start.searchsorted(breaks.nonzero()[0])
    first = np.zeros(count + 1, bool)
    first[later] = True
    first[0] = first[count] = True
    bounds = first.nonzero()[0]
    words = bounds[1:] - bounds[:-1]
    if words.max() > _WORDS:
        bounds = np.concatenate([np.arange(at, at + size, _WORDS) for at, size in zip(bounds, words, strict=False)])
        bounds = np.append(bounds, count)
        words = bounds[1:] - bounds[:-1]
    firsts = bounds[:-1]

    sums = np.zeros(len(data) + 1, np.uint64)
    (classes[1:-1] * _POWERS[: len(data)]).cumsum(out=sums[1:])
    home, opening = _INVERSES[start], sums[start]
    word, stem = hashes[0], hashes[1]
    np.multiply(sums[end] - opening, home, out=word)
    np.multiply(sums[np.minimum(end, start + _STEM)] - opening, home, out=stem)
    hashes[2, 1:] = word[1:] * _PAIR + word[:-1]
    hashes[3, 1:] = stem[1:] * _PAIR_OF_STEMS + stem[:-1]
    hashes[4, 2:] = stem[2:] * _APART + stem[:-2]
    stem *= _STEM_ALONE
    return Sentences(hashes, firsts, start[firsts], end[bounds[1:] - 1], words)


def blot_out(features: NDArray[Any], firsts: Integers) -> None:
    """Zeroes the features that would reach back beyond the beginning of a sentence, or of the text."""
    features[_ALONE:, firsts] = 0
    features[_FEATURES - 1, firsts[firsts < features.shape[1] - 1] + 1] = 0


def slices(data: bytes) -> list[tuple[int, bytes]]:
    """Where each begins, and its bytes: at most `_SLICE`, ended after a space where there is one in its second half."""
    parts = []
    at = 0
    while len(data) - at > _SLICE:
        end = data.rfind(b" ", at + _SLICE // 2, at + _SLICE) + 1 or at + _SLICE
        parts.append((at, data[at:end]))
        at = end
    parts.append((at, data[at:]))
    return parts


class Model(NamedTuple):
    """A logistic regression over hashed features: weights, the shift that leaves a hash of that many bits, the bias."""

    weights: Floats
    shift: int
    bias: float

    def places(self, found: Sentences) -> Integers:
        return ((found.hashes * np.uint64(_MULTIPLIER)) >> np.uint64(self.shift)).astype(np.int64)

    def factors(self, found: Sentences) -> Floats:
        """What the weights of a sentence are multiplied by: a longer one must say more."""
        return 1 / np.sqrt(found.words + _SMOOTHING)

    def logits(self, found: Sentences) -> Floats:
        if not len(found.firsts):
            return np.zeros(0)
        features = self.weights[self.places(found)]
        blot_out(features, found.firsts)
        return np.add.reduceat(features.sum(axis=0), found.firsts) * self.factors(found) + self.bias

    def sure(self, data: bytes, starts: Sequence[int], threshold: float) -> list[tuple[int, int, int, float]]:
        """For each sentence that is sure enough: which of the texts that begin at `starts` it is in, its start and
        end, its confidence. A text of many sentences has many chances to look bad by accident: each must be surer."""
        parts = [(at, sentences(part)) for at, part in slices(data)]
        start = np.concatenate([found.start + at for at, found in parts])
        end = np.concatenate([found.end + at for at, found in parts])
        places = np.asarray(starts).searchsorted(start, side="right") - 1
        many = np.maximum(1, np.bincount(places, minlength=1) / _FEW)[places]
        logits = np.concatenate([self.logits(found) for _, found in parts]) - _DOUBT * np.log(many)
        confidences = 1 / (1 + np.exp(-logits))
        sure = (confidences >= threshold).nonzero()[0]
        columns = (column[sure].tolist() for column in (places, start, end, confidences))
        return list(zip(*columns, strict=True))


_FEW, _DOUBT = 8, 0.5  # a text of more sentences is doubted: 0.5 in the logit for each time it is e times longer
_SMOOTHING = 8  # words: one or two that are suspicious do not make a sentence


class _Header(msgspec.Struct):
    bits: int
    scale: float
    bias: float


def dump(weights: NDArray[np.int8], *, scale: float, bias: float) -> bytes:
    """A line of JSON and one signed byte for each weight, in units of `scale`."""
    bits = len(weights).bit_length() - 1
    return msgspec.json.encode(_Header(bits, scale, bias)) + b"\n" + weights.tobytes()


def load(stored: bytes) -> Model:
    """Raises ValueError when it is not what `dump` writes."""
    line, _, rest = stored.partition(b"\n")
    try:
        header = msgspec.json.decode(line, type=_Header)
    except msgspec.DecodeError as error:
        raise ValueError(f"the model of prompt injections begins with no header: {error}") from error
    if len(rest) != 1 << header.bits:
        raise ValueError(f"the model of prompt injections has {len(rest)} weights, not {1 << header.bits}")
    weights = np.frombuffer(rest, np.int8).astype(np.float64) * header.scale
    return Model(weights, 64 - header.bits, header.bias)
