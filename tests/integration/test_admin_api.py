"""The management API of a running gateway, with its token and without."""

import re
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import ADMIN_TOKEN, Gateway, Mock, running_gateway, settings

QUESTION = "How do I download my invoice?"
REPHRASED = "How can I download my invoice?"

ROUTES = [
    ("GET", "/admin/api/status"),
    ("GET", "/admin/api/keys"),
    ("POST", "/admin/api/keys"),
    ("DELETE", "/admin/api/keys/0123456789ab"),
    ("DELETE", "/admin/api/cache?endpoint=default"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {ADMIN_TOKEN}"}],
    ids=["none", "wrong", "empty", "basic"],
)
def test_nothing_is_done_without_the_token(gateway: Gateway, method: str, path: str, headers: dict[str, str]) -> None:
    answer = gateway.client.request(method, path, headers=headers, json={"name": "x"} if method == "POST" else None)

    assert answer.status_code == 401
    assert "admin token" in answer.text


def test_a_virtual_key_is_no_admin_token(gateway: Gateway) -> None:
    secret = gateway.make_key("curious")

    answer = gateway.client.get("/admin/api/keys", headers={"Authorization": f"Bearer {secret}"})

    assert answer.status_code == 401


def test_a_token_that_is_not_ascii_is_refused_like_any_other(gateway: Gateway) -> None:
    answer = gateway.client.get("/admin/api/status", headers={b"Authorization": b"Bearer \xff\xfe"})

    assert answer.status_code == 401


def test_the_status_tells_tiers_endpoints_and_upstreams(gateway: Gateway) -> None:
    status = gateway.admin("GET", "/status").json()

    assert status["tiers"] == {"exact": "up", "embedder": "up", "vector": "up"}
    assert status["endpoints"]["default"] == {"mode": "semantic", "threshold": 0.92, "ttl": 3600.0}
    assert status["endpoints"]["shadow"]["mode"] == "shadow"
    assert status["upstreams"] == ["mock"]


def test_a_key_is_made_listed_used_and_revoked(gateway: Gateway, model: str) -> None:
    made = gateway.admin("POST", "/keys", json={"name": "app", "team": "blue", "endpoints": ["exact"]})
    secret, key_id = made.json()["key"], made.json()["key_id"]
    headers = {"Authorization": f"Bearer {secret}"}

    listed = [key for key in gateway.admin("GET", "/keys").json() if key["key_id"] == key_id]
    used = gateway.ask(QUESTION, model=model, endpoint="exact", headers=headers)
    beyond = gateway.ask(QUESTION, model=model, headers=headers)
    revoked = gateway.admin("DELETE", f"/keys/{key_id}")
    after = gateway.ask(QUESTION, model=model, endpoint="exact", headers=headers)

    assert made.status_code == 201
    assert re.fullmatch(r"kg-[\w-]{43}", secret)
    assert [(key["name"], key["team"], key["endpoints"]) for key in listed] == [("app", "blue", ["exact"])]
    assert secret not in str(listed)
    assert (used.status_code, beyond.status_code, after.status_code) == (200, 403, 401)
    assert revoked.json()["revoked_at"] is not None


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x", "expires_in": 0}, {"name": "x", "endpoints": "all"}])
def test_a_key_that_cannot_be_made_is_a_422_that_says_why(gateway: Gateway, body: dict[str, object]) -> None:
    answer = gateway.admin("POST", "/keys", json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_a_key_nobody_made_cannot_be_revoked(gateway: Gateway) -> None:
    answer = gateway.admin("DELETE", "/keys/0123456789ab")

    assert answer.status_code == 404
    assert "no key has that id" in answer.json()["detail"]


def test_clearing_one_endpoint_leaves_the_others(gateway: Gateway, model: str) -> None:
    def cached(text: str, endpoint: str) -> int:
        asked = {"Cache-Control": "only-if-cached"}
        return gateway.ask(text, model=model, endpoint=endpoint, headers=asked).status_code

    for endpoint in ("lenient", "exact"):
        gateway.ask(QUESTION, model=model, endpoint=endpoint)
    gateway.await_cached(REPHRASED, model=model, endpoint="lenient")
    gateway.await_cached(QUESTION, model=model, endpoint="exact")

    cleared = gateway.admin("DELETE", "/cache", params={"endpoint": "lenient"})

    assert cleared.json()["entries"] >= 1
    assert [cached(text, "lenient") for text in (QUESTION, REPHRASED)] == [504, 504]
    assert cached(QUESTION, "exact") == 200
    assert gateway.metric("keepgate_cache_entries", endpoint="lenient") == 0


def test_without_a_configured_token_one_is_made_and_printed_once(tmp_path: Path, mock: Mock) -> None:
    config = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "exact"}}])
    del config["admin"]
    with running_gateway(tmp_path, config) as gateway:
        printed = re.findall(r"Admin token for this run [^:]*: (\S+)", gateway.log())
        assert len(printed) == 1
        let_in = gateway.client.get("/admin/api/status", headers={"Authorization": f"Bearer {printed[0]}"})
        kept_out = httpx.get(f"{gateway.url}/admin/api/status")

    assert len(printed[0]) >= 32
    assert (let_in.status_code, kept_out.status_code) == (200, 401)
