"""Who may ask what, whose entries they may be served, and whose credentials go where."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import with_endpoints
from tests.support.gateway import (
    UPSTREAM_KEY,
    Gateway,
    Mock,
    eventually,
    keepgate,
    question,
    running_gateway,
    settings,
    text_of,
    worker_of,
)

QUESTION = "How do I cancel my subscription?"
REPHRASED = "How can I cancel my subscription?"

ENDPOINTS = [
    {"name": "default", "cache": {"mode": "semantic"}},
    {"name": "shared", "cache": {"mode": "semantic", "scope": "endpoint"}},
    {"name": "by-team", "cache": {"mode": "semantic", "scope": "team"}},
    {"name": "by-key", "cache": {"mode": "semantic", "scope": "key"}},
]


@pytest.fixture(scope="module")
def guarded_gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("guarded")
    config = settings(directory, provider.url, endpoints=ENDPOINTS, keys={"require": True}, server={"workers": 2})
    with running_gateway(directory, config) as gateway:
        yield gateway


@pytest.fixture
def guarded(guarded_gateway: Gateway, mock: Mock) -> Gateway:  # noqa: ARG001 - a test that asks begins with a fresh mock
    """Two workers that require a key."""
    return guarded_gateway


@pytest.fixture(scope="module")
def secrets(guarded_gateway: Gateway) -> dict[str, str]:
    """Keys of three people, two of them in one team; one made by the CLI beside the running gateway."""
    return {
        "ann": guarded_gateway.keys("create", "--name", "ann", "--team", "blue")["key"],
        "bob": guarded_gateway.make_key("bob", team="blue"),
        "cem": guarded_gateway.make_key("cem", team="red"),
    }


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def on_every_worker(gateway: Gateway, model: str, headers: dict[str, str], *, workers: int = 2) -> set[int]:
    """The statuses that all workers give to one question, each on a connection of its own."""
    statuses: dict[str, int] = {}

    def asked_all() -> bool:
        answer = gateway.ask(QUESTION, model=model, headers={**headers, "Connection": "close"})
        statuses[worker_of(answer)] = answer.status_code
        return len(statuses) == workers

    eventually(asked_all, every=0, within=20)
    return {*statuses.values()}


# --- who is let in


def test_without_a_key_nobody_is_let_in_before_the_body_is_read(guarded: Gateway, mock: Mock) -> None:
    answers = [
        guarded.ask(QUESTION, model="m"),
        guarded.ask(QUESTION, model="m", headers=bearer("sk-of-openai")),
        guarded.client.get("/v1/models"),
        guarded.client.post("/v1/chat/completions", content=b"no json at all"),
    ]

    assert [code(answer) for answer in answers] == [(401, "invalid_key")] * 4
    assert mock.calls() == 0


def test_what_a_caller_without_a_key_makes_up_is_no_label(guarded: Gateway, model: str) -> None:
    for invented in ("made-up-1", "made-up-2"):
        assert guarded.ask("hello", model=model, endpoint=invented).status_code == 401

    assert "made-up" not in guarded.client.get("/metrics").text


def test_a_model_is_looked_up_by_names_of_a_sensible_length_only(gateway: Gateway) -> None:
    answer = gateway.client.get(f"/v1/models/{'x' * 5_000}")

    assert code(answer) == (404, "model_not_found")
    assert len(answer.text) < 1_000


def test_probes_and_metrics_need_no_key(guarded: Gateway) -> None:
    statuses = [guarded.client.get(path).status_code for path in ("/", "/health/live", "/health/ready", "/metrics")]

    assert statuses == [200] * 4


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer {}"},
        {"Authorization": "bearer {}"},
        {"x-api-key": "{}"},
        {"x-goog-api-key": "{}"},
        {"api-key": "{}"},
        {"Authorization": "Bearer sk-of-openai", "x-api-key": "{}"},
    ],
    ids=lambda headers: "+".join(headers),
)
def test_a_key_is_found_in_every_credential_header(
    guarded: Gateway, secrets: dict[str, str], model: str, headers: dict[str, str]
) -> None:
    sent = {name: value.format(secrets["ann"]) for name, value in headers.items()}

    assert guarded.ask(QUESTION, model=model, headers=sent).status_code == 200


def test_an_unknown_key_is_refused_also_where_none_is_required(gateway: Gateway, guarded: Gateway, mock: Mock) -> None:
    unknown = bearer("kg-" + "a" * 43)

    answers = [each.ask(QUESTION, model="m", headers=unknown) for each in (gateway, guarded)]

    assert [code(answer) for answer in answers] == [(401, "invalid_key")] * 2
    assert "kg-aaa" not in answers[0].text
    assert mock.calls() == 0


def test_a_key_works_from_its_making_to_its_revoking_on_every_worker(guarded: Gateway, model: str) -> None:
    made = guarded.keys("create", "--name", "short-lived")

    before = on_every_worker(guarded, model, bearer(made["key"]))
    revoked = guarded.keys("revoke", made["key_id"])
    after = on_every_worker(guarded, model, bearer(made["key"]))

    assert revoked["revoked_at"] is not None
    assert (before, after) == ({200}, {401})


def test_a_revoked_key_is_not_even_served_from_the_cache(guarded: Gateway, model: str) -> None:
    made = guarded.keys("create", "--name", "cached")
    asked = [guarded.ask(QUESTION, model=model, headers=bearer(made["key"])) for _ in range(2)]

    guarded.keys("revoke", made["key_id"])

    assert [answer.headers["x-keepgate-cache"] for answer in asked] == ["miss", "exact"]
    assert code(guarded.ask(QUESTION, model=model, headers=bearer(made["key"]))) == (401, "invalid_key")


def test_a_key_ends_when_it_expires(guarded: Gateway, model: str) -> None:
    headers = bearer(guarded.make_key("brief", expires_in="3s"))

    first = guarded.ask(QUESTION, model=model, headers=headers).status_code

    assert first == 200
    eventually(lambda: guarded.ask(QUESTION, model=model, headers=headers).status_code == 401)


def test_a_key_is_stored_and_listed_without_its_secret(guarded: Gateway, secrets: dict[str, str]) -> None:
    listed = guarded.keys("list")
    on_disk = b"".join(file.read_bytes() for file in (guarded.config.parent / "data").rglob("*") if file.is_file())

    ann = next(key for key in listed if key["name"] == "ann")
    assert (ann["team"], ann["revoked_at"]) == ("blue", None)
    assert secrets["ann"] not in str(listed) + guarded.log()
    assert secrets["ann"].removeprefix("kg-").encode() not in on_disk


# --- what a key may use


def test_a_key_uses_its_endpoints_only(guarded: Gateway, model: str) -> None:
    headers = bearer(guarded.make_key("tenant", endpoints=["shared", "by-team"]))

    allowed = [guarded.ask(QUESTION, model=model, endpoint=name, headers=headers) for name in ("shared", "by-team")]
    refused = [guarded.ask(QUESTION, model=model, endpoint=name, headers=headers) for name in (None, "by-key")]

    assert [answer.status_code for answer in allowed] == [200, 200]
    assert [code(answer) for answer in refused] == [(403, "not_allowed")] * 2
    assert refused[0].json()["error"]["type"] == "permission_error"


def test_a_key_uses_and_sees_its_models_only(guarded: Gateway, mock: Mock) -> None:
    headers = bearer(guarded.make_key("frugal", models=["mock-small"]))

    allowed = guarded.ask(QUESTION, model="mock-small", headers=headers)
    refused = [
        guarded.ask(QUESTION, model=name, headers=headers) for name in ("mock-large", "mock/mock-small", "no-such")
    ]
    listed = guarded.client.get("/v1/models", headers=headers).json()["data"]
    card = guarded.client.get("/v1/models/mock-large", headers=headers)

    assert allowed.status_code == 200
    assert [code(answer) for answer in (*refused, card)] == [(403, "not_allowed")] * 4
    assert [each["id"] for each in listed] == ["mock-small"]
    assert mock.calls("/v1/chat/completions") == 1


def test_a_key_made_through_the_admin_api_works_at_once(guarded: Gateway, model: str) -> None:
    made = guarded.admin("POST", "/keys", json={"name": "by-api", "models": [model]})

    secret, key_id = made.json()["key"], made.json()["key_id"]
    before = on_every_worker(guarded, model, bearer(secret))
    guarded.admin("DELETE", f"/keys/{key_id}")
    after = on_every_worker(guarded, model, bearer(secret))

    assert made.status_code == 201
    assert (before, after) == ({200}, {401})


# --- whose entries


def outcomes(gateway: Gateway, model: str, endpoint: str | None, first: str, second: str) -> tuple[str, str, str]:
    """What `second` gets for the same question, for a rephrasing, and for one of their own, after `first` asked."""
    asked = gateway.ask(QUESTION, model=model, endpoint=endpoint, headers=bearer(first))
    assert asked.headers["x-keepgate-cache"] == "miss"
    gateway.await_cached(REPHRASED, model=model, endpoint=endpoint, headers=bearer(first))
    cached = {**bearer(second), "Cache-Control": "only-if-cached"}
    similar = gateway.ask(REPHRASED, model=model, endpoint=endpoint, headers=cached)
    same = gateway.ask(QUESTION, model=model, endpoint=endpoint, headers=bearer(second))
    again = gateway.ask(QUESTION, model=model, endpoint=endpoint, headers=bearer(second))
    return tuple(answer.headers["x-keepgate-cache"] for answer in (similar, same, again))  # type: ignore[return-value]  # three


@pytest.mark.parametrize(
    ("endpoint", "other", "shares"),
    [
        (None, "bob", False),
        ("by-key", "bob", False),
        ("by-team", "bob", True),
        ("by-team", "cem", False),
        ("shared", "cem", True),
    ],
)
def test_the_scope_says_who_shares_an_entry(
    guarded: Gateway, secrets: dict[str, str], model: str, endpoint: str | None, other: str, *, shares: bool
) -> None:
    got = outcomes(guarded, model, endpoint, secrets["ann"], secrets[other])

    assert got == (("semantic", "exact", "exact") if shares else ("miss", "miss", "exact"))


def test_a_key_of_no_team_is_alone_where_teams_share(guarded: Gateway, model: str) -> None:
    one, other = guarded.make_key("loner"), guarded.make_key("another-loner")

    assert outcomes(guarded, model, "by-team", one, other) == ("miss", "miss", "exact")


def test_a_namespace_does_not_reach_into_the_scope_of_another_key(
    guarded: Gateway, secrets: dict[str, str], model: str
) -> None:
    named = {"x-keepgate-namespace": "project"}
    guarded.ask(QUESTION, model=model, headers={**bearer(secrets["ann"]), **named})

    other = guarded.ask(QUESTION, model=model, headers={**bearer(secrets["bob"]), **named})

    assert other.headers["x-keepgate-cache"] == "miss"


async def test_two_keys_share_no_call_in_flight(
    guarded: Gateway, mock: Mock, secrets: dict[str, str], model: str
) -> None:
    mock.behaves(latency=700)
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json=question(QUESTION, model=model), headers=bearer(secrets[who]))
                for who in ("ann", "bob", "cem")
            )
        )

    assert [answer.headers["x-keepgate-cache"] for answer in answers] == ["miss"] * 3
    assert mock.calls() == 3


def test_a_key_and_nobody_share_nothing_where_none_is_required(gateway: Gateway, model: str) -> None:
    headers = bearer(gateway.make_key("known"))
    asked = [gateway.ask(QUESTION, model=model, headers=each) for each in (headers, None, headers, bearer("sk-any"))]

    assert [answer.headers["x-keepgate-cache"] for answer in asked] == ["miss", "miss", "exact", "exact"]


# --- whose credentials


def test_the_callers_credentials_never_reach_the_upstream(
    guarded: Gateway, mock: Mock, secrets: dict[str, str], model: str
) -> None:
    guarded.ask(QUESTION, model=model, headers={**bearer(secrets["ann"]), "x-api-key": "sk-mine", "Cookie": "a=b"})

    sent = mock.last_headers()
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert secrets["ann"] not in str(sent)
    assert "sk-mine" not in str(sent)
    assert "cookie" not in sent


@pytest.fixture(scope="module")
def passing_gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("passing")
    upstream = {"name": "mock", "provider": "openai-compatible", "base_url": provider.url, "auth": "passthrough"}
    with running_gateway(directory, settings(directory, provider.url, upstreams=[upstream])) as gateway:
        yield gateway


@pytest.fixture
def passing(passing_gateway: Gateway, mock: Mock) -> Gateway:  # noqa: ARG001 - a test that asks begins with a fresh mock
    """A gateway whose upstream gets the caller's credential."""
    return passing_gateway


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "api-key"])
def test_passthrough_hands_the_callers_credential_on(passing: Gateway, mock: Mock, model: str, header: str) -> None:
    sent = {header: "Bearer sk-mine" if header == "Authorization" else "sk-mine"}

    answer = passing.ask(QUESTION, model=model, headers=sent)

    assert answer.status_code == 200
    assert mock.last_headers()["authorization"] == "Bearer sk-mine"


def test_passthrough_hands_on_the_providers_credential_and_never_the_key(
    passing: Gateway, mock: Mock, model: str
) -> None:
    secret = passing.make_key("both")

    passing.ask(QUESTION, model=model, headers={**bearer(secret), "x-api-key": "sk-mine"})

    assert mock.last_headers()["authorization"] == "Bearer sk-mine"
    assert secret not in str(mock.last_headers())


def test_two_credentials_never_share_an_entry_or_a_similar_one(passing: Gateway, mock: Mock, model: str) -> None:
    passing.ask(QUESTION, model=model, headers=bearer("sk-one"))
    passing.await_cached(REPHRASED, model=model, headers=bearer("sk-one"))

    answers = [
        passing.ask(REPHRASED, model=model, headers={**bearer("sk-two"), "Cache-Control": "only-if-cached"}),
        passing.ask(QUESTION, model=model, headers=bearer("sk-two")),
        passing.ask(QUESTION, model=model),
        passing.ask(QUESTION, model=model, headers=bearer("sk-one")),
    ]

    assert [answer.headers["x-keepgate-cache"] for answer in answers] == ["miss", "miss", "miss", "exact"]
    assert mock.calls() == 3


async def test_two_credentials_never_share_a_call_in_flight(passing: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(latency=500)
    async with httpx.AsyncClient(base_url=passing.url) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json=question(QUESTION, model=model), headers=bearer(f"sk-{who}"))
                for who in ("one", "one", "two")
            )
        )

    assert sorted(answer.headers["x-keepgate-cache"] for answer in answers) == ["coalesced", "miss", "miss"]
    assert mock.calls() == 2


# --- beyond loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - that it is refused is the point
def test_beyond_loopback_the_gateway_refuses_to_start_without_keys(tmp_path: Path, host: str) -> None:
    config = tmp_path / "keepgate.yaml"
    config.write_text(f"storage: {{path: {tmp_path}/data}}\n")

    refused = keepgate("serve", "--config", str(config), "--host", host, "--port", "0")

    assert refused.returncode == 1
    assert "keys.require" in refused.stderr
    assert refused.stdout == ""
    assert not (tmp_path / "data").exists()


def test_beyond_loopback_it_starts_where_keys_are_required(tmp_path: Path, mock: Mock, model: str) -> None:
    config: dict[str, Any] = with_endpoints(
        tmp_path,
        mock.url,
        endpoints=[{"name": "default", "cache": {"mode": "exact"}}],
        keys={"require": True},
        server={"host": "0.0.0.0"},  # noqa: S104 - with keys it may
    )
    with running_gateway(tmp_path, config) as gateway:
        secret = gateway.make_key("outside")

        assert code(gateway.ask(QUESTION, model=model)) == (401, "invalid_key")
        assert QUESTION in text_of(gateway.ask(QUESTION, model=model, headers=bearer(secret)))
