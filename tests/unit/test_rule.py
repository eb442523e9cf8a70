"""By what an endpoint decides, and what makes it decide otherwise."""

import math

import msgspec
import pytest

from backends.embedding.minilm import REVISION
from service.caching.certificate import Certificate, Curve, Labeller, Origin
from service.caching.fit import CUTS, default_fit
from service.caching.online import audited, watch
from service.caching.rule import THRESHOLD, Rule, rule
from service.caching.tuned import Tuned
from service.caching.verifier import Verifier, load

FIT = default_fit(verifier=True, agreement=False)
CURVE = Curve(cuts=list(CUTS), wrong=[0.0001 * (at + 1) for at in range(len(CUTS))])


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return load(REVISION)


def tuned(verifier: Verifier, *, limit: float = 0.02, by: Labeller = "people", embedder: str = REVISION) -> Tuned:
    origin = Origin(labelled_by=by, embedder=embedder, verifier=verifier.revision, data="d", date="2026-01-01")
    certificate = Certificate(
        limit=limit, confidence=0.95, samples=900, served=500, wrong=2, upper=0.015, cut=CUTS[50], origin=origin
    )
    return Tuned("e", FIT, CURVE, certificate)


def decide(verifier: Verifier | None, **given: object) -> Rule:
    settings: dict[str, object] = {"threshold": None, "limit": None, "tuned": None, "watch": None, **given}
    return rule(verifier=verifier, embedder=REVISION, **settings)  # type: ignore[arg-type]  # one of each kind


def test_a_threshold_is_a_cosine_whatever_else_is_known(verifier: Verifier) -> None:
    assert (decide(verifier, threshold=0.7).by, decide(verifier, threshold=0.7).cut) == ("cosine", 0.7)


def test_without_a_word_the_verifier_decides_at_its_shipped_cut(verifier: Verifier) -> None:
    assert (decide(verifier).by, decide(verifier).cut) == ("verifier", verifier.cut(0.01))
    assert (decide(None).by, decide(None).cut) == ("cosine", THRESHOLD)


def test_a_limit_that_is_not_certified_serves_at_half_of_it(verifier: Verifier) -> None:
    found = decide(verifier, limit=0.02)

    assert (found.by, found.cut, found.shadow) == ("verifier", verifier.cut(0.01), verifier.cut(0.02))
    assert (found.certified, found.why) == (False, "not certified")


def test_where_nothing_is_known_of_the_vectors_a_limit_serves_nothing() -> None:
    found = decide(None, limit=0.02)

    assert (found.cut, found.shadow, found.certified) == (math.inf, 0.0, False)


def test_a_certificate_lets_the_endpoints_own_fit_decide(verifier: Verifier) -> None:
    found = decide(verifier, limit=0.02, tuned=tuned(verifier))

    assert (found.by, found.cut, found.fit, found.certified, found.why) == ("fit", CUTS[50], FIT, True, "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"limit": 0.05}, "certified for 0.05, the limit is 0.02"),
        ({"by": "automatic"}, "labelled automatically: it only informs"),
        ({"embedder": "another/1"}, "certified for another embedder"),
    ],
)
def test_a_certificate_of_something_else_does_not_hold(verifier: Verifier, change: dict[str, object], why: str) -> None:
    found = decide(verifier, limit=0.02, tuned=tuned(verifier, **change))  # type: ignore[arg-type]  # one of each kind

    assert (found.by, found.certified, found.why) == ("verifier", False, why)
    assert found.cut == verifier.cut(0.01)


def test_audits_move_the_cut_and_the_certified_one_is_recorded(verifier: Verifier) -> None:
    known = tuned(verifier)
    assert known.certificate is not None
    now = watch(known.certificate, known.curve)
    while now.cut == CUTS[50]:
        now = audited(now, wrong=True)

    found = decide(verifier, limit=0.02, tuned=known, watch=now)
    nothing = decide(verifier, limit=0.02, tuned=known, watch=msgspec.structs.replace(now, cut=None))

    assert now.cut is not None
    assert found.cut == now.cut > found.shadow == CUTS[50]
    assert (nothing.cut, nothing.watched) == (math.inf, CUTS[0])


def test_a_watch_over_an_earlier_certificate_is_none(verifier: Verifier) -> None:
    known = tuned(verifier)
    assert known.certificate is not None
    earlier = msgspec.structs.replace(watch(known.certificate, known.curve), certified=CUTS[60], cut=CUTS[10])

    assert decide(verifier, limit=0.02, tuned=known, watch=earlier).cut == CUTS[50]


def test_what_was_decided_otherwise_has_another_revision(verifier: Verifier) -> None:
    rules = [
        decide(verifier),
        decide(None),
        decide(verifier, threshold=0.9),
        decide(verifier, threshold=0.91),
        decide(verifier, limit=0.02),
        decide(verifier, limit=0.02, tuned=tuned(verifier)),
    ]

    assert len({found.revision for found in rules}) == len(rules)
    assert decide(verifier).revision == decide(verifier).revision


def test_audits_bear_what_comparing_answers_gets_wrong(verifier: Verifier) -> None:
    known = msgspec.structs.replace(tuned(verifier), misjudged=0.3)
    assert known.certificate is not None
    strict, patient = watch(known.certificate, known.curve), watch(known.certificate, known.curve, misjudged=0.3)

    for at in range(200):
        strict, patient = audited(strict, wrong=at % 4 == 0), audited(patient, wrong=at % 4 == 0)

    assert strict.cut != CUTS[50]
    assert patient.cut == CUTS[50]
    assert decide(verifier, limit=0.02, tuned=known, watch=patient).cut == CUTS[50]


def test_audits_still_find_a_change_for_the_worse(verifier: Verifier) -> None:
    known = tuned(verifier)
    assert known.certificate is not None
    now = watch(known.certificate, known.curve, misjudged=0.3)

    for at in range(100):
        now = audited(now, wrong=at % 4 != 0)

    assert now.cut != CUTS[50]
