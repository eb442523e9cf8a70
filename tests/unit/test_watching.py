"""What an audit says is fed to the cut that it was about, and to no other."""

import asyncio
import fcntl
import math
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.exact.memory import MemoryStore
from backends.tuning.files import TuningFiles
from models.completion import Completion, Usage
from service.caching.agreement import sketch
from service.caching.certificate import Certificate, Curve, Origin
from service.caching.directives import defaults
from service.caching.fit import Fit
from service.caching.identity import Question
from service.caching.online import watch
from service.caching.rule import Rule, rule
from service.caching.stored import StoredQuestion
from service.caching.tuned import WATCH, Tuned
from service.context import Caller, Context, Endpoint
from service.pipeline.exact_tier import ExactTier
from service.pipeline.outcomes import Outcomes
from service.pipeline.semantic_tier import Found, Look
from service.pipeline.tuning import Tuning
from service.telemetry.metrics import Metrics

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


async def test_a_disk_that_takes_its_time_is_waited_for_by_a_few_and_holds_up_nobody_else(tmp_path: Path) -> None:
    tuning = watched(tmp_path, cut=None)
    metrics = Metrics()
    exact = ExactTier(MemoryStore(), deadline=None, metrics=metrics)
    retuned: list[bool] = []

    async def retune() -> None:
        retuned.append(True)

    outcomes = Outcomes(exact, tuning, recorder=None, secret=b"s" * 32, retune=retune, metrics=metrics)
    endpoint = Endpoint("e")
    context = Context("r", endpoint, Caller("everyone"), defaults(endpoint), 0.0, {})
    drawn = sketch("Send them to the shop.")
    look = Look("k", StoredQuestion("What?", drawn), 0.99, score=9.0)
    nothing_served = Rule("fit", math.inf, 2.0, TUNED.fit, certified=True, watched=4.0)
    answer = Completion(b"{}", "m", Usage(1, 1), ("stop",))
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process does

    missed = [
        asyncio.create_task(
            outcomes.missed(context, Question("What?", "n"), Found(look=look), nothing_served, answer, drawn)
        )
        for _ in range(64)
    ]
    try:
        await asyncio.sleep(0)
        free = await asyncio.wait_for(asyncio.to_thread(int), 5.0)
    finally:
        os.close(lock)
    await asyncio.gather(*missed)

    assert free == 0
    known = tuning.known("e").watch
    assert known is not None
    assert known.seen == 1
    assert retuned == []  # the cut is where it was
