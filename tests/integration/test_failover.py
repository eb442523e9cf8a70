"""A provider's bad day, through a real gateway: who answers instead, and what is asked of whom."""

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_openai import OpenAI
from tests.support.fake_provider import KEY, Fake, Fault, running
from tests.support.gateway import (
    Gateway,
    Json,
    events_of,
    eventually,
    question,
    running_gateway,
    settings,
    streamed_text,
    text_of,
)

NAMES = ("first", "second", "third")
UNCACHED: list[Json] = [{"name": "default", "cache": {"mode": "off"}}]


@pytest.fixture(scope="module")
def started_fakes() -> Iterator[Sequence[Fake]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(OpenAI())) for _ in NAMES]


@pytest.fixture
def fakes(started_fakes: Sequence[Fake]) -> Sequence[Fake]:
    for fake in started_fakes:
        fake.reset()
        fake.latency = fake.chunk_delay = 0.0
        fake.accept()
    return started_fakes


def configuration(directory: Path, fakes: Sequence[Fake], *, model: Json | None = None, **upstream: Any) -> Json:
    """Upstreams `first`, `second` and `third`, and the model `m`: the first, with the others to fall back on."""
    credential = {} if "api_keys" in upstream else {"api_key": KEY}
    return settings(
        directory,
        "",
        endpoints=UNCACHED,
        routing={},
        upstreams=[
            {"name": name, "provider": "openai-compatible", "base_url": fake.base_url, **credential, **upstream}
            for name, fake in zip(NAMES, fakes, strict=False)
        ],
        models=[
            {
                "name": "m",
                "targets": [{"upstream": "first", "model": "gpt-4o"}],
                "fallbacks": [f"{name}/gpt-4o" for name in NAMES[1 : len(fakes)]],
                **(model or {}),
            }
        ],
    )


@contextmanager
def serving(directory: Path, fakes: Sequence[Fake], **how: Any) -> Iterator[Gateway]:
    with running_gateway(directory, configuration(directory, fakes, **how)) as gateway:
        yield gateway


def counts(fakes: Sequence[Fake]) -> list[int]:
    return [len(fake.calls) for fake in fakes]


# --- another target


def test_a_dead_upstream_is_replaced_by_the_next(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].refuse()
    with serving(tmp_path, fakes[:2]) as gateway:
        answers = [gateway.ask(f"question {at}", model="m") for at in range(20)]

        assert [answer.status_code for answer in answers] == [200] * 20
        assert {answer.headers["x-keepgate-upstream"] for answer in answers} == {"second/gpt-4o"}
        # After ten in a row nobody knocks any more.
        assert gateway.metric("keepgate_upstream_attempts_total", upstream="first") == 10
        assert gateway.metric("keepgate_upstream_open", upstream="first") == 1


def test_a_stream_that_breaks_before_its_first_chunk_is_begun_elsewhere(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("error_first", times=None)
    with serving(tmp_path, fakes[:2]) as gateway:
        answer = gateway.ask("hello", model="m", stream=True)

    assert streamed_text(answer.text) == "You said: hello"
    assert answer.headers["x-keepgate-upstream"] == "second/gpt-4o"


def test_a_stream_that_breaks_later_ends_with_an_error_and_is_not_begun_again(
    tmp_path: Path, fakes: Sequence[Fake]
) -> None:
    fakes[0].fail("cut", times=None)
    with serving(tmp_path, fakes) as gateway:
        answer = gateway.ask("hello #long", model="m", stream=True)

    assert answer.status_code == 200
    assert streamed_text(answer.text)
    assert '"code":"upstream_error"' in events_of(answer.text)[-1]
    assert counts(fakes) == [1, 0, 0]


def test_a_request_nobody_would_take_is_asked_once(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("400", times=None)
    with serving(tmp_path, fakes) as gateway:
        answer = gateway.ask("hello", model="m")

    assert answer.status_code == 400
    assert counts(fakes) == [1, 0, 0]


def test_when_all_fail_the_client_is_told_not_to_go_on(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    for fake in fakes:
        fake.fail("500", times=None)
    with serving(tmp_path, fakes, model={"attempts": 5}) as gateway:
        answer = gateway.ask("hello", model="m")

    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "false")
    assert sum(counts(fakes)) == 5


def test_a_request_ends_with_its_own_deadline(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("stall", times=None)
    with serving(tmp_path, fakes[:1], model={"timeout": "300ms"}) as gateway:
        answer = gateway.ask("hello", model="m")

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "upstream_timeout"
    assert eventually(lambda: not fakes[0].in_flight)


def test_names_with_a_star_lead_to_the_model_that_was_asked_for(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    star = {"name": "any-*", "targets": [{"upstream": "first", "model": "gpt-*"}], "fallbacks": ["second/*"]}
    fakes[0].fail("500", times=None)
    with serving(tmp_path, fakes[:2], model=star) as gateway:
        answer = gateway.ask("hello", model="any-5.2")
        listed = [model["id"] for model in gateway.client.get("/v1/models").json()["data"]]

    assert answer.headers["x-keepgate-upstream"] == "second/5.2"
    assert fakes[0].calls[0].model == "gpt-5.2"
    assert "any-*" not in listed


# --- retries


def test_the_only_upstream_is_asked_again_when_it_said(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].script(Fault("429", retry_after="1"), Fault("503", retry_after="1"))
    with serving(tmp_path, fakes[:1]) as gateway:
        answer = gateway.ask("hello", model="m")

    assert text_of(answer) == "You said: hello"
    calls = fakes[0].calls
    assert len(calls) == 3
    assert all(later.at - sooner.at >= 0.99 for sooner, later in pairwise(calls))


def test_a_long_retry_after_is_left_to_the_client(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("429", times=None, retry_after="30")
    with serving(tmp_path, fakes[:1]) as gateway:
        refused = gateway.ask("hello", model="m")
        resting = gateway.ask("hello again", model="m")

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert resting.status_code == 503
    assert resting.json()["error"]["code"] == "upstream_unavailable"
    assert 25 <= int(resting.headers["retry-after"]) <= 30
    assert resting.headers["x-should-retry"] == "false"
    assert len(fakes[0].calls) == 1


# --- credentials


def test_a_limit_rests_one_key_and_not_the_provider(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("429", times=None, retry_after="60", credential="key-one")
    with serving(tmp_path, fakes[:2], api_keys=["key-one", "key-two"]) as gateway:
        answers = [gateway.ask(f"question {at}", model="m") for at in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert Counter(call.credential for call in fakes[0].calls) == {"key-one": 1, "key-two": 6}
    assert not fakes[1].calls


def test_a_key_that_is_no_good_is_put_aside(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    with serving(tmp_path, fakes[:1], api_keys=["wrong", "key-two"]) as gateway:
        answers = [gateway.ask(f"question {at}", model="m") for at in range(4)]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert Counter(call.credential for call in fakes[0].calls) == {"wrong": 1, "key-two": 4}


# --- the breaker


def test_a_failing_upstream_is_left_alone_then_probed_then_taken_back(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("500", times=None)
    with serving(tmp_path, fakes[:2], breaker={"failures": 3, "rest": "1s"}) as gateway:
        for at in range(10):
            gateway.ask(f"question {at}", model="m")
        assert len(fakes[0].calls) == 3

        eventually(lambda: gateway.ask("still there?", model="m").is_success and len(fakes[0].calls) == 4)
        assert gateway.metric("keepgate_upstream_open", upstream="first") == 1

        fakes[0].reset()
        eventually(lambda: _led_to("first", gateway.ask("and now?", model="m")))
        assert len(fakes[0].calls) == 1
        assert gateway.metric("keepgate_upstream_open", upstream="first") == 0


def _led_to(upstream: str, answer: httpx.Response) -> bool:
    return answer.is_success and answer.headers["x-keepgate-upstream"].startswith(f"{upstream}/")


def test_what_is_known_of_an_upstream_outlives_a_reload(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("500", times=None)
    how = {"breaker": {"failures": 3, "rest": "1m"}}
    with serving(tmp_path, fakes[:2], **how) as gateway:
        for at in range(5):
            gateway.ask(f"question {at}", model="m")

        gateway.configure(configuration(tmp_path, fakes[:2], model={"name": "other"}, **how))
        gateway.server.signal(signal.SIGHUP)
        eventually(lambda: gateway.ask("hello", model="other").status_code == 200)

        assert len(fakes[0].calls) == 3


def test_calls_of_a_configuration_that_was_replaced_say_nothing_of_the_new_one(
    tmp_path: Path, fakes: Sequence[Fake]
) -> None:
    fakes[0].latency = 2.0
    fakes[0].fail("500")
    how: Json = {"breaker": {"failures": 1, "rest": "1m"}, "model": {"attempts": 1}}
    with serving(tmp_path, fakes[:1], **how) as gateway, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.ask, "hello", model="m")
        eventually(lambda: fakes[0].in_flight == 1, every=0.01)
        gateway.configure(configuration(tmp_path, fakes[:1], headers={"x-version": "2"}, **how))
        gateway.server.signal(signal.SIGHUP)
        eventually(lambda: "was read again" in gateway.log())
        assert not slow.done()

        assert slow.result().status_code == 502
        assert gateway.metric("keepgate_upstream_open", upstream="first") == 0
        fakes[0].latency = 0.0
        assert gateway.ask("hello", model="m").status_code == 200


def test_with_its_only_key_refused_an_upstream_is_asked_by_one_request_at_a_time(
    tmp_path: Path, fakes: Sequence[Fake]
) -> None:
    with serving(tmp_path, fakes[:1], api_keys=["wrong"]) as gateway, ThreadPoolExecutor(20) as pool:
        assert gateway.ask("hello", model="m").status_code == 502
        fakes[0].latency = 0.5
        answers = list(pool.map(lambda at: gateway.ask(f"question {at}", model="m"), range(20)))

    assert len(fakes[0].calls) == 2
    assert Counter(answer.json()["error"]["code"] for answer in answers) == {
        "upstream_error": 1,
        "upstream_unavailable": 19,
    }


# --- places


def test_an_upstream_with_a_limit_is_asked_by_no_more_at_a_time(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].latency = 0.02
    with serving(tmp_path, fakes[:1], max_concurrency=2) as gateway, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda at: gateway.ask(f"question {at}", model="m"), range(20)))

    assert [answer.status_code for answer in answers] == [200] * 20
    assert fakes[0].most_in_flight == 2


def test_what_finds_no_place_and_no_queue_is_shed(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].fail("stall", seconds=1.0)
    upstream: Json = {"max_concurrency": 1, "queue": {"size": 0}}
    with serving(tmp_path, fakes[:1], **upstream) as gateway, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.ask, "slow", model="m")
        eventually(lambda: fakes[0].in_flight == 1, every=0.01)
        shed = gateway.ask("hello", model="m")

        assert shed.status_code == 503
        assert shed.json()["error"]["code"] == "overloaded"
        assert int(shed.headers["retry-after"]) >= 1
        assert "x-should-retry" not in shed.headers  # nothing was tried for it
        assert slow.result().status_code == 200
        assert gateway.ask("hello", model="m").status_code == 200


def test_a_client_that_leaves_gives_its_place_back(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    fakes[0].script(Fault("stall"), Fault("stall_midway"))
    upstream: Json = {"max_concurrency": 1, "queue": {"size": 0}}
    with serving(tmp_path, fakes[:1], **upstream) as gateway:
        with pytest.raises(httpx.ReadTimeout):
            gateway.client.post("/v1/chat/completions", json=question("hello", model="m"), timeout=0.3)
        eventually(lambda: fakes[0].in_flight == 0)
        asked = question("hello #long", model="m", stream=True)
        with gateway.client.stream("POST", "/v1/chat/completions", json=asked) as streamed:
            assert next(streamed.iter_lines())

        eventually(lambda: gateway.ask("hello", model="m").status_code == 200)


# --- conversations


def test_a_conversation_stays_where_it_began(tmp_path: Path, fakes: Sequence[Fake]) -> None:
    targets = [{"upstream": name, "model": "gpt-4o"} for name in NAMES]
    model = {"targets": targets, "fallbacks": [], "sticky": "conversation"}
    led = defaultdict(set)
    with serving(tmp_path, fakes, model=model, api_keys=["key-one", "key-two"]) as gateway:
        for number in range(24):
            messages: list[Json] = [{"role": "user", "content": f"conversation {number}"}]
            for turn in range(3):
                answer = gateway.post({"model": "m", "messages": messages})
                messages += [
                    {"role": "assistant", "content": text_of(answer)},
                    {"role": "user", "content": f"turn {turn}"},
                ]
    for fake, name in zip(fakes, NAMES, strict=True):
        for call in fake.calls:
            led[call.body["messages"][0]["content"]].add((name, call.credential))

    assert len(led) == 24
    assert all(len(places) == 1 for places in led.values())
    assert len(set().union(*led.values())) >= 4  # of six: three targets with two keys


# --- by chance


@pytest.mark.parametrize(
    ("requests", "chance"),
    [
        pytest.param(300, 0.3, id="some"),
        pytest.param(10_000, 0.3, id="many", marks=[pytest.mark.full, pytest.mark.timeout(600)]),
    ],
)
def test_of_three_upstreams_that_fail_by_chance_each_is_asked_before_a_request_fails(
    tmp_path: Path, fakes: Sequence[Fake], requests: int, chance: float
) -> None:
    """A request fails only when its attempts are spent, and none has more of them: counted where the calls arrive."""
    for seed, fake in enumerate(fakes):
        fake.fail_at_random(chance, "500", "503", "html", "empty", "cut", "error_first", "malformed", seed=seed)
    targets = [{"upstream": name, "model": "gpt-4o"} for name in NAMES]
    attempts = 3

    def ask(number: int) -> int:
        streamed = number % 3 == 0
        answer = gateway.ask(f"request {number}", model="m", stream=streamed)
        broke = streamed and answer.is_success and '"error"' in events_of(answer.text)[-1]
        return 0 if broke else answer.status_code

    with (
        serving(tmp_path, fakes, model={"targets": targets, "fallbacks": [], "attempts": attempts}) as gateway,
        ThreadPoolExecutor(8) as pool,
    ):
        statuses = list(pool.map(ask, range(requests)))
        held = gateway.metric("keepgate_upstream_waiting")

    calls: Counter[str] = Counter(call.body["messages"][0]["content"] for fake in fakes for call in fake.calls)
    made = [calls[f"request {number}"] for number in range(requests)]
    failed = [number for number, status in enumerate(statuses) if status not in (0, 200)]
    assert max(made) <= attempts
    assert sum(made) <= requests * attempts
    assert {made[number] for number in failed} <= {attempts}
    assert len(failed) <= requests * chance**attempts * 2 + 10
    assert set(statuses) <= {0, 200, 502}
    assert held == 0
