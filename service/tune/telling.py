"""What `keepgate tune` says of labels, of a log and of what they prove."""

import datetime as dt
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from service.caching.certificate import Certificate, Shortfall, needed
from service.tune import certifying
from service.tune.certifying import Found
from service.tune.labelled import Labelled
from service.tune.lookup_log import Learned, Log
from service.tune.samples import Samples
from service.tune.undecided import Undecided
from service.tune.wording import count, percent, plain, tell

Json = dict[str, Any]

_TOLD_EVERY = 2.0


def tell_found(found: Found, samples: Samples) -> None:
    wrong = int(samples.wrong.sum())
    tell(f"{count(len(samples.wrong), 'labelled look-up')} that could be served, {wrong:,} of them wrong.")
    if found.thinned:
        tell(f"  {found.thinned:,} labels left out by lot: look-ups like these were labelled more often than others")
    certificate, shortfall = found.tuned.certificate, found.tuned.shortfall
    if certificate is not None:
        tell_certificate(certificate)
        if not certificate.certifies:
            _tell_informing(certificate)
    elif shortfall is not None:
        tell(f"Not certified: {why(shortfall)}")
    if found.informs is not None:
        if isinstance(found.informs, Certificate):
            tell("With the automatic labels as well:")
            tell_certificate(found.informs)
        else:
            tell(f"With the automatic labels as well: {why(found.informs)}")


def _tell_informing(certificate: Certificate) -> None:
    missing = certifying.still_needed(certificate)
    labels = "no number of verdicts would do" if missing is None else f"about {missing:,} verdicts"
    tell(
        "It only informs: answers were compared automatically. To certify it takes "
        f"{labels} of people or a judge model (--review, --judge)."
    )


def tell_certificate(certificate: Certificate) -> None:
    origin = certificate.origin
    head = "Certified" if certificate.certifies else "Would be certified"
    served = certificate.served / certificate.samples if certificate.samples else 0.0
    by = {"people": "people", "judge": "a judge model", "automatic": "comparing answers automatically"}
    tell(
        f"{head}: at most {percent(certificate.upper)} of hits are wrong, at a confidence of "
        f"{percent(certificate.confidence)} (the limit is {percent(certificate.limit)}).\n"
        f"  cut          a chance of {chance(certificate.cut)} that the stored answer serves\n"
        f"  labels       {certificate.samples:,}, of which {certificate.served:,} ({percent(served)}) would be served "
        f"and {certificate.wrong:,} wrongly\n"
        f"  labelled by  {by[origin.labelled_by]}\n"
        f"  embedder     {origin.embedder}\n"
        f"  verifier     {origin.verifier or 'none'}\n"
        f"  labels are   {origin.data}\n"
        f"  date         {origin.date}"
    )


def why(short: Shortfall) -> str:
    least = needed(short.limit, confidence=short.confidence)
    if short.missing is not None:
        more = f"about {short.missing:,} more labels are missing (80 % chance)"
    elif least is not None and short.samples < least:
        more = f"about {least - short.samples:,} more labels are missing, and so few do not tell whether those would do"
    else:
        more = "no number of labels like these would do"
    if short.cut is None:
        reason = {
            "no-labels": "there is no label of a look-up that could be served",
            "none-served": f"of {count(short.samples, 'label')} none has an even chance to be served",
        }.get(short.reason, f"{count(short.samples, 'label')} are too few to test any cut")
        return f"{reason}; {more}."
    counts = (
        f"at a chance of {chance(short.cut)}, {short.served:,} of {short.samples:,} would be served and "
        f"{short.wrong:,} wrongly, which may be up to {percent(short.upper)}"
    )
    judged = "too often wrong" if short.reason == "too-often-wrong" else "too few labels"
    return f"{judged} for {percent(short.limit)}: {counts}; {more}."


def tell_beforehand(limit: float, confidence: float, there: str) -> None:
    usual, flawless = needed(limit, confidence=confidence), math.ceil(math.log(1 - confidence) / math.log1p(-limit))
    many = "more labels than anyone has" if usual is None else f"about {usual:,} labels"
    tell(
        f"A limit of {percent(limit)} at a confidence of {percent(confidence)} takes {many} of look-ups that would be "
        f"served, for an 80 % chance where half the limit is in truth wrong; {flawless:,} if none is wrong. {there}",
        sys.stderr,
    )


def about(log: Log) -> str:
    labels = ", ".join(f"{log.labels[by]:,} {by}" for by in ("people", "judge", "automatic") if log.labels.get(by))
    return (
        f"The log has {count(log.rows, 'look-up')} of this endpoint, {count(len(log.pairs), 'pair')} of a question "
        f"and a candidate, and these labels: {labels or 'none'}."
    )


def tell_log(log: Log, learned: Learned) -> None:
    tell_unread(log.unread, log.named)
    for what, number in log.left_out.items():
        tell(f"  {count(number, 'row')} left out: {what}", sys.stderr)
    for number, one, what in (
        (learned.repeated, "label", "of a pair that has one already: one counts"),
        (learned.contradictory, "pair", "with contradictory labels: such a pair counts as wrong"),
        (log.orphans, "verdict", "on a pair that the log has no look-up of"),
        (log.reports, "report", "without a question: such a report is about no pair"),
        (log.drawn, "row", "left out by lot: more would not make the certificate better"),
    ):
        if number:
            tell(f"  {count(number, one)} {what}", sys.stderr)


def tell_unread(unread: Mapping[str, int], named: Sequence[str]) -> None:
    if unread:
        tell(f"  {count(sum(unread.values()), 'line')} cannot be used:", sys.stderr)
        for reason, number in unread.items():
            places = [plain(one.removesuffix(f": {reason}")) for one in named if one.endswith(f": {reason}")]
            tell(f"    {number:,} {reason} ({', '.join(places)}{', …' if number > len(places) else ''})", sys.stderr)


def worth(found: Undecided) -> str:
    behind = len(found.pairs) - found.above
    texts = f" {count(found.without_texts, 'pair')} more have no texts in the log." if found.without_texts else ""
    return (
        f"{count(found.above, 'undecided pair')} that a cut in question would serve, by lot, then {behind:,} below it, "
        f"the nearest first.{texts}"
    )


def counted(read: Labelled) -> Json:
    return {
        "pairs": len(read.pairs),
        "questions": len(read.questions),
        "unread": dict(read.unread),
        "named": read.named,
        "repeated": read.repeated,
        "contradictory": read.contradictory,
        "left_out_by_lot": read.left_out,
    }


def chance(log_odds: float) -> str:
    return f"{50 * (1 + np.tanh(0.5 * log_odds)):.4g} %"


def date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Told:
    """How far it is: on a terminal one line that is redrawn, elsewhere a line every two seconds."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._told_at = clock()
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        terminal = sys.stderr.isatty()
        if self._clock() < self._told_at + (0.2 if terminal else _TOLD_EVERY):
            return
        self._told_at = self._clock()
        self._drawn = terminal
        line = f"{done:,} of {total:,} {self._what}"
        tell(f"\r\x1b[K{line}" if terminal else line, sys.stderr, end="" if terminal else "\n")

    def end(self) -> None:
        if self._drawn:
            tell("\r\x1b[K", sys.stderr, end="")
