"""What is said of an endpoint at run time: put over what was said before, and in words."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from backends.tuning.files import TuningFiles
from models.errors import BackendError
from service.admin.endpoints import in_words, merged
from service.caching.certificate import Certificate, Curve, Origin
from service.caching.fit import Fit
from service.caching.online import watch
from service.caching.rule import Rule
from service.caching.tuned import Override, Tuned
from service.context import Endpoint
from service.pipeline.tuning import Tuning

CURVE = Curve(cuts=[4.0, 2.0, 0.0], wrong=[0.001, 0.01, 0.1])
ORIGIN = Origin(labelled_by="people", embedder="e", verifier="v", data="d", date="2026-11-20")
CERTIFICATE = Certificate(0.02, 0.95, 1_200, 600, 3, 0.0129, 2.0, ORIGIN)
TUNED = Tuned("e", Fit(["cosine"], [1.0], 0.0, 0), CURVE, CERTIFICATE)
LIMITED = Endpoint("e", limit=0.02)
UNLIMITED = Endpoint("e")


@pytest.mark.parametrize(
    ("old", "given", "new"),
    [
        (Override(), {"threshold": 0.9}, Override(threshold=0.9)),
        (Override(max_wrong_hit_rate=0.01), {"threshold": 0.9}, Override(threshold=0.9)),
        (Override(threshold=0.9), {"max_wrong_hit_rate": 0.01}, Override(max_wrong_hit_rate=0.01)),
        (Override(threshold=0.9, audit_rate=0.1), {"threshold": None}, Override(audit_rate=0.1)),
        (Override(threshold=0.9), {"max_wrong_hit_rate": None}, Override(threshold=0.9)),
        (Override(threshold=0.9), {"audit_rate": 0.0}, Override(threshold=0.9, audit_rate=0.0)),
        (Override(), {"threshold": 0.0, "max_wrong_hit_rate": None}, Override(threshold=0.0)),
    ],
)
def test_a_change_is_put_over_what_was_there(old: Override, given: dict[str, float | None], new: Override) -> None:
    assert merged(old, given, now=5.0) == msgspec.structs.replace(new, changed_at=5.0)


def test_two_who_change_an_endpoint_at_once_lose_nothing(tmp_path: Path) -> None:
    tunings = [Tuning(TuningFiles(path=tmp_path)) for _ in range(4)]

    def added(tuning: Tuning) -> None:
        for _ in range(25):
            tuning.change_override(
                "e", lambda old: msgspec.structs.replace(old, audit_rate=(old.audit_rate or 0.0) + 0.01)
            )

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(added, tuning) for tuning in tunings]:
            done.result()

    assert tunings[0].known("e").override.audit_rate == pytest.approx(1.0)


def test_an_override_that_says_nothing_is_gone(tmp_path: Path) -> None:
    tuning = Tuning(TuningFiles(path=tmp_path))
    tuning.change_override("e", lambda _: Override(threshold=0.9))

    left = tuning.change_override("e", lambda _: Override(changed_at=5.0))

    assert left == Override()
    assert not list(tmp_path.glob("*.json"))


def test_an_override_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    tuning = Tuning(TuningFiles(path=tmp_path))
    (tmp_path / "e.override.json").write_bytes(b"{torn")

    changed = tuning.change_override("e", lambda old: msgspec.structs.replace(old, threshold=0.9))

    assert changed == Override(threshold=0.9)


@pytest.mark.parametrize(
    ("name", "what"), [("tuned", "certify again"), ("override", "say it again"), ("watch", "audits begin anew")]
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, what: str
) -> None:
    (tmp_path / f"e.{name}.json").write_bytes(b"{torn")

    known = Tuning(TuningFiles(path=tmp_path)).known("e")

    assert known.tuned is None
    assert f"tuning/e.{name}.json in storage.path is damaged" in caplog.text
    assert what in caplog.text


def test_a_change_that_cannot_be_kept_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "tuning").write_bytes(b"no folder")

    with pytest.raises(BackendError, match="cannot be written"):
        Tuning(TuningFiles(path=tmp_path / "tuning")).change_override("e", lambda old: old)


@pytest.mark.parametrize(
    ("endpoint", "rule", "begins"),
    [
        (Endpoint("e", mode="exact"), Rule("cosine", 0.9), "No semantic hits: the mode is exact."),
        (UNLIMITED, None, "No semantic hits"),
        (UNLIMITED, Rule("cosine", 0.9), "A stored question of cosine 0.9 and above is served."),
        (UNLIMITED, Rule("verifier", 0.9), "The shipped verifier decides"),
        (LIMITED, Rule("verifier", 0.9, 0.8, why="not certified"), "Not certified: until it is, the shipped verifier"),
        (LIMITED, Rule("fit", math.inf, 0.0, why="not certified"), "Not certified: no verifier knows this embedder"),
        (
            LIMITED,
            Rule("verifier", 0.9, 0.8, why="certified for another embedder"),
            "Not certified (certified for another embedder): until",
        ),
        (
            LIMITED,
            Rule("fit", 2.0, 2.0, certified=True),
            "Certified for at most 2 % of wrong hits (1,200 labels by people, 2026-11-20, confidence 95 %).",
        ),
        (Endpoint("e", mode="shadow", limit=0.02), Rule("fit", 2.0, 2.0, certified=True), "Shadow: nothing is served"),
    ],
)
def test_what_decides_is_said_in_words(endpoint: Endpoint, rule: Rule | None, begins: str) -> None:
    assert in_words(endpoint, rule, TUNED, None).startswith(begins)


@pytest.mark.parametrize(("cut", "ends"), [(4.0, "after 1 such findings."), (math.inf, "until they say otherwise.")])
def test_a_cut_that_audits_moved_is_said_to_be(cut: float, ends: str) -> None:
    moved = msgspec.structs.replace(watch(CERTIFICATE, CURVE), tightened=1)

    told = in_words(LIMITED, Rule("fit", cut, 2.0, certified=True), TUNED, moved)

    assert told.endswith(ends)
