"""By what an endpoint decides whether a candidate may answer, and what it only records.

With a threshold: the cosine. With neither: the verifier's chance at its shipped
cut, or cosine .92 where no verifier knows the embedder. With a limit and a
certificate for it: the endpoint's own fit at the certified cut, or at the
stricter one that audits moved it to; up to the certified one is recorded. With
a limit and none: the verifier at its shipped cut of half the limit; up to that
of the limit is recorded, and without a verifier nothing is served. Vetoes and
the request's own `x-keepgate-threshold` stand above all of these.
"""

import math
from hashlib import blake2b
from typing import Literal

import msgspec

from service.caching import vetoes
from service.caching.fit import Fit, default_fit
from service.caching.online import Watch, borne
from service.caching.tuned import Tuned, refusal
from service.caching.verifier import Verifier

# Where nobody said what is near enough and no verifier knows the embedder.
THRESHOLD = 0.92
# What the shipped verifier decides at: this share of different public pairs is served.
SHIPPED = 0.01


class Rule(msgspec.Struct, frozen=True):
    """A score at or above `cut` is served, one at or above `shadow` is recorded. What the score is follows from `by`:
    the cosine, the verifier's P, or log-odds by `fit`. `why`: what is missing for a certificate, where the endpoint has
    a limit. `share`: the verifier need not look at what cannot reach its cut of that. `watched`: while audits let
    nothing be served, what scores at least this is compared in their place. `revision` names all of it: what was
    decided under another one is decided anew.
    """

    by: Literal["cosine", "verifier", "fit"]
    cut: float
    shadow: float = math.inf
    fit: Fit | None = None
    certified: bool = False
    why: str = ""
    share: float = SHIPPED
    watched: float = math.inf
    embedder: str = ""
    verifier: str = ""
    revision: str = ""


def rule(
    *,
    threshold: float | None,
    limit: float | None,
    verifier: Verifier | None,
    embedder: str,
    tuned: Tuned | None = None,
    watch: Watch | None = None,
    opinion: str = "",
) -> Rule:
    """The rule for an endpoint with this threshold or limit. `watch` is what became of the certified cut since,
    `opinion` the revision of a second opinion on the verifier's chances."""
    trained = judged_by(verifier, opinion)
    if threshold is not None:
        found = Rule("cosine", threshold)
    elif limit is None:
        found = Rule("cosine", THRESHOLD) if verifier is None else Rule("verifier", verifier.cut(SHIPPED))
    else:
        found = _limited(limit, verifier, embedder, trained, tuned, watch)
    found = msgspec.structs.replace(found, embedder=embedder, verifier=trained)
    named = repr((vetoes.REVISION, msgspec.structs.astuple(found))).encode()
    return msgspec.structs.replace(found, revision=blake2b(named, digest_size=8).hexdigest())


def judged_by(verifier: Verifier | None, opinion: str = "") -> str:
    """What a certificate is for, beside the embedder: the verifier's revision, and that of a second opinion."""
    if verifier is None:
        return ""
    return f"{verifier.revision}+{opinion}" if opinion else verifier.revision


def _limited(
    limit: float, verifier: Verifier | None, embedder: str, trained: str, tuned: Tuned | None, watch: Watch | None
) -> Rule:
    why = "not certified" if tuned is None else refusal(tuned, embedder=embedder, verifier=trained, limit=limit)
    if tuned is not None and tuned.certificate is not None and not why:
        certified = tuned.certificate.cut
        cut: float | None = certified
        strictest = tuned.curve.cuts[min(range(len(tuned.curve.cuts)), key=tuned.curve.wrong.__getitem__)]
        now_borne = borne(tuned.certificate, tuned.misjudged)
        if watch is not None and watch.certified == certified and watch.limit == now_borne:
            cut = watch.cut
        now = math.inf if cut is None else cut
        return Rule("fit", now, certified, tuned.fit, certified=True, watched=strictest)
    if verifier is None:
        # Nothing is known of these vectors. What an even chance would serve is recorded.
        return Rule("fit", math.inf, 0.0, default_fit(verifier=False, agreement=True), why=why)
    return Rule("verifier", verifier.cut(limit / 2), verifier.cut(limit), why=why, share=limit)
