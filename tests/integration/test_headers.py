"""Request and response headers, routes and refusals, as docs/api.md promises them."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.integration.conftest import with_endpoints
from tests.support.gateway import Gateway, Mock, eventually, question, running_gateway, text_of

QUESTION = "How do I renew my passport?"
REPHRASED = "How can I renew my passport?"
ORIGIN = "https://app.example.com"

# RFC 9211: a token, then parameters with integers, tokens or nothing.
CACHE_STATUS = re.compile(r"keepgate(; [a-z-]+(=([a-z-]+|-?\d+))?)+")
ON_EVERY_ANSWER = (
    "x-keepgate-request-id",
    "x-keepgate-cache",
    "x-keepgate-guardrails",
    "x-keepgate-overhead-us",
    "cache-status",
)


def outcome(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    word: str = answer.headers["x-keepgate-cache"]
    return word


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def asked(gateway: Gateway, model: str) -> httpx.Response:
    """The first answer to QUESTION, which a rephrasing finds from now on."""
    answer = gateway.ask(QUESTION, model=model)
    gateway.await_cached(REPHRASED, model=model)
    return answer


# --- what answers say


@pytest.mark.parametrize("stream", [False, True])
def test_a_miss_tells_who_answered(gateway: Gateway, model: str, *, stream: bool) -> None:
    answer = gateway.ask(QUESTION, model=model, stream=stream)

    assert outcome(answer) == "miss"
    assert answer.headers["x-keepgate-upstream"] == f"mock/{model}"
    assert answer.headers["x-upstream-request-id"] == "mock-1"
    assert answer.headers["x-upstream-x-ratelimit-remaining-requests"] == "99"
    assert answer.headers["cache-status"].startswith("keepgate; fwd=miss")
    assert not {"age", "x-keepgate-tokens-saved", "x-keepgate-entry"} & {*answer.headers}


@pytest.mark.parametrize("stream", [False, True])
def test_an_exact_hit_tells_its_age_and_what_it_saved(
    gateway: Gateway, asked: httpx.Response, model: str, *, stream: bool
) -> None:
    answer = gateway.ask(QUESTION, model=model, stream=stream)

    ttl = re.fullmatch(r"keepgate; hit; ttl=(\d+); detail=exact", answer.headers["cache-status"])
    assert outcome(answer) == "exact"
    assert ttl
    assert 3500 < int(ttl[1]) <= 3600
    assert 0 <= int(answer.headers["age"]) < 60
    assert int(answer.headers["x-keepgate-tokens-saved"]) == asked.json()["usage"]["total_tokens"]
    assert not {"x-keepgate-upstream", "x-keepgate-similarity"} & {*answer.headers}


@pytest.mark.parametrize("stream", [False, True])
def test_a_semantic_hit_names_similarity_and_entry(
    gateway: Gateway, asked: httpx.Response, model: str, *, stream: bool
) -> None:
    answer = gateway.ask(REPHRASED, model=model, stream=stream)

    assert outcome(answer) == "semantic"
    assert answer.headers["cache-status"].endswith("; detail=semantic")
    assert 0.92 <= float(answer.headers["x-keepgate-similarity"]) <= 1
    assert len(answer.headers["x-keepgate-entry"]) == 64
    assert int(answer.headers["x-keepgate-tokens-saved"]) == asked.json()["usage"]["total_tokens"]


@pytest.mark.usefixtures("asked")
def test_a_miss_names_the_nearest_similarity_it_rejected(gateway: Gateway, model: str) -> None:
    answer = gateway.ask("How do I renew my gym membership?", model=model)

    assert outcome(answer) == "miss"
    assert 0.2 < float(answer.headers["x-keepgate-similarity"]) < 0.92
    assert "detail=below-threshold" in answer.headers["cache-status"]


def test_every_kind_of_answer_has_the_common_headers(gateway: Gateway, asked: httpx.Response, model: str) -> None:
    answers = [
        asked,
        gateway.ask(QUESTION, model=model),
        gateway.ask(QUESTION, model=model, stream=True),
        gateway.ask(REPHRASED, model=model),
        gateway.ask(QUESTION, model=model, endpoint="off"),
        gateway.ask(QUESTION, model="fault:500"),
        gateway.ask(QUESTION, model="fault:400"),
        gateway.ask("nobody asked this", model=model, headers={"Cache-Control": "only-if-cached"}),
        gateway.post({"model": model, "input": "text"}, path="/v1/embeddings"),
        gateway.post({"model": model, "prompt": "text"}, path="/v1/completions"),
        gateway.post({"model": model, "messages": "none"}),
    ]

    for answer in answers:
        assert [name for name in ON_EVERY_ANSWER if name not in answer.headers] == [], answer.text
        assert CACHE_STATUS.fullmatch(answer.headers["cache-status"]), answer.headers["cache-status"]
        assert answer.headers["x-keepgate-guardrails"] == "clean"
        assert 0 <= int(answer.headers["x-keepgate-overhead-us"]) < 10_000_000
    assert len({answer.headers["x-keepgate-request-id"] for answer in answers}) == len(answers)


def test_waiting_for_upstream_is_no_overhead(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(latency=1500)

    answer = gateway.ask(QUESTION, model=model, endpoint="exact")

    assert int(answer.headers["x-keepgate-overhead-us"]) < 1_000_000


def test_age_grows_by_the_second(gateway: Gateway, asked: httpx.Response, model: str) -> None:
    written = time.time()
    time.sleep(1.1)

    age = int(gateway.ask(QUESTION, model=model).headers["age"])

    assert 1 <= age <= time.time() - written + 2
    assert outcome(gateway.ask(QUESTION, model=model, headers={"Cache-Control": "max-age=0"})) == "miss"
    assert text_of(gateway.ask(QUESTION, model=model)) == text_of(asked)


# --- what requests may ask of the cache


def test_no_cache_asks_upstream_and_refreshes_the_entry(gateway: Gateway, mock: Mock, model: str) -> None:
    first = gateway.ask(QUESTION, model=model, endpoint="exact")
    mock.behaves(tokens=7)

    refreshed = gateway.ask(QUESTION, model=model, endpoint="exact", headers={"Cache-Control": "no-cache"})

    assert outcome(refreshed) == "bypass"
    assert "fwd=request" in refreshed.headers["cache-status"]
    assert text_of(refreshed) != text_of(first)
    eventually(lambda: text_of(gateway.ask(QUESTION, model=model, endpoint="exact")) == text_of(refreshed))
    assert mock.calls() == 2


def test_no_store_is_answered_and_not_kept(gateway: Gateway, mock: Mock, model: str) -> None:
    def asked(directive: str) -> str:
        return outcome(gateway.ask(QUESTION, model=model, headers={"Cache-Control": directive}))

    before = [asked(directive) for directive in ("no-store", "no-store", "max-age=60")]
    gateway.await_cached(QUESTION, model=model)

    assert before == ["miss", "miss", "miss"]
    assert asked("no-store") == "exact"
    assert mock.calls() == 3


def test_no_cache_and_no_store_together_leave_the_entry_alone(gateway: Gateway, mock: Mock, model: str) -> None:
    first = gateway.ask(QUESTION, model=model, endpoint="exact")
    mock.behaves(tokens=7)

    gateway.ask(QUESTION, model=model, endpoint="exact", headers={"Cache-Control": "No-Cache, NO-STORE"})

    assert text_of(gateway.ask(QUESTION, model=model, endpoint="exact")) == text_of(first)


def test_directives_on_several_lines_are_one_list(gateway: Gateway, mock: Mock, model: str) -> None:
    first = gateway.ask(QUESTION, model=model, endpoint="exact")
    mock.behaves(tokens=7)
    lines = [("Cache-Control", "no-store"), ("Cache-Control", "no-cache"), ("Content-Type", "application/json")]

    refreshed = gateway.client.post(
        "/e/exact/v1/chat/completions", content=json.dumps(question(QUESTION, model=model)), headers=lines
    )

    assert outcome(refreshed) == "bypass"
    assert text_of(refreshed) != text_of(first)
    assert text_of(gateway.ask(QUESTION, model=model, endpoint="exact")) == text_of(first)


@pytest.mark.parametrize("endpoint", ["default", "exact", "off"])
def test_only_if_cached_sends_nothing_upstream(gateway: Gateway, mock: Mock, model: str, endpoint: str) -> None:
    asked = {"Cache-Control": "only-if-cached"}

    answer = gateway.ask(QUESTION, model=model, endpoint=endpoint, headers=asked)

    assert code(answer) == (504, "not_cached")
    assert answer.headers["x-should-retry"] == "false"
    assert mock.calls() == 0


@pytest.mark.usefixtures("asked")
def test_only_if_cached_is_served_by_either_tier(gateway: Gateway, mock: Mock, model: str) -> None:
    outcomes = [
        outcome(gateway.ask(text, model=model, headers={"Cache-Control": "only-if-cached"}))
        for text in (QUESTION, REPHRASED)
    ]

    assert outcomes == ["exact", "semantic"]
    assert mock.calls() == 1


@pytest.mark.usefixtures("asked")
def test_max_age_bounds_either_tier(gateway: Gateway, model: str) -> None:
    time.sleep(0.01)  # older than nothing

    answers = [
        gateway.ask(text, model=model, headers={"Cache-Control": "max-age=0, only-if-cached"})
        for text in (QUESTION, REPHRASED)
    ]

    assert [code(answer) for answer in answers] == [(504, "not_cached")] * 2


@pytest.mark.usefixtures("asked")
def test_a_request_can_ask_for_less_of_the_cache(gateway: Gateway, model: str) -> None:
    def asks_for(mode: str, text: str) -> str:
        return outcome(gateway.ask(text, model=model, headers={"x-keepgate-cache": mode, "Cache-Control": "no-store"}))

    assert asks_for("semantic", REPHRASED) == "semantic"
    assert asks_for("exact", REPHRASED) == "miss"
    assert asks_for("exact", QUESTION) == "exact"
    assert asks_for("off", QUESTION) == "bypass"


def test_a_request_cannot_ask_for_more_than_its_endpoint_allows(gateway: Gateway, model: str) -> None:
    more = {"x-keepgate-cache": "semantic"}
    gateway.ask(QUESTION, model=model, endpoint="exact")

    rephrased = gateway.ask(REPHRASED, model=model, endpoint="exact", headers=more)
    off = [gateway.ask(QUESTION, model=model, endpoint="off", headers=more) for _ in range(2)]

    assert outcome(rephrased) == "miss"
    assert "x-keepgate-similarity" not in rephrased.headers
    assert [outcome(answer) for answer in off] == ["bypass", "bypass"]


@pytest.mark.usefixtures("asked")
def test_a_threshold_counts_only_where_it_is_stricter(gateway: Gateway, model: str) -> None:
    def at(threshold: str, text: str) -> str:
        headers = {"x-keepgate-threshold": threshold, "Cache-Control": "no-store"}
        return outcome(gateway.ask(text, model=model, headers=headers))

    assert at("0.999", REPHRASED) == "miss"
    assert at("0.93", REPHRASED) == "semantic"
    assert at("0", REPHRASED) == "semantic"
    assert at("0", "How do I renew my gym membership?") == "miss"


def test_a_ttl_counts_only_where_it_is_shorter(gateway: Gateway, model: str) -> None:
    def ttl(asked: str) -> int:
        answers = [gateway.ask(f"{QUESTION} {asked}", model=model, headers={"x-keepgate-ttl": asked}) for _ in range(2)]
        found = re.search(r"ttl=(\d+)", answers[1].headers["cache-status"])
        assert found
        return int(found[1])

    assert 500 < ttl("10m") <= 600
    assert 20 < ttl("30") <= 30
    assert 3500 < ttl("2d") <= 3600


def test_an_entry_is_gone_when_its_ttl_is_over(gateway: Gateway, model: str) -> None:
    gateway.ask(QUESTION, model=model, headers={"x-keepgate-ttl": "1"})
    time.sleep(1.05)

    answers = [
        gateway.ask(text, model=model, headers={"Cache-Control": "only-if-cached"}) for text in (QUESTION, REPHRASED)
    ]

    assert [code(answer) for answer in answers] == [(504, "not_cached")] * 2


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("header", ["x-keepgate-namespace", "x-keepgate-context"])
def test_a_partition_is_equality_in_both_tiers(gateway: Gateway, model: str, header: str) -> None:
    mine, theirs = {header: "doc-1@3, doc-2"}, {header: "doc-1@4, doc-2"}
    before = [outcome(gateway.ask(text, model=model, headers=mine)) for text in (QUESTION,)]
    gateway.await_cached(REPHRASED, model=model, headers=mine)

    after = [outcome(gateway.ask(text, model=model, headers=mine)) for text in (QUESTION, REPHRASED)]

    assert before == ["miss"]
    assert after == ["exact", "semantic"]
    assert outcome(gateway.ask(REPHRASED, model=model, headers=theirs)) == "miss"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("header", ["OpenAI-Beta", "anthropic-beta", "OpenAI-Organization"])
def test_a_header_that_changes_the_answer_is_part_of_the_identity(gateway: Gateway, model: str, header: str) -> None:
    answers = [
        gateway.ask(QUESTION, model=model, headers={header: "one"}),
        gateway.ask(REPHRASED, model=model, headers={header: "two"}),
    ]

    assert [outcome(answer) for answer in answers] == ["miss", "miss"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Cache-Control", "max-age=soon"),
        ("Cache-Control", "max-age"),
        ("Cache-Control", "max-age=-1"),
        ("x-keepgate-cache", "on"),
        ("x-keepgate-threshold", "1.5"),
        ("x-keepgate-threshold", "nan"),
        ("x-keepgate-ttl", "ever"),
        ("x-keepgate-ttl", "-5"),
        ("x-keepgate-namespace", ""),
        ("x-keepgate-context", ""),
    ],
)
def test_a_malformed_header_is_named(gateway: Gateway, mock: Mock, model: str, header: str, value: str) -> None:
    answer = gateway.ask(QUESTION, model=model, headers={header: value})

    assert code(answer) == (400, "invalid_request")
    assert header in answer.json()["error"]["message"]
    assert mock.calls() == 0


# --- the endpoint's policy


def test_shadow_mode_records_what_it_would_have_served_and_serves_nothing(
    gateway: Gateway, mock: Mock, model: str
) -> None:
    gateway.ask(QUESTION, model=model, endpoint="shadow")
    hits = {"endpoint": "shadow", "tier": "semantic", "result": "hit"}

    # Nothing of a shadow can be asked for with only-if-cached, so each try is a question of its own.
    for number in range(100):
        rephrased = gateway.ask(f"{REPHRASED}{' ' * number}", model=model, endpoint="shadow")
        assert outcome(rephrased) == "miss"
        if "detail=shadow" in rephrased.headers["cache-status"]:
            break

    assert "detail=shadow" in rephrased.headers["cache-status"]
    assert text_of(rephrased) != text_of(gateway.ask(QUESTION, model=model, endpoint="shadow"))
    assert gateway.metric("keepgate_cache_lookups_total", **hits) >= 1
    assert mock.calls() == number + 2
    assert outcome(gateway.ask(QUESTION, model=model, endpoint="shadow")) == "exact"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"temperature": 0.31}, "temperature"), ({"n": 2}, "several-choices"), ({"logprobs": True}, "logprobs")],
)
def test_what_asks_for_variety_is_exact_only(
    gateway: Gateway, mock: Mock, model: str, fields: dict[str, Any], reason: str
) -> None:
    asked = gateway.ask(QUESTION, model=model, **fields)
    repeated = gateway.ask(QUESTION, model=model, **fields)
    rephrased = gateway.ask(REPHRASED, model=model, **fields)

    assert [outcome(answer) for answer in (asked, repeated, rephrased)] == ["miss", "exact", "miss"]
    assert f"detail={reason}" in rephrased.headers["cache-status"]
    assert "x-keepgate-similarity" not in rephrased.headers
    assert mock.calls() == 2


def test_an_endpoint_may_compare_at_a_higher_temperature(gateway: Gateway, model: str) -> None:
    gateway.ask(QUESTION, model=model, endpoint="warm", temperature=0.9)

    answer = gateway.await_cached(REPHRASED, model=model, endpoint="warm", temperature=0.9)

    assert outcome(answer) == "semantic"


def test_a_text_beyond_the_embedders_window_is_exact_only(gateway: Gateway, model: str) -> None:
    long = "Please summarise the following. " + "The quick brown fox jumps over the lazy dog. " * 100
    answers = [gateway.ask(text, model=model, endpoint="lenient") for text in (long, f"{long}One.", f"{long}Two.")]

    assert [outcome(answer) for answer in answers] == ["miss"] * 3
    assert "detail=too-long" in answers[1].headers["cache-status"]
    assert outcome(gateway.ask(long, model=model, endpoint="lenient")) == "exact"


def test_an_image_has_to_be_the_same_and_one_elsewhere_is_exact_only(gateway: Gateway, model: str) -> None:
    def look(text: str, image: str) -> httpx.Response:
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": image}}]
        return gateway.post({"model": model, "messages": [{"role": "user", "content": parts}]})

    here, other = "data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,iVBORw0KGgp="
    elsewhere = "https://example.com/image.png"
    look(QUESTION, here)
    look(QUESTION, elsewhere)
    eventually(lambda: outcome(look(f"{QUESTION} ", here)) == "semantic")

    outcomes = [outcome(look(REPHRASED, image)) for image in (here, other, elsewhere)]

    assert outcomes == ["semantic", "miss", "miss"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 5},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "required"},
    ],
    ids=["truncated", "tool-calling"],
)
def test_answers_that_did_not_end_by_themselves_are_not_kept(
    gateway: Gateway, model: str, fields: dict[str, Any], *, stream: bool
) -> None:
    default = [outcome(gateway.ask(QUESTION, model=model, stream=stream, **fields)) for _ in range(2)]
    kept = [
        outcome(gateway.ask(QUESTION, model=model, endpoint="keeps-all", stream=stream, **fields)) for _ in range(2)
    ]

    assert default == ["miss", "miss"]
    assert kept == ["miss", "exact"]


@pytest.mark.parametrize("field", [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}])
def test_what_refers_to_state_elsewhere_bypasses_the_cache(gateway: Gateway, model: str, field: dict[str, Any]) -> None:
    answers = [gateway.ask(QUESTION, model=model, **field) for _ in range(2)]

    assert [outcome(answer) for answer in answers] == ["bypass", "bypass"]
    assert "detail=stateful" in answers[0].headers["cache-status"]


def test_endpoints_share_nothing(gateway: Gateway, asked: httpx.Response, model: str) -> None:
    elsewhere = gateway.ask(REPHRASED, model=model, endpoint="lenient")

    assert outcome(asked) == "miss"
    assert outcome(elsewhere) == "miss"
    assert "x-keepgate-similarity" not in elsewhere.headers


# --- towards the upstream


def test_only_what_carries_meaning_is_forwarded(gateway: Gateway, mock: Mock, model: str) -> None:
    carried = {
        "OpenAI-Beta": "assistants=v2",
        "OpenAI-Organization": "org-1",
        "Idempotency-Key": "once",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "anthropic-beta": "tools",
    }
    dropped = {
        "Cookie": "session=secret",
        "X-Forwarded-For": "10.0.0.1",
        "X-Real-IP": "10.0.0.1",
        "Forwarded": "for=10.0.0.1",
        "x-keepgate-namespace": "mine",
        "x-keepgate-unknown": "1",
        "x-api-key": "sk-client",
        "api-key": "sk-client",
        "x-goog-api-key": "sk-client",
        "TE": "trailers",
        "Proxy-Authorization": "Basic x",
        "x-something-else": "1",
    }
    agent = {"User-Agent": "my-app/1.0", "Authorization": "Bearer sk-client"}

    gateway.ask(QUESTION, model=model, headers={**carried, **dropped, **agent})

    sent = mock.last_headers()
    assert {name: sent.get(name.lower()) for name in carried} == carried
    assert [name for name in dropped if name.lower() in sent] == []
    assert sent["x-forwarded-user-agent"] == "my-app/1.0"
    assert sent["authorization"] == "Bearer sk-of-the-upstream"
    assert "sk-client" not in str(sent)


def test_fields_nobody_knows_are_forwarded_as_they_came(gateway: Gateway, mock: Mock, model: str) -> None:
    gateway.ask(QUESTION, model=f"mock/{model}", a_field_of_tomorrow={"deep": [1, None, "é"]})

    assert mock.last_body()["model"] == model
    assert mock.last_body()["a_field_of_tomorrow"] == {"deep": [1, None, "é"]}


def test_the_qualified_and_the_bare_name_share_their_entries(gateway: Gateway, model: str) -> None:
    outcomes = [outcome(gateway.ask(QUESTION, model=name)) for name in (model, f"mock/{model}")]

    assert outcomes == ["miss", "exact"]


# --- routes and refusals


def test_probes_and_the_root_answer(gateway: Gateway) -> None:
    live, ready, root = (gateway.client.get(path) for path in ("/health/live", "/health/ready", "/"))

    assert (live.status_code, ready.status_code, root.status_code) == (200, 200, 200)
    assert ready.json()["tiers"] == {"exact": "up", "embedder": "up", "vector": "up"}
    assert root.json()["name"] == "keepgate"
    assert re.fullmatch(r"\d+\.\d+\.\d+", root.json()["version"])


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/metrics", "/v1/models"])
def test_head_is_get_without_its_body(gateway: Gateway, path: str) -> None:
    head, get = gateway.client.head(path), gateway.client.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_the_api_page_describes_the_management_api(gateway: Gateway) -> None:
    page, described = gateway.client.get("/docs"), gateway.client.get("/openapi.json")

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "/admin/api/keys" in described.json()["paths"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/chat/completions", (405, "method_not_allowed")),
        ("DELETE", "/e/exact/v1/embeddings", (405, "method_not_allowed")),
        ("POST", "/v1/models", (405, "method_not_allowed")),
        ("POST", "/v1/no/such/thing", (404, "not_found")),
        ("GET", "/e/exact/nothing", (404, "not_found")),
        ("GET", "/e/exact", (404, "not_found")),
        ("POST", "/e/nowhere/v1/chat/completions", (400, "unknown_endpoint")),
    ],
)
def test_refusals_of_routes_have_the_dialects_body(
    gateway: Gateway, method: str, path: str, expected: tuple[int, str]
) -> None:
    body = {"model": "m", "messages": []} if method == "POST" else None

    answer = gateway.client.request(method, path, json=body)

    assert code(answer) == expected
    assert answer.json()["error"]["message"]
    assert answer.headers["x-keepgate-request-id"]
    if answer.status_code == 405:
        assert answer.headers["allow"] in ("POST", "GET, HEAD")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    """A gateway with named models, one of which has a fallback, for pages of one origin."""
    directory = tmp_path_factory.mktemp("named")
    config = with_endpoints(
        directory,
        provider.url,
        models=[
            {"name": "gpt", "targets": [{"upstream": "mock", "model": "mock-large"}]},
            {
                "name": "resilient",
                "targets": [{"upstream": "down", "model": "any"}],
                "fallbacks": ["mock/mock-small"],
                "attempts": 2,
            },
        ],
        endpoints=[
            {"name": "default", "cache": {"mode": "exact"}},
            {"name": "keeps-fallbacks", "cache": {"mode": "exact", "fallback_answers": True}},
        ],
        server={"cors_origins": [ORIGIN]},
    )
    # Nobody listens there: port 9 is for discarding, and root's.
    down = {"name": "down", "provider": "openai-compatible", "base_url": "http://127.0.0.1:9/v1", "api_key": "sk-x"}
    config["upstreams"].append(down)
    with running_gateway(directory, config) as gateway:
        yield gateway


def test_a_model_has_the_name_that_the_configuration_gives_it(named: Gateway, mock: Mock) -> None:
    listed = [card["id"] for card in named.client.get("/v1/models").json()["data"]]
    answer = named.ask(QUESTION, model="gpt")

    assert listed == ["gpt", "resilient"]
    assert answer.headers["x-keepgate-upstream"] == "mock/mock-large"
    assert mock.last_body()["model"] == "mock-large"


@pytest.mark.parametrize("path", ["/v1/models/gtp", "/e/default/v1/models/gtp"])
def test_an_unknown_model_is_a_404_with_the_names_that_exist(named: Gateway, path: str) -> None:
    asked, card = named.ask(QUESTION, model="gtp"), named.client.get(path)

    for answer in (asked, card):
        assert code(answer) == (404, "model_not_found")
        assert "gpt" in answer.json()["error"]["message"]


def test_an_upstream_that_is_down_is_named_and_not_to_be_retried(named: Gateway) -> None:
    answer = named.ask(QUESTION, model="down/any")

    assert code(answer) == (503, "upstream_unavailable")
    assert "'down'" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_answers_and_is_kept_only_where_the_endpoint_says_so(named: Gateway, *, stream: bool) -> None:
    def asked(endpoint: str) -> list[httpx.Response]:
        text = f"{QUESTION} {stream}"
        return [named.ask(text, model="resilient", endpoint=endpoint, stream=stream) for _ in range(2)]

    default, keeping = asked("default"), asked("keeps-fallbacks")

    assert [outcome(answer) for answer in default] == ["miss", "miss"]
    assert [outcome(answer) for answer in keeping] == ["miss", "exact"]
    assert {answer.headers["x-keepgate-upstream"] for answer in (*default, keeping[0])} == {"mock/mock-small"}


def test_a_preflight_of_a_configured_origin_is_answered(named: Gateway) -> None:
    answer = named.client.options(
        "/v1/chat/completions",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]


def test_a_page_of_a_configured_origin_may_read_the_headers(named: Gateway) -> None:
    answers = [
        named.ask(QUESTION, model="gpt", headers={"Origin": ORIGIN}),
        named.ask(QUESTION, model="gpt", headers={"Origin": ORIGIN}, stream=True),
        named.ask(QUESTION, model="gtp", headers={"Origin": ORIGIN}),
    ]

    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        for name in ("x-keepgate-cache", "x-keepgate-request-id", "cache-status", "age"):
            assert name in answer.headers["access-control-expose-headers"]


def test_a_page_of_another_origin_may_not(named: Gateway) -> None:
    answer = named.ask(QUESTION, model="gpt", headers={"Origin": "https://evil.example.com"})

    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_without_configured_origins_no_page_may_cross(gateway: Gateway) -> None:
    answer = gateway.client.get("/", headers={"Origin": ORIGIN})

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    """CA, certificate and key files for 127.0.0.1."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    return ca, cert, key


def test_tls_is_served_with_the_configured_certificate(
    tmp_path: Path, mock: Mock, certificate: tuple[Path, Path, Path], model: str
) -> None:
    ca, cert, key = certificate
    config = with_endpoints(
        tmp_path,
        mock.url,
        endpoints=[{"name": "default", "cache": {"mode": "exact"}}],
        server={"tls": {"cert": str(cert), "key": str(key)}},
    )
    with running_gateway(tmp_path, config, ca_file=ca) as gateway:
        answers = [gateway.ask(QUESTION, model=model, stream=stream) for stream in (False, True)]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{gateway.server.port}/")

    assert [outcome(answer) for answer in answers] == ["miss", "exact"]
    assert "https://127.0.0.1" in gateway.log()


def test_metrics_have_their_promised_names(gateway: Gateway, model: str) -> None:
    for text in (QUESTION, QUESTION):
        gateway.ask(text, model=model)
    gateway.ask(QUESTION, model=model, stream=True)

    exposed = gateway.client.get("/metrics")

    assert exposed.headers["content-type"].startswith("text/plain")
    for name in (
        "keepgate_requests_total",
        "keepgate_request_seconds_bucket",
        "keepgate_overhead_seconds_bucket",
        "keepgate_time_to_first_token_seconds_bucket",
        "keepgate_cache_lookups_total",
        "keepgate_cache_similarity_bucket",
        "keepgate_cache_lookup_seconds_bucket",
        "keepgate_cache_entries",
        "keepgate_tokens_total",
        "keepgate_tokens_saved_total",
        "keepgate_upstream_attempts_total",
        "keepgate_upstream_seconds_bucket",
        "keepgate_coalesced_total",
        "keepgate_inflight",
        "keepgate_degraded",
    ):
        assert re.search(rf"^{name}(\{{| )", exposed.text, re.MULTILINE), name
    assert "nobody" not in exposed.text


def test_requests_are_counted_by_what_the_cache_did(gateway: Gateway, model: str) -> None:
    def counted(cache: str) -> float:
        return gateway.metric("keepgate_requests_total", endpoint="exact", status="200", cache=cache)

    before = counted("miss"), counted("exact")

    for _ in range(3):
        gateway.ask(QUESTION, model=model, endpoint="exact")

    assert (counted("miss") - before[0], counted("exact") - before[1]) == (1, 2)
