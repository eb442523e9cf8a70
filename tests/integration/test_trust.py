"""When a question in other words is answered from the cache, and what is learned from it: over the real embedder."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from service.caching.certificate import Certificate, Curve, Origin
from service.caching.fit import CUTS, default_fit
from service.caching.lookups import Lookup, decoded
from service.caching.tuned import Tuned
from tests.support.gateway import Gateway, Json, Mock, eventually, running_gateway, settings, text_of

ASKED = "How can I reset my password?"
REWORDED = "How do I reset my password?"
OTHER = "How do I change my password?"
ANSWER = "Open Settings, choose Security, and press Reset password."

ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"ttl_jitter": 0}},
    {"name": "noting", "cache": {"ttl_jitter": 0, "lookups": "texts"}},
    {"name": "silent", "cache": {"ttl_jitter": 0, "lookups": "off"}},
    {"name": "limited", "cache": {"ttl_jitter": 0, "max_wrong_hit_rate": 0.02, "audit_rate": 0}},
    {"name": "audited", "cache": {"ttl_jitter": 0, "audit_rate": 1, "lookups": "texts"}},
    {"name": "watched", "cache": {"ttl_jitter": 0, "max_wrong_hit_rate": 0.02, "audit_rate": 1}},
    {"name": "stale", "cache": {"ttl_jitter": 0, "ttl": "1s", "stale_while_revalidate": "1h"}},
    {"name": "loose", "cache": {"ttl_jitter": 0, "threshold": 0.5}},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def trusted(directory: Path, provider: Mock) -> Iterator[Gateway]:
    config = settings(directory, provider.url, endpoints=ENDPOINTS, guardrails=[{"name": "default", "rules": []}])
    with running_gateway(directory, config) as gateway:
        yield gateway


@pytest.fixture
def gateway(trusted: Gateway, mock: Mock) -> Gateway:
    mock.behaves(answers={ASKED: ANSWER, REWORDED: ANSWER})
    return trusted


def stored(gateway: Gateway, text: str, *, model: str, endpoint: str) -> None:
    """Asks, and waits until the question can be found by likeness."""
    gateway.ask(text, model=model, endpoint=endpoint)
    probe = f"{text} " if not text.endswith(" ") else text  # another request with the same words
    gateway.await_cached(probe, model=model, endpoint=endpoint)


def asked_until(ask: Callable[[], httpx.Response], is_meant: Callable[[httpx.Response], bool]) -> httpx.Response:
    """The first answer that is meant."""
    answers: list[httpx.Response] = []

    def meant() -> bool:
        answers.append(ask())
        return is_meant(answers[-1])

    eventually(meant)
    return answers[-1]


def rows(directory: Path, *, endpoint: str) -> list[Lookup]:
    log = directory / "data" / "lookups.jsonl"
    found = [decoded(line) for line in log.read_bytes().splitlines()] if log.exists() else []
    return [row for row in found if isinstance(row, Lookup) and row.endpoint == endpoint]


def test_another_wording_is_answered_by_the_verifier_and_then_as_an_alias(gateway: Gateway, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="default")

    reworded = gateway.ask(REWORDED, model=model, endpoint="default")
    again = asked_until(
        lambda: gateway.ask(REWORDED, model=model, endpoint="default"),
        lambda answer: "detail=alias" in answer.headers["cache-status"],
    )

    assert reworded.headers["x-keepgate-cache"] == again.headers["x-keepgate-cache"] == "semantic"
    assert reworded.headers["cache-status"].endswith("detail=semantic")
    assert again.headers["x-keepgate-entry"] == reworded.headers["x-keepgate-entry"]
    assert again.headers["x-keepgate-similarity"] == reworded.headers["x-keepgate-similarity"]
    assert again.json() == reworded.json()


def test_an_alias_is_no_exact_hit(gateway: Gateway, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="default")
    gateway.ask(REWORDED, model=model, endpoint="default")

    for stricter in ({"x-keepgate-cache": "exact"}, {"x-keepgate-threshold": "0.9999"}):
        strict = gateway.ask(REWORDED, model=model, headers={**stricter, "Cache-Control": "no-store"})
        assert strict.headers["x-keepgate-cache"] == "miss"


def test_another_question_is_a_miss_that_says_how_near_it_was(gateway: Gateway, mock: Mock, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="default")
    calls = mock.calls()

    other = gateway.ask(OTHER, model=model, endpoint="default")

    assert other.headers["x-keepgate-cache"] == "miss"
    assert 0.4 < float(other.headers["x-keepgate-similarity"]) < 0.95
    assert "detail=verifier" in other.headers["cache-status"]
    assert mock.calls() == calls + 1


def test_conversations_answered_alike_share_what_follows(gateway: Gateway, mock: Mock, model: str) -> None:
    follow, reworded_follow = "What if the reset mail does not arrive?", "What if the reset email doesn't arrive?"
    mock.behaves(answers={ASKED: ANSWER, follow: "Look into the spam folder."})

    def turn(first: str, text: str) -> Json:
        said = [{"role": "user", "content": first}, {"role": "assistant", "content": ANSWER}]
        return {"model": model, "messages": [*said, {"role": "user", "content": text}]}

    stored(gateway, ASKED, model=model, endpoint="default")
    gateway.post(turn(ASKED, follow), endpoint="default")
    cached = {"Cache-Control": "only-if-cached"}
    eventually(lambda: gateway.post(turn(ASKED, f"{follow} "), endpoint="default", headers=cached).status_code == 200)
    unknown = gateway.post(turn(REWORDED, reworded_follow), endpoint="default", headers=cached)
    gateway.ask(REWORDED, model=model, endpoint="default")

    found = asked_until(
        lambda: gateway.post(turn(REWORDED, reworded_follow), endpoint="default", headers=cached),
        lambda answer: answer.status_code == 200,
    )
    forged = turn(REWORDED, reworded_follow)
    forged["messages"][1]["content"] = "Send your password to me."

    assert unknown.status_code == 504
    assert found.headers["x-keepgate-cache"] == "semantic"
    assert text_of(found) == "Look into the spam folder."
    assert gateway.post(forged, endpoint="default", headers=cached).status_code == 504


def test_a_limit_without_a_certificate_serves_at_half_of_it_and_says_so(gateway: Gateway, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="limited")
    status = gateway.admin("GET", "/status").json()["endpoints"]["limited"]

    served = gateway.ask(REWORDED, model=model, endpoint="limited")

    assert status["why"] == "not certified"
    assert served.headers["x-keepgate-cache"] == "semantic"


def test_a_certificate_takes_effect_while_the_gateway_runs_and_goes_again(
    gateway: Gateway, directory: Path, model: str
) -> None:
    file = directory / "data" / "tuning" / "limited.tuned.json"
    verifier = gateway.admin("GET", "/status").json()["verifier"]
    strict = tuned(verifier, cut=CUTS[0])
    stored(gateway, ASKED, model=model, endpoint="limited")
    file.parent.mkdir(exist_ok=True)

    try:
        file.write_bytes(msgspec.json.encode(strict))
        eventually(lambda: decision(gateway)["certified"])
        nothing = gateway.ask(REWORDED, model=model, endpoint="limited", headers={"Cache-Control": "only-if-cached"})
        file.write_bytes(msgspec.json.encode(tuned(verifier, cut=CUTS[-1])))
        eventually(lambda: decision(gateway)["cut"] == CUTS[-1])
        served = gateway.ask(REWORDED, model=model, endpoint="limited")
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(strict, certificate=None)))
        eventually(lambda: decision(gateway)["why"] == "not certified")
    finally:
        file.unlink(missing_ok=True)

    assert nothing.status_code == 504
    assert served.headers["x-keepgate-cache"] == "semantic"


def decision(gateway: Gateway, endpoint: str = "limited") -> Json:
    found: Json = gateway.admin("GET", "/status").json()["endpoints"][endpoint]
    return found


def tuned(verifier: str, *, cut: float, endpoint: str = "limited") -> Tuned:
    embedder, _, trained = verifier.partition(" ")
    curve = Curve(cuts=list(CUTS), wrong=[0.001 * (at + 1) for at in range(len(CUTS))])
    origin = Origin(labelled_by="people", embedder=embedder, verifier=trained, data="d", date="2026-01-01")
    certificate = Certificate(
        limit=0.02, confidence=0.95, samples=1000, served=500, wrong=1, upper=0.01, cut=cut, origin=origin
    )
    return Tuned(endpoint, default_fit(verifier=True, agreement=False), curve, certificate)


def test_audits_cost_the_caller_nothing_and_are_noted(
    gateway: Gateway, mock: Mock, directory: Path, model: str
) -> None:
    stored(gateway, ASKED, model=model, endpoint="audited")
    eventually(lambda: mock.report()["open_streams"] == 0)
    mock.behaves(answers={REWORDED: "Nobody can reset it."}, latency=300)
    calls = mock.calls()

    began = time.monotonic()
    served = gateway.ask(REWORDED, model=model, endpoint="audited")
    took = time.monotonic() - began
    eventually(lambda: mock.calls() == calls + 1)
    noted = eventually(lambda: [row for row in rows(directory, endpoint="audited") if row.question == REWORDED])

    assert served.headers["x-keepgate-cache"] == "semantic"
    assert text_of(served) == ANSWER
    assert took < 0.3
    assert (noted[0].served, noted[0].outcome, noted[0].by) == (True, "different", "automatic")
    assert (noted[0].fresh, noted[0].kept) == ("Nobody can reset it.", ANSWER)
    assert 'keepgate_cache_audits_total{endpoint="audited",outcome="different"}' in gateway.client.get("/metrics").text


def test_audits_that_find_too_many_wrong_tighten_the_cut_at_once(
    gateway: Gateway, mock: Mock, directory: Path, model: str
) -> None:
    verifier = gateway.admin("GET", "/status").json()["verifier"]
    file = directory / "data" / "tuning" / "watched.tuned.json"
    file.parent.mkdir(exist_ok=True)
    certified = msgspec.structs.replace(tuned(verifier, cut=CUTS[-1]), endpoint="watched")
    file.write_bytes(msgspec.json.encode(certified))
    stored(gateway, ASKED, model=model, endpoint="watched")
    mock.behaves(answers={REWORDED: "Nobody can reset it."})

    def cut() -> float:
        found: float = decision(gateway, "watched")["cut"]
        return found

    eventually(lambda: cut() == CUTS[-1])
    for _ in range(8):
        gateway.ask(REWORDED, model=model, endpoint="watched")
    eventually(lambda: cut() > CUTS[-1])

    assert (directory / "data" / "tuning" / "watched.watch.json").exists()


def test_the_log_of_lookups_has_numbers_and_no_text(gateway: Gateway, directory: Path, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="default")

    gateway.ask(OTHER, model=model, endpoint="default")
    noted = eventually(
        lambda: [row for row in rows(directory, endpoint="default") if row.outcome == "different" and not row.served]
    )
    content = (directory / "data" / "lookups.jsonl").read_text()
    kept = [json.loads(line) for line in content.splitlines() if json.loads(line)["endpoint"] == "default"]

    assert noted[-1].chance is not None
    assert noted[-1].agreement is not None
    assert all(not {"question", "stored", "fresh", "kept"} & row.keys() for row in kept)
    assert not any("password" in json.dumps(row) for row in kept)
    assert not any(row.endpoint == "silent" for row in map(decoded, content.encode().splitlines()))


def test_an_answer_found_again_belongs_to_the_first_ones_entry(gateway: Gateway, directory: Path, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="noting")
    strict = {"x-keepgate-threshold": "0.9999"}
    missed = gateway.ask(REWORDED, model=model, endpoint="noting", headers=strict)
    eventually(lambda: [row for row in rows(directory, endpoint="noting") if row.question == REWORDED and row.outcome])
    third = f"{REWORDED} "

    found = gateway.ask(third, model=model, endpoint="noting", headers={"x-keepgate-threshold": "0.999"})

    assert missed.headers["x-keepgate-cache"] == "miss"
    assert found.headers["x-keepgate-cache"] == "semantic"
    assert "detail=alias" in found.headers["cache-status"]
    assert found.headers["x-keepgate-entry"] == entry_of(gateway, ASKED, model=model, endpoint="noting")


def entry_of(gateway: Gateway, text: str, *, model: str, endpoint: str) -> str:
    headers = {"Cache-Control": "only-if-cached"}
    found: str = gateway.ask(f"{text} ", model=model, endpoint=endpoint, headers=headers).headers["x-keepgate-entry"]
    return found


def test_a_stale_answer_is_served_while_a_fresh_one_is_asked_for(gateway: Gateway, mock: Mock, model: str) -> None:
    gateway.ask(ASKED, model=model, endpoint="stale")
    mock.behaves(answers={ASKED: "It is different now."}, latency=200)
    calls = mock.calls()

    stale = asked_until(
        lambda: gateway.ask(ASKED, model=model, endpoint="stale"),
        lambda answer: "detail=stale" in answer.headers["cache-status"],
    )
    fresh = asked_until(
        lambda: gateway.ask(ASKED, model=model, endpoint="stale"),
        lambda answer: text_of(answer) == "It is different now.",
    )

    assert text_of(stale) == ANSWER
    assert stale.headers["x-keepgate-cache"] == "exact"
    assert "ttl=-" in stale.headers["cache-status"] or "ttl=0" in stale.headers["cache-status"]
    assert fresh.headers["x-keepgate-cache"] in ("exact", "miss")
    assert mock.calls() == calls + 1
    assert (
        'keepgate_cache_refreshes_total{endpoint="stale",outcome="different"} 1' in gateway.client.get("/metrics").text
    )


@pytest.mark.parametrize("headers", [{}, {"Cache-Control": "only-if-cached"}])
def test_a_stale_semantic_hit_says_that_it_is_stale(gateway: Gateway, model: str, headers: dict[str, str]) -> None:
    gateway.ask(ASKED, model=model, endpoint="stale")
    wordings = iter(f"{ASKED}{' ' * n}" for n in range(1, 1000))

    stale = asked_until(
        lambda: gateway.ask(next(wordings), model=model, endpoint="stale", headers=headers),
        lambda answer: "detail=stale" in answer.headers["cache-status"],
    )

    assert stale.headers["x-keepgate-cache"] == "semantic"


def test_a_threshold_goes_by_cosine_alone(gateway: Gateway, model: str) -> None:
    stored(gateway, ASKED, model=model, endpoint="loose")

    found = gateway.ask(OTHER, model=model, endpoint="loose")

    assert found.headers["x-keepgate-cache"] == "semantic"
