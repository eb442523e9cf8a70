"""What operators reach while gateways run: limits, reports about entries, and warming up, by HTTP and command line."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import yaml

from backends.tuning.files import TuningFiles
from service.caching.certificate import Certificate, Curve, Origin
from service.caching.fit import Fit
from service.caching.lookups import Lookup, encoded
from service.caching.tuned import Tuned
from service.pipeline.tuning import Tuning
from tests.support.gateway import (
    ADMIN_TOKEN,
    Gateway,
    Json,
    Mock,
    eventually,
    keepgate,
    question,
    running_gateway,
    settings,
    streamed_text,
    text_of,
    worker_of,
)
from tests.support.servers import ROOT, Server

QUESTION = "How do I download my invoice?"
REPHRASED = "How can I download my invoice?"
ANSWER = "Under Billing, as a PDF."
ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"mode": "semantic", "threshold": 0.85, "ttl": "1h", "ttl_jitter": 0}},
    {"name": "limited", "cache": {"mode": "semantic", "max_wrong_hit_rate": 0.01}},
    {"name": "exact", "cache": {"mode": "exact"}},
    {"name": "off", "cache": {"mode": "off"}},
    {"name": "quiet", "cache": {"mode": "semantic", "threshold": 0.85, "lookups": "off"}},
    {"name": "mine", "cache": {"mode": "semantic", "threshold": 0.85, "scope": "key"}},
    {"name": "guarded", "cache": {"mode": "semantic", "threshold": 0.85}, "guardrails": ["strict"]},
]
GUARDRAILS: list[Json] = [
    {
        "name": "strict",
        "rules": [
            {"detect": "email", "on": ["input"], "action": "mask"},
            {"detect": "regex", "pattern": "PROJ-[0-9]{4}", "on": ["input", "output"], "action": "block"},
            {"detect": "regex", "pattern": "SECRET", "on": ["output"], "action": "redact"},
        ],
    }
]
UNKNOWN = "0" * 64


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("operators")
    config = settings(directory, provider.url, endpoints=ENDPOINTS, guardrails=GUARDRAILS)
    with running_gateway(directory, config, "--workers", "2") as gateway:
        on_every_worker(gateway, lambda answer: "loading" not in answer.headers["cache-status"], endpoint="default")
        yield gateway


@pytest.fixture
def pair(shared_pair: Gateway, mock: Mock) -> Iterator[Gateway]:  # noqa: ARG001 - a test that asks begins with a fresh mock
    """Two workers over one storage; afterwards nothing is overridden."""
    yield shared_pair
    for endpoint in ("default", "limited"):
        shared_pair.admin("DELETE", f"/endpoints/{endpoint}/override").raise_for_status()


def on_every_worker(
    gateway: Gateway, wanted: Callable[[httpx.Response], bool], *, endpoint: str, within: float = 30.0
) -> None:
    """Waits until two workers answered one after the other, on connections of their own, as wanted."""
    body = question(REPHRASED, model="shared")

    def both() -> bool:
        seen: dict[str, bool] = {}
        while len(seen) < 2:
            headers = {"Connection": "close", "Cache-Control": "no-store"}
            answer = gateway.client.post(f"/e/{endpoint}/v1/chat/completions", json=body, headers=headers)
            seen[worker_of(answer)] = wanted(answer)
        return all(seen.values())

    eventually(both, within=within)


def change(gateway: Gateway, endpoint: str, **fields: Any) -> httpx.Response:
    return gateway.admin("PATCH", f"/endpoints/{endpoint}", json=fields)


def outcome(answer: httpx.Response) -> str:
    return answer.headers["x-keepgate-cache"]


def cached(gateway: Gateway, text: str, model: str, *, endpoint: str = "default") -> bool:
    asked = {"Cache-Control": "only-if-cached"}
    return gateway.ask(text, model=model, endpoint=endpoint, headers=asked).status_code == 200


# --- endpoints


def test_an_endpoint_tells_what_the_file_says_and_what_is_in_effect(pair: Gateway) -> None:
    listed = {one["name"]: one for one in pair.admin("GET", "/endpoints").json()}
    limited = pair.admin("GET", "/endpoints/limited").json()

    assert list(listed) == [endpoint["name"] for endpoint in ENDPOINTS]
    assert listed["default"]["file"] == {"threshold": 0.85, "max_wrong_hit_rate": None, "audit_rate": None}
    assert (listed["default"]["rule"]["by"], listed["default"]["rule"]["cut"]) == ("cosine", 0.85)
    assert listed["off"]["in_words"] == "No semantic hits: the mode is off."
    assert (limited["max_wrong_hit_rate"], limited["audit_rate"], limited["override"]) == (0.01, 0.01, None)
    assert not limited["rule"]["certified"]
    assert limited["rule"]["why"] == "not certified"
    assert limited["in_words"].startswith("Not certified")


def test_a_changed_threshold_counts_for_the_next_request_and_on_every_worker(pair: Gateway) -> None:
    pair.ask(QUESTION, model="shared")
    pair.await_cached(REPHRASED, model="shared", endpoint="default")

    changed = change(pair, "default", threshold=0.999)
    # The connection is kept, so the same worker answers.
    at_once = pair.ask(REPHRASED, model="shared", headers={"Cache-Control": "no-store"})
    began = time.monotonic()
    on_every_worker(pair, lambda answer: outcome(answer) == "miss", endpoint="default", within=5)
    took = time.monotonic() - began
    given_back = pair.admin("DELETE", "/endpoints/default/override").json()
    on_every_worker(pair, lambda answer: outcome(answer) == "semantic", endpoint="default", within=5)

    assert (changed.json()["threshold"], changed.json()["override"]["threshold"]) == (0.999, 0.999)
    assert outcome(at_once) == "miss"
    assert took < 5
    assert (given_back["threshold"], given_back["override"]) == (0.85, None)


def test_a_limit_takes_the_place_of_a_threshold_and_null_gives_back_the_files(pair: Gateway) -> None:
    limited = change(pair, "default", max_wrong_hit_rate=0.02).json()
    audited = change(pair, "default", audit_rate=0.5).json()
    back = change(pair, "default", max_wrong_hit_rate=None).json()

    assert (limited["threshold"], limited["max_wrong_hit_rate"], limited["audit_rate"]) == (None, 0.02, 0.01)
    assert limited["in_words"].startswith("Not certified")
    assert "keepgate tune --endpoint default" in limited["in_words"]
    assert (audited["max_wrong_hit_rate"], audited["audit_rate"]) == (0.02, 0.5)
    assert (back["threshold"], back["max_wrong_hit_rate"], back["audit_rate"]) == (0.85, None, 0.5)


def test_a_certificate_is_shown_with_what_audits_say_since(pair: Gateway) -> None:
    embedder, _, verifier = pair.admin("GET", "/status").json()["verifier"].partition(" ")
    origin = Origin(labelled_by="people", embedder=embedder, verifier=verifier, data="d", date="2026-11-20")
    certificate = Certificate(0.01, 0.95, 3_000, 1_500, 5, 0.007, 2.0, origin)
    curve = Curve(cuts=[4.0, 2.0], wrong=[0.001, 0.005])
    tuning = Tuning(TuningFiles(path=pair.config.parent / "data" / "tuning"))
    tuning.tuned("limited", Tuned("limited", Fit(["cosine"], [1.0], 0.0, 0), curve, certificate))
    tuning.audited("limited", cut=2.0, wrong=False)

    certified = pair.admin("GET", "/endpoints/limited").json()
    stricter = change(pair, "limited", max_wrong_hit_rate=0.005).json()
    tuning.tuned("limited", None)

    assert certified["certificate"]["samples"] == 3_000
    assert (certified["rule"]["by"], certified["rule"]["cut"], certified["rule"]["certified"]) == ("fit", 2.0, True)
    assert (certified["watch"]["seen"], certified["watch"]["wrong"], certified["watch"]["cut"]) == (1, 0, 2.0)
    assert certified["in_words"].startswith("Certified for at most 1 % of wrong hits (3,000 labels by people")
    assert not stricter["rule"]["certified"]
    assert "certified for 0.01, the limit is 0.005" in stricter["in_words"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"threshold": 0.9, "max_wrong_hit_rate": 0.01}, "threshold", "cannot be given together with max_wrong_hit"),
        ({"threshold": 1.01}, "threshold", "threshold: Input should be less than or equal to 1"),
        ({"threshold": -0.1}, "threshold", "threshold: Input should be greater than or equal to 0"),
        ({"threshold": "0.9"}, "threshold", "threshold: must be a number"),
        ({"threshold": True}, "threshold", "threshold: must be a number"),
        ({"max_wrong_hit_rate": 0}, "max_wrong_hit_rate", "max_wrong_hit_rate: Input should be greater than 0"),
        ({"max_wrong_hit_rate": 1}, "max_wrong_hit_rate", "max_wrong_hit_rate: Input should be less than 1"),
        ({"audit_rate": 2}, "audit_rate", "audit_rate: Input should be less than or equal to 1"),
        ({"treshold": 0.9}, "treshold", "treshold: unknown field"),
        ({"mode": "off"}, "mode", "mode: unknown field"),
        ([], None, "body: Input should be a valid dictionary"),
    ],
)
def test_a_change_that_cannot_be_made_is_a_422_that_says_why(
    pair: Gateway, body: object, param: str | None, message: str
) -> None:
    before = pair.admin("GET", "/endpoints/default").json()

    answer = pair.admin("PATCH", "/endpoints/default", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_request", param)
    assert message in error["message"]
    assert pair.admin("GET", "/endpoints/default").json() == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_no_number_is_no_threshold(pair: Gateway, number: str) -> None:
    answer = pair.admin("PATCH", "/endpoints/default", content=f'{{"threshold": {number}}}')

    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nope"), ("PATCH", "/nope"), ("DELETE", "/nope/override"), ("PATCH", "/..%2Fkeys")],
)
def test_an_endpoint_that_does_not_exist_is_a_404_with_the_names(pair: Gateway, method: str, path: str) -> None:
    answer = pair.admin(method, f"/endpoints{path}", json={"threshold": 0.5} if method == "PATCH" else None)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_changes_of_one_endpoint_at_once_lose_nothing(pair: Gateway) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Connection": "close"}

    def put(body: Json) -> int:
        return httpx.patch(f"{pair.url}/admin/api/endpoints/default", json=body, headers=headers).status_code

    with ThreadPoolExecutor(8) as threads:
        bodies = [{"audit_rate": 0.25}, {"threshold": 0.75}] * 8
        statuses = list(threads.map(put, bodies))

    told = pair.admin("GET", "/endpoints/default").json()
    assert set(statuses) == {200}
    assert (told["threshold"], told["audit_rate"]) == (0.75, 0.25)


def test_a_change_outlives_a_reload_and_a_restart(tmp_path: Path, mock: Mock) -> None:
    endpoints = [{"name": "default", "cache": {"mode": "semantic", "threshold": 0.85}}]
    config = settings(tmp_path, mock.url, endpoints=endpoints)
    with running_gateway(tmp_path, config) as gateway:
        change(gateway, "default", threshold=0.97).raise_for_status()
        gateway.configure({**config, "endpoints": [*endpoints, {"name": "more", "cache": {"mode": "exact"}}]})
        os.kill(gateway.server.process.pid, signal.SIGHUP)
        eventually(lambda: "more" in gateway.admin("GET", "/status").json()["endpoints"])
        reloaded = gateway.admin("GET", "/endpoints/default").json()

        _, most = resource.prlimit(gateway.server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.server.process.pid, resource.RLIMIT_FSIZE, (0, most))  # a disk without room
        full = change(gateway, "default", threshold=0.5)
        resource.prlimit(gateway.server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        unchanged = gateway.admin("GET", "/endpoints/default").json()
    with running_gateway(tmp_path, config) as gateway:
        restarted = gateway.admin("GET", "/endpoints/default").json()

    assert [told["threshold"] for told in (reloaded, unchanged, restarted)] == [0.97, 0.97, 0.97]
    assert (full.status_code, full.json()["error"]["code"]) == (503, "store_unavailable")
    assert "cannot be written" in full.json()["error"]["message"]


# --- reports


def hit(gateway: Gateway, model: str, *, endpoint: str = "default") -> httpx.Response:
    gateway.ask(QUESTION, model=model, endpoint=endpoint)
    return gateway.await_cached(REPHRASED, model=model, endpoint=endpoint)


def lookups(gateway: Gateway) -> Path:
    return gateway.config.parent / "data" / "lookups.jsonl"


def verdicts(gateway: Gateway, entry: str) -> list[Json]:
    rows = [json.loads(line) for line in lookups(gateway).read_text().splitlines()]
    return [row for row in rows if row["kind"] == "verdict" and row["entry"] == entry]


def test_an_entry_reported_wrong_is_gone_and_leaves_a_label(pair: Gateway, model: str) -> None:
    answer = hit(pair, model)
    entry, request_id = answer.headers["x-keepgate-entry"], answer.headers["x-keepgate-request-id"]
    pair.ask(REPHRASED, model=model)
    shown = f"/cache/entries/{entry}"
    eventually(lambda: pair.admin("GET", shown).json()["places"][0]["aliases"] == 1)

    told = pair.admin("POST", f"/cache/entries/{entry}/report", json={"request_id": request_id})
    again = pair.admin("POST", f"/cache/entries/{entry}/report", json={"request_id": request_id})

    assert told.status_code == again.status_code == 200
    assert (told.json()["removed"], told.json()["aliases"], told.json()["recorded"]) == (1, 1, True)
    assert (again.json()["removed"], again.json()["recorded"]) == (0, True)
    assert not cached(pair, QUESTION, model)
    assert not cached(pair, REPHRASED, model)
    assert {(row["wrong"], row["by"], row["request_id"]) for row in verdicts(pair, entry)} == {
        (True, "people", request_id)
    }


def test_an_entry_reported_right_stays_and_has_one_label_however_often_it_is_said(pair: Gateway, model: str) -> None:
    entry = hit(pair, model).headers["x-keepgate-entry"]

    said = {"verdict": "right", "by": "judge"}
    told = [pair.admin("POST", f"/cache/entries/{entry}/report", json=said).json() for _ in range(3)]

    assert [(one["removed"], one["recorded"]) for one in told] == [(0, True)] * 3
    assert [(row["wrong"], row["by"]) for row in verdicts(pair, entry)] == [(False, "judge")]
    assert cached(pair, REPHRASED, model)


def test_a_report_that_names_a_request_labels_its_question(pair: Gateway, model: str) -> None:
    entry = hit(pair, model).headers["x-keepgate-entry"]
    for request_id, about in ((f"of-{model}", entry), (f"other-{model}", "f" * 64)):
        row = Lookup(1.0, "default", request_id, asked="0a" * 16, entry=about, cosine=0.9, embedder="e")
        with lookups(pair).open("ab") as log:
            log.write(encoded(row) + b"\n")

    of_other = pair.admin("POST", f"/cache/entries/{entry}/report", json={"request_id": f"other-{model}"})
    told = pair.admin("POST", f"/cache/entries/{entry}/report", json={"request_id": f"of-{model}"}).json()

    assert (of_other.status_code, of_other.json()["error"]["param"]) == (422, "request_id")
    assert (told["removed"], told["asked"], told["note"]) == (1, True, "")
    assert [row["asked"] for row in verdicts(pair, entry)] == ["0a" * 16]


def test_an_endpoint_without_a_log_of_look_ups_gets_no_label(pair: Gateway, model: str) -> None:
    entry = hit(pair, model, endpoint="quiet").headers["x-keepgate-entry"]

    told = pair.admin("POST", f"/cache/entries/{entry}/report").json()

    assert (told["removed"], told["recorded"]) == (1, False)
    assert "cache.lookups" in told["note"]


@pytest.mark.parametrize(
    ("entry", "body", "status"),
    [
        (UNKNOWN, None, 404),
        (UNKNOWN, {"endpoint": "nope"}, 404),
        ("A" * 64, None, 422),
        ("0" * 63, None, 422),
        (UNKNOWN, {"verdict": "maybe"}, 422),
        (UNKNOWN, {"by": "automatic"}, 422),
        (UNKNOWN, {"request": "req_1"}, 422),
        (UNKNOWN, {"request_id": "line\nbreak"}, 422),
        (UNKNOWN, {"request_id": "x" * 1000}, 422),
    ],
)
def test_a_report_about_nothing_is_refused(pair: Gateway, entry: str, body: Json | None, status: int) -> None:
    answer = pair.admin("POST", f"/cache/entries/{entry}/report", json=body)

    assert answer.status_code == status
    assert "x-keepgate-entry" in answer.json()["error"]["message"] or status != 404


def test_an_entry_shows_its_texts_only_when_it_is_asked_to(pair: Gateway, model: str) -> None:
    entry = hit(pair, model).headers["x-keepgate-entry"]

    bare = pair.admin("GET", f"/cache/entries/{entry}", params={"endpoint": "default"})
    full = pair.admin("GET", f"/cache/entries/{entry}", params={"text": "true"}).json()
    none = pair.admin("GET", f"/cache/entries/{UNKNOWN}")

    (place,) = bare.json()["places"]
    assert (place["endpoint"], place["shared_by"], place["upstream"]) == ("default", "everyone", f"mock/{model}")
    assert place["expires_at"] - place["created_at"] == pytest.approx(3600)
    assert "invoice" not in bare.text
    assert (full["places"][0]["question"], full["places"][0]["aliases"]) == (QUESTION, 0)
    assert full["places"][0]["answer"]
    assert none.status_code == 404


# --- warming up


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    file = tmp_path / "faq.jsonl"
    lines = [{"question": QUESTION, "answer": ANSWER}, {"question": "Where do I change my address?", "answer": "Here."}]
    file.write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def warm(gateway: Gateway, file: Path, *options: str, endpoint: str = "default") -> Json:
    done = keepgate(
        "cache", "warm", str(file), "--endpoint", endpoint, "--config", str(gateway.config), "--json", *options
    )
    assert done.returncode == 0, done.stderr
    told: Json = json.loads(done.stdout)
    return told


def test_what_was_warmed_up_beside_a_gateway_answers_every_sdk(
    pair: Gateway, mock: Mock, model: str, faq: Path
) -> None:
    told = warm(pair, faq, "--model", model)
    again = warm(pair, faq, "--model", model)
    of_claude = warm(pair, faq, "--model", model, "--request", '{"max_tokens": 64}')

    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="any", max_retries=0) as client:
        whole = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}])
        rephrased = client.chat.completions.create(model=model, messages=[{"role": "user", "content": REPHRASED}])
    with anthropic.Anthropic(base_url=pair.url, api_key="any", max_retries=0) as client:
        said = client.messages.create(model=model, max_tokens=64, messages=[{"role": "user", "content": QUESTION}])
    exact = pair.ask(QUESTION, model=model)
    streamed = pair.ask(QUESTION, model=model, stream=True)

    assert (told["entries"], told["renewed"], told["questions"], told["bad"]) == (2, 0, 2, 0)
    assert (again["entries"], again["renewed"]) == (2, 2)
    assert of_claude["renewed"] == 0
    assert [one.choices[0].message.content for one in (whole, rephrased)] == [ANSWER, ANSWER]
    assert [block.text for block in said.content if block.type == "text"] == [ANSWER]
    assert outcome(exact) == "exact"
    assert exact.json()["usage"]["estimated"]
    assert streamed_text(streamed.text) == ANSWER
    assert mock.calls() == 0


def test_lines_that_cannot_be_used_are_named_and_passed_over_or_stop_it_all(
    pair: Gateway, model: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    bad = [
        '{"answer": "no question"}',
        '{"question": "Q?", "answer": " "}',
        '{"question": "Q?", "answer": 5}',
        '{"question": "Q?", "answer": "A", "messages": []}',
        '{"messages": [{"role": "assistant", "content": "A"}], "answer": "A"}',
        '{"question": "Q?", "answer": "A", "request": {"n": 2}}',
        '{"question": "Q?", "answer": "A", "request": {"previous_response_id": "x"}}',
        '["question", "answer"]',
        "no JSON",
        "[" * 100_000,
        '{"question": "' + "x" * (1 << 20) + '", "answer": "A"}',
    ]
    file.write_text("\n".join([*bad, json.dumps({"question": QUESTION, "answer": ANSWER})]))

    config = ("--endpoint", "default", "--model", model, "--config", str(pair.config))
    strict = keepgate("cache", "warm", str(file), *config, "--strict")
    before = cached(pair, QUESTION, model)
    told = warm(pair, file, "--model", model)

    assert strict.returncode == 1
    assert f"{len(bad)} bad lines, so nothing was stored" in strict.stderr
    assert not before
    assert (told["entries"], told["bad"]) == (1, len(bad))
    assert told["problems"][0] == "line 1 has no question"
    assert len(told["problems"]) == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--endpoint", "nope"), "no endpoint of that name; known: default"),
        (("--endpoint", "off"), "the cache of this endpoint is off"),
        (("--endpoint", "default", "--key", "nope"), "no key has that id"),
    ],
)
def test_a_warm_up_that_would_warm_nothing_says_why(
    pair: Gateway, faq: Path, options: tuple[str, ...], says: str
) -> None:
    done = keepgate("cache", "warm", str(faq), *options, "--model", "m", "--config", str(pair.config))

    assert done.returncode == 1
    assert says in done.stderr


def test_a_warm_up_comes_through_a_pipe(pair: Gateway, model: str, faq: Path) -> None:
    command = [sys.executable, "-m", "service", "cache", "warm", "-", "--endpoint", "exact", "--model", model]
    with faq.open("rb") as source:
        done = subprocess.run(  # noqa: S603 - the tests' own command
            [*command, "--config", str(pair.config)],
            cwd=ROOT,
            stdin=source,
            capture_output=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert outcome(pair.ask(QUESTION, model=model, endpoint="exact")) == "exact"


def test_what_guardrails_block_or_mask_is_not_warmed_up_and_what_they_redact_is(
    pair: Gateway, mock: Mock, model: str
) -> None:
    pairs = [
        {"question": "Who is a@example.com to you?", "answer": "A customer."},
        {"question": "What is PROJ-1234 about?", "answer": "It is a project."},
        {"question": "Which project is the first one?", "answer": "PROJ-0001"},
        {"question": "What is the word of the house?", "answer": "It is SECRET here."},
        {"question": "What is the weather like today?", "answer": "Look outside."},
    ]

    told = pair.admin("POST", "/cache/warm", params={"endpoint": "guarded", "model": model}, json=pairs)
    redacted = pair.ask("What is the word of the house?", model=model, endpoint="guarded")

    assert told.status_code == 200, told.text
    counts = told.json()
    assert (counts["entries"], counts["blocked"], counts["masked"], counts["bad"]) == (2, 2, 1, 0)
    assert counts["not_semantic"] == {"fresh": 1}
    assert outcome(redacted) == "exact"
    assert "SECRET" not in text_of(redacted)
    assert mock.calls() == 0


def test_a_warm_up_over_http_takes_lines_and_a_conversation(pair: Gateway, model: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Do you know invoices?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": QUESTION},
    ]
    lines = [{"messages": turns, "answer": ANSWER, "model": model}, {"question": "", "answer": ""}]
    body = "".join(json.dumps(line) + "\n" for line in lines)

    told = pair.admin("POST", "/cache/warm", params={"endpoint": "default", "ttl": "10m"}, content=body)
    answered = pair.post({"model": model, "messages": turns})

    assert (told.json()["entries"], told.json()["bad"]) == (1, 1)
    assert outcome(answered) == "exact"
    assert "ttl=5" in answered.headers["cache-status"]  # less than the endpoint's hour


@pytest.mark.parametrize(
    ("params", "body", "status"),
    [
        ({}, b"", 422),
        ({"endpoint": "nope"}, b"", 404),
        ({"endpoint": "default", "ttl": "soon"}, b"", 422),
        ({"endpoint": "default"}, b"[no JSON", 422),
        ({"endpoint": "default"}, b'[{"question": "Q?", "answer": "A"}', 422),
        ({"endpoint": "default"}, b"x" * (1024**2 + 1), 413),
    ],
)
def test_a_warm_up_that_cannot_be_read_is_refused(
    pair: Gateway, params: dict[str, str], body: bytes, status: int
) -> None:
    assert pair.admin("POST", "/cache/warm", params=params, content=body).status_code == status


def test_entries_warmed_up_for_a_key_are_its_own(pair: Gateway, mock: Mock, model: str, faq: Path) -> None:
    secret = pair.make_key("warm")
    (key_id,) = [key["key_id"] for key in pair.keys("list") if key["name"] == "warm"]

    warm(pair, faq, "--model", model, "--key", key_id, endpoint="mine")
    of_key = pair.ask(QUESTION, model=model, endpoint="mine", headers={"Authorization": f"Bearer {secret}"})
    of_nobody = pair.ask(QUESTION, model=model, endpoint="mine")

    assert [outcome(of_key), outcome(of_nobody)] == ["exact", "miss"]
    assert mock.calls() == 1


def test_where_keys_are_required_entries_of_nobody_are_not_made(tmp_path: Path, mock: Mock, faq: Path) -> None:
    config = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "exact"}}])
    file = tmp_path / "keepgate.yaml"
    file.write_text(yaml.safe_dump({**config, "keys": {"require": True}}))

    done = keepgate("cache", "warm", str(faq), "--endpoint", "default", "--model", "m", "--config", str(file))

    assert done.returncode == 1
    assert "name a key, or set cache.scope: endpoint" in done.stderr


@pytest.mark.full
def test_a_shared_store_is_warmed_up_and_reported_to_from_anywhere(
    tmp_path: Path, mock: Mock, model: str, faq: Path, store_server: Callable[[str], Server]
) -> None:
    stores = {
        "cache": {"exact": {"store": "redis", "deadline": "5s"}, "vector": {"store": "redis", "deadline": "5s"}},
        "redis": {"url": f"redis://127.0.0.1:{store_server('redis').port}", "prefix": f"operators-{model}"},
    }
    with running_gateway(tmp_path, settings(tmp_path, mock.url, endpoints=ENDPOINTS[:1], **stores)) as gateway:
        told = warm(gateway, faq, "--model", model)
        rephrased = gateway.ask(REPHRASED, model=model)
        entry = rephrased.headers["x-keepgate-entry"]
        (place,) = gateway.admin("GET", f"/cache/entries/{entry}?text=true").json()["places"]
        report = gateway.admin("POST", f"/cache/entries/{entry}/report").json()
        left = [cached(gateway, text, model) for text in (QUESTION, REPHRASED)]

    assert (told["entries"], told["questions"]) == (2, 2)
    assert (outcome(rephrased), text_of(rephrased)) == ("semantic", ANSWER)
    assert (place["question"], place["answer"]) == (QUESTION, ANSWER)
    assert report["removed"] == 1
    assert left == [False, False]
