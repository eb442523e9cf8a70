"""From labelled look-ups to what is kept of an endpoint: its fit, what it is expected to do, and the certificate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.caching.certificate import (
    Certificate,
    Curve,
    Label,
    Origin,
    Shortfall,
    certify,
    labelled_by,
    needed,
)
from service.caching.fit import fit
from service.caching.tuned import Tuned, refusal
from service.tune.samples import Samples, data_revision

# Equal parts of all look-ups, by score: in each it is counted how many have a label.
_PARTS = 5
_LEAST_COVERED = 0.5
# Share of labels below every cut: where there are none, nothing is known of what a cut would serve.
_FEWEST_BELOW = 0.01


class Found(NamedTuple):
    """`informs` is what all labels together would certify, where some are automatic and so do not; `trusted` is how
    many are not. `thinned` of those were left out by lot: their kind was labelled more often than others."""

    tuned: Tuned
    informs: Certificate | Shortfall | None
    trusted: int
    thinned: int

    @property
    def certified(self) -> bool:
        certificate = self.tuned.certificate
        return certificate is not None and certificate.certifies


class Share(NamedTuple):
    """Which labels stand for all look-ups, down to the score of `lowest`."""

    chosen: NDArray[np.bool_]
    lowest: float


def certified(
    samples: Samples, *, endpoint: str, limit: float, confidence: float, embedder: str, verifier: str, date: str
) -> Found:
    """Fits to every label, certifies by those of people and of a judge model; without one of these, all only inform.

    No cut is so loose that hardly a label scores below it: pairs that were
    picked because they are alike say nothing of those that are less so.
    Raises `ValueError` for a limit or confidence outside (0, 1).
    """
    fitted = fit(samples.features, samples.wrong, groups=samples.groups)
    trusted = np.array([by != "automatic" for by in samples.by], bool)
    among = None if samples.among is None else fitted.fit.scores(samples.among)

    def by(chosen: NDArray[np.bool_]) -> tuple[Certificate | Shortfall, int]:
        kept, lowest = chosen, -np.inf
        if among is not None:
            share = standing_for(among, fitted.scores[chosen], [samples.keys[at] for at in np.flatnonzero(chosen)])
            kept, lowest = chosen.copy(), share.lowest
            kept[np.flatnonzero(chosen)[~share.chosen]] = False
        if kept.any():
            lowest = max(lowest, float(np.quantile(fitted.scores[kept], _FEWEST_BELOW)))
        count = sum(cut >= lowest for cut in fitted.curve.cuts)
        curve = Curve(cuts=fitted.curve.cuts[:count], wrong=fitted.curve.wrong[:count])
        who = [Label("", "", False, one) for one, taken in zip(samples.by, kept.tolist(), strict=True) if taken]
        origin = Origin(
            labelled_by=labelled_by(who) if who else "automatic",
            embedder=embedder,
            verifier=verifier,
            data=data_revision(samples, kept),
            date=date,
        )
        found = certify(
            fitted.scores[kept],
            samples.wrong[kept],
            limit=limit,
            curve=curve,
            origin=origin,
            confidence=confidence,
        )
        return found, int(chosen.sum() - kept.sum())

    everything = np.ones(len(trusted), bool)
    found, thinned = by(trusted if trusted.any() else everything)
    informs = None
    if trusted.any() and not trusted.all():
        informs, _ = by(everything)
    tuned = Tuned(
        endpoint=endpoint,
        fit=fitted.fit,
        curve=fitted.curve,
        certificate=found if isinstance(found, Certificate) else None,
        shortfall=found if isinstance(found, Shortfall) else None,
    )
    return Found(tuned, informs, int(trusted.sum()), thinned)


def standing_for(among: NDArray[np.float64], labelled: NDArray[np.float64], keys: Sequence[bytes]) -> Share:
    """Labels that may stand for all look-ups, though which were labelled depended on their scores.

    `among` are the scores of all, `labelled` of those with a label, of which
    `keys` draw the lots. Looked at are those with an even chance and better,
    in parts of equal size. The loosest parts are given up while less than half
    as many of them have a label as of all above; of stricter, easier parts no
    more are kept than of looser ones; and of what scores below every label
    nothing is said. So the share of wrong answers among the kept is no lower
    than among all, whatever was labelled first.
    """
    chosen = np.ones(len(labelled), bool)
    there = np.sort(among[among >= 0])[::-1]
    if not len(there):
        return Share(chosen, 0.0)
    parts = min(_PARTS, len(there))
    edges = [float(there[len(there) * (part + 1) // parts - 1]) for part in range(parts - 1)]
    # By how many edges a score lies below: 0 is the strictest part.
    part_of = np.searchsorted(-np.array(edges), -labelled, side="left")
    all_of = np.searchsorted(-np.array(edges), -there, side="left")
    of_all = np.bincount(all_of, minlength=parts)
    known = labelled >= 0
    of_labelled = np.bincount(part_of[known], minlength=parts)
    covered = of_labelled / np.maximum(of_all, 1)
    last = parts - 1
    while last >= 0:
        overall = of_labelled[: last + 1].sum() / max(int(of_all[: last + 1].sum()), 1)
        if covered[last] > 0 and covered[last] >= _LEAST_COVERED * overall:
            break
        last -= 1
    if last < 0:
        return Share(np.zeros(len(labelled), bool), np.inf)
    rate = covered[last]
    for part in range(last, -1, -1):
        if covered[part] > rate:
            members = np.flatnonzero((part_of == part) & known)
            kept = int(rate * of_all[part])
            drawn = sorted(members.tolist(), key=lambda at: keys[at])
            chosen[drawn[kept:]] = False
        elif of_all[part]:
            rate = covered[part]
    return Share(chosen, float(labelled[(part_of == last) & known].min()))


def stays(old: Tuned | None, new: Found, *, limit: float | None, embedder: str, verifier: str) -> str:
    """Why what is kept of the endpoint is not replaced; "" where what was found takes its place.

    Labels that prove nothing do not take a certificate back that holds, unless
    those of people or a judge say that it should not. `limit` is the
    endpoint's, None where it has none.
    """
    certificate = None if old is None else old.certificate
    if old is None or certificate is None:
        return ""
    if refusal(old, embedder=embedder, verifier=verifier, limit=limit or certificate.limit):
        return ""
    if new.certified:
        would_not = refusal(new.tuned, embedder=embedder, verifier=verifier, limit=limit or 1.0)
        return f"the new one would not hold: {would_not}" if would_not else ""
    if not new.trusted:
        return "automatic labels only inform"
    short = new.tuned.shortfall
    if short is not None and short.reason == "too-often-wrong" and short.limit >= certificate.limit:
        return ""
    return "these labels do not speak against it"


def still_needed(found: Certificate | Shortfall) -> int | None:
    """How many verdicts by people or a judge it takes about, where automatic labels said this; None: no number."""
    if isinstance(found, Shortfall):
        return found.missing
    rate = (found.wrong + 0.5) / (found.served + 1)
    return needed(found.limit, rate, confidence=found.confidence)
