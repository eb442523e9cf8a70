"""An endpoint's own look-ups, as its log keeps them: read in a stream, and verdicts added at the end.

Memory grows with the pairs that are kept, never with the log: texts stay in
the file until somebody looks at one.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from service.caching.agreement import Agreement
from service.caching.certificate import Label, Labeller, settle
from service.caching.fit import COLUMNS, features_of
from service.caching.lookups import LOG, OLDER, Lookup, Verdict, decoded, encoded
from service.telemetry.recorder import append
from service.tune.labelled import Progress, Unread, digest, numbered_lines
from service.tune.lot import Lot
from service.tune.samples import Samples

MOST_PAIRS = 200_000
_BY: tuple[Labeller, ...] = ("people", "judge", "automatic")
_TRUSTED = 0b1111  # bits of what people and a judge said
_TOLD_EVERY = 10_000  # lines
_LARGEST = 1_000.0  # of any number in agreement


class Pair(NamedTuple):
    """What is kept of a question and a candidate: the numbers of their last look-up, a bit for each of what was said of
    them by whom, and where in which file their last row with texts is."""

    asked: str
    entry: str
    cosine: float
    chance: float | None
    agreement: tuple[float, ...] | None
    said: int
    texts: tuple[int, int] | None


class Log(NamedTuple):
    """Of one endpoint. `rows` counts all look-ups, `left_out` those that were left out, by why, `drawn` those that went
    by lot; `unread` and `named` are lines that could not be read. `others` rows are of other endpoints. `orphans` are
    verdicts without a look-up here, `reports` those about no pair."""

    files: Sequence[Path]
    pairs: Mapping[bytes, Pair]
    rows: int
    hits: int
    labels: Mapping[Labeller, int]
    left_out: Mapping[str, int]
    unread: Mapping[str, int]
    named: list[str]
    others: int
    orphans: int
    reports: int
    drawn: int


def files_of(storage: Path) -> list[Path]:
    """The log's files that are there, oldest first."""
    return [file for name in (OLDER, LOG) if (file := storage / name).exists()]


def read(
    files: Sequence[Path],
    *,
    endpoint: str,
    embedder: str,
    verifier: str,
    since: float | None = None,
    most: int = MOST_PAIRS,
    progress: Progress = lambda _done, _total: None,
) -> Log:
    """Rows of another embedder or verifier are counted and left out; `since` in seconds since the epoch.

    Raises `OSError`.
    """
    verdicts: dict[bytes, int] = {}
    reports = 0
    for file in files:
        with file.open("rb") as source:
            for _, _, line, _ in numbered_lines(source):
                if line is None or b'"verdict"' not in line:
                    continue
                row = _row(line)
                if isinstance(row, Verdict) and row.endpoint == endpoint:
                    if not row.asked:
                        reports += 1
                        continue
                    key = digest(row.asked, row.entry)
                    if row.undone:
                        verdicts[key] = verdicts.get(key, 0) & ~(0b11 << 2 * _BY.index(row.by))
                    else:
                        verdicts[key] = verdicts.get(key, 0) | _bit(row.by, wrong=row.wrong)
    unread, left_out, labels = Unread(), Counter[str](), Counter[Labeller]()
    pairs: Lot[Pair] = Lot(most, always=verdicts)
    rows = others = hits = 0
    found: set[bytes] = set()
    for place, file in enumerate(files):
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            for number, offset, line, ended in numbered_lines(source):
                if not number % _TOLD_EVERY:
                    progress(offset, size)
                if line is not None and not line.strip():
                    continue
                row = None if line is None else _row(line)
                if row is None:
                    why = "not a row of the log" if ended or line is None else "the last line is cut off"
                    unread.note(why, f"{file.name}:{number}")
                    continue
                if row.endpoint != endpoint:
                    others += 1
                    continue
                if isinstance(row, Verdict):
                    continue
                rows += 1
                why = _not_a_sample(row, embedder, verifier, since)
                if why:
                    left_out[why] += 1
                    continue
                hits += row.served
                key = digest(row.asked, row.entry)
                known = pairs.get(key)
                said = verdicts.get(key, 0) if known is None else known.said
                if key in verdicts:
                    found.add(key)
                if row.outcome:
                    said |= _bit(row.by, wrong=row.outcome == "different")
                    labels[row.by] += 1
                texts = (place, offset) if row.question and row.stored else None if known is None else known.texts
                pairs.put(key, Pair(row.asked, row.entry, row.cosine, row.chance, row.agreement, said, texts), size=400)
    for said in verdicts.values():
        for at, by in enumerate(_BY):
            labels[by] += bool(said >> 2 * at & 0b11)
    return Log(
        files,
        dict(pairs.items()),
        rows,
        hits,
        dict(labels),
        dict(left_out),
        dict(unread.counts),
        unread.named,
        others,
        sum(1 for key, said in verdicts.items() if said and key not in found),
        reports,
        pairs.left_out,
    )


class Learned(NamedTuple):
    """`among` are the pairs behind the rows of `samples.among`."""

    samples: Samples
    among: list[Pair]
    repeated: int
    contradictory: int


def learned(log: Log, *, verifier: bool) -> Learned:
    """One label a pair that has any. Pairs without the verifier's chance, where there is one, and those without
    agreement, where others have it, are left out: a fit needs the same of all."""
    left_out: Counter[str] = Counter()
    around = any(pair.agreement is not None for pair in log.pairs.values())
    whole: list[Pair] = []
    for pair in log.pairs.values():
        if verifier and pair.chance is None:
            left_out["logged without the verifier's chance"] += 1
        elif around and pair.agreement is None:
            left_out["logged without agreement"] += 1
        else:
            whole.append(pair)
    labels = [
        Label(asked=pair.asked, stored=pair.entry, wrong=bool(bit & 1), by=_BY[bit >> 1])
        for pair in whole
        for bit in range(2 * len(_BY))
        if pair.said >> bit & 1
    ]
    settled = settle(labels)
    at = {(pair.asked, pair.entry): place for place, pair in enumerate(whole)}
    features = features_of(
        np.array([pair.cosine for pair in whole], np.float64),
        np.array([pair.chance for pair in whole], np.float64) if verifier else None,
        np.array([pair.agreement for pair in whole], np.float64).reshape(len(whole), len(Agreement._fields))
        if around
        else None,
    )
    questions: dict[str, int] = {}
    samples = Samples(
        features[[at[label.asked, label.stored] for label in settled.labels]].reshape(-1, len(COLUMNS)),
        np.array([label.wrong for label in settled.labels], bool),
        [label.by for label in settled.labels],
        np.array([questions.setdefault(label.asked, len(questions)) for label in settled.labels], np.int64),
        [digest(label.asked, label.stored) for label in settled.labels],
        dict(left_out),
        among=features,
    )
    return Learned(samples, whole, settled.repeated, settled.contradictory)


def is_decided(pair: Pair) -> bool:
    """By people or a judge model."""
    return bool(pair.said & _TRUSTED)


def texts(log: Log, pair: Pair) -> Lookup | None:
    """The pair's row with its texts. None where it has none, or they cannot be read there any more."""
    if pair.texts is None:
        return None
    place, offset = pair.texts
    try:
        with log.files[place].open("rb") as source:
            source.seek(offset)
            row = _row(next((line for *_, line, _ in numbered_lines(source) if line), b""))
    except OSError:
        return None
    same = isinstance(row, Lookup) and (row.asked, row.entry) == (pair.asked, pair.entry)
    return row if same and isinstance(row, Lookup) else None


def misjudged(log: Log) -> tuple[int, int]:
    """Of the pairs that people or a judge called right and that were compared automatically, too: how many came out
    different, and how many there are."""
    right, wrong, same, different = (
        sum(_bit(by, wrong=False) for by in _BY[:2]),
        sum(_bit(by, wrong=True) for by in _BY[:2]),
        _bit("automatic", wrong=False),
        _bit("automatic", wrong=True),
    )
    known = [
        pair.said
        for pair in log.pairs.values()
        if pair.said & right and not pair.said & wrong and pair.said & (same | different)
    ]
    return sum(bool(said & different) for said in known), len(known)


def add(storage: Path, verdicts: Iterable[Verdict]) -> None:
    """At the end of the log, whoever else writes there; returns when it is kept. Raises `OSError`."""
    append(storage / LOG, b"".join(encoded(verdict) + b"\n" for verdict in verdicts))


def _row(line: bytes) -> Lookup | Verdict | None:
    try:
        row: Lookup | Verdict = decoded(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(row, Lookup):
        numbers = (row.cosine, *(() if row.chance is None else (row.chance,)), *(row.agreement or ()))
        if not all(math.isfinite(number) and abs(number) <= _LARGEST for number in numbers):
            return None
    return row


def _not_a_sample(row: Lookup, embedder: str, verifier: str, since: float | None) -> str:
    if since is not None and row.time < since:
        return "older than asked for"
    if row.embedder != embedder:
        return "of another embedder"
    return "of another verifier" if row.verifier != verifier else ""


def _bit(by: Labeller, *, wrong: bool) -> int:
    return 1 << (2 * _BY.index(by) + wrong)
