"""What an audit says is fed to the cut that it was about, and to no other."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.tuning.files import TuningFiles
from service.caching.certificate import Certificate, Curve, Origin
from service.caching.fit import Fit
from service.caching.online import watch
from service.caching.rule import rule
from service.caching.tuned import WATCH, Tuned
from service.pipeline.tuning import Tuning

CURVE = Curve(cuts=[4.0, 2.0, 0.0], wrong=[0.001, 0.01, 0.1])
ORIGIN = Origin(labelled_by="people", embedder="e", verifier="v", data="d", date="2026-11-20")
CERTIFICATE = Certificate(0.02, 0.95, 1_200, 600, 3, 0.0129, 2.0, ORIGIN)
TUNED = Tuned("e", Fit(["cosine"], [1.0], 0.0, 0), CURVE, CERTIFICATE)


def watched(path: Path, *, cut: float | None) -> Tuning:
    store = TuningFiles(path=path)
    tuning = Tuning(store)
    tuning.tuned("e", TUNED)
    now = msgspec.structs.replace(watch(CERTIFICATE, CURVE), cut=cut)
    store.write("e", WATCH, msgspec.json.encode(now))
    return tuning


def test_an_audit_decided_before_nothing_was_served_says_nothing_about_the_strictest_cut(tmp_path: Path) -> None:
    tuning = watched(tmp_path, cut=None)

    late = tuning.audited("e", cut=2.0, wrong=True)
    shadowed = tuning.audited("e", cut=math.inf, wrong=False)

    assert late is not None
    assert late.seen == 0
    assert shadowed is not None
    assert (shadowed.seen, shadowed.wrong) == (1, 0)


def test_an_audit_in_shadow_that_comes_after_the_cut_came_back_is_passed_over(tmp_path: Path) -> None:
    tuning = watched(tmp_path, cut=4.0)

    late = tuning.audited("e", cut=math.inf, wrong=False)
    counted = tuning.audited("e", cut=4.0, wrong=False)

    assert late is not None
    assert late.seen == 0
    assert counted is not None
    assert counted.seen == 1


@pytest.mark.parametrize(
    "curve",
    [
        {"cuts": [], "wrong": []},
        {"cuts": [4.0, 2.0], "wrong": [0.1]},
        {"cuts": [4.0], "wrong": [0.1]},  # the certificate's cut is none of it
    ],
)
def test_a_certificate_that_contradicts_itself_is_as_good_as_none(tmp_path: Path, curve: Any) -> None:
    store = TuningFiles(path=tmp_path)
    content = msgspec.json.decode(msgspec.json.encode(TUNED))
    store.write("e", "tuned", msgspec.json.encode({**content, "curve": curve}))
    tuning = Tuning(store)

    known = tuning.known("e")
    found = rule(threshold=None, limit=0.02, verifier=None, embedder="e", tuned=known.tuned, watch=known.watch)

    assert known.tuned is None
    assert not found.certified
    assert tuning.audited("e", cut=2.0, wrong=True) is None


@pytest.mark.parametrize("damage", [{"cut": 3.0}, {"evidence": [0.0]}, {"certified": 3.0}])
def test_a_watch_that_contradicts_itself_is_begun_anew(tmp_path: Path, damage: Any) -> None:
    tuning = watched(tmp_path, cut=2.0)
    file = tmp_path / "e.watch.json"
    file.write_bytes(msgspec.json.encode({**msgspec.json.decode(file.read_bytes()), **damage}))

    known = tuning.known("e")
    begun = tuning.audited("e", cut=2.0, wrong=False)

    assert known.watch is None
    assert begun is not None
    assert (begun.cut, begun.seen) == (2.0, 1)
