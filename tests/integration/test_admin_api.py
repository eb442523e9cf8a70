"""The management API of a running gateway, with its token and without."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from backends.keyring.memory import MemoryKeyring
from models.errors import StoreFull
from models.key import VirtualKey
from service.app import App
from service.context import Limits
from service.wiring import Runtime
from tests.support.gateway import ADMIN_TOKEN, Gateway, Mock, running_gateway, settings
from tests.support.servers import ROOT

QUESTION = "How do I download my invoice?"
REPHRASED = "How can I download my invoice?"

ROUTES = [
    ("GET", "/admin/api/status"),
    ("GET", "/admin/api/keys"),
    ("POST", "/admin/api/keys"),
    ("DELETE", "/admin/api/keys/0123456789ab"),
    ("DELETE", "/admin/api/cache?endpoint=default"),
    ("GET", "/admin/api/endpoints"),
    ("GET", "/admin/api/endpoints/default"),
    ("PATCH", "/admin/api/endpoints/default"),
    ("DELETE", "/admin/api/endpoints/default/override"),
    ("GET", f"/admin/api/cache/entries/{'0' * 64}"),
    ("POST", f"/admin/api/cache/entries/{'0' * 64}/report"),
    ("POST", "/admin/api/cache/warm?endpoint=default"),
]


def refused(answer: httpx.Response, code: str) -> dict[str, Any]:
    """The error of an answer, which has the one shape that all errors have."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-keepgate-request-id"]
    return error


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
    default = status["endpoints"]["default"]
    assert (default["mode"], default["threshold"], default["ttl"]) == ("semantic", None, 3600.0)
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


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "name", "name: is required"),
        ({"name": ""}, "name", "name: must be 1 to 128 printable characters"),
        ({"name": "x" * 129}, "name", "name: must be 1 to 128 printable characters"),
        ({"name": "two\nlines"}, "name", "name: must be 1 to 128 printable characters"),
        ({"name": "\u001b[31mred"}, "name", "name: must be 1 to 128 printable characters"),
        ({"name": "x", "team": " "}, "team", "team: must be 1 to 128 printable characters"),
        ({"name": "x", "expires_in": 0}, "expires_in", "expires_in: must be a duration above 0"),
        ({"name": "x", "expires_in": 1e18}, "expires_in", "expires_in: must be a duration above 0"),
        ({"name": "x", "expires_in": "soon"}, "expires_in", "expires_in: must be a duration above 0"),
        ({"name": "x", "expires_in": True}, "expires_in", "expires_in: must be a duration above 0"),
        ({"name": "x", "endpoints": "all"}, "endpoints", "endpoints: Input should be a valid list"),
        ({"name": "x", "endpoints": []}, "endpoints", "endpoints: List should have at least 1 item"),
        ({"name": "x", "endpoints": ["nope"]}, "endpoints", "endpoints: no endpoint is named 'nope'; known: default"),
        ({"name": "typo", "endpoint": "faq", "model": "m1"}, "endpoint", "endpoint: unknown field; model: unknown"),
    ],
)
def test_a_key_that_cannot_be_made_is_a_422_that_says_why(
    gateway: Gateway, body: dict[str, object], param: str, message: str
) -> None:
    before = gateway.admin("GET", "/keys").json()

    answer = gateway.admin("POST", "/keys", json=body)

    assert answer.status_code == 422
    assert refused(answer, "invalid_request")["param"] == param
    assert refused(answer, "invalid_request")["message"].startswith(message)
    assert gateway.admin("GET", "/keys").json() == before


@pytest.mark.parametrize(("given", "seconds"), [("12h", 43200), (90, 90), ("90", 90), ("1.5d", 129600)])
def test_a_lifetime_is_seconds_or_a_duration(gateway: Gateway, given: str | int, seconds: float) -> None:
    made = gateway.admin("POST", "/keys", json={"name": "x", "expires_in": given}).json()

    assert made["expires_at"] - made["created_at"] == pytest.approx(seconds)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_is_json_whatever_it_is_called(gateway: Gateway, headers: dict[str, str]) -> None:
    answer = gateway.client.post(
        "/admin/api/keys", content=b'{"name": "curl"}', headers={"Authorization": f"Bearer {ADMIN_TOKEN}", **headers}
    )

    assert answer.status_code == 201


def test_a_body_that_is_no_json_is_a_422(gateway: Gateway) -> None:
    answer = gateway.admin("POST", "/keys", content=b"{name")

    assert answer.status_code == 422
    assert refused(answer, "invalid_request")["message"] == "body: is no JSON"


def test_nothing_of_a_body_is_read_before_the_token(gateway: Gateway) -> None:
    request = b"POST /admin/api/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 400000000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", gateway.server.port), timeout=5) as connection:
        connection.sendall(request)  # and no more: whoever waits for the body waits for ever
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 401 ")


def test_no_json_without_a_token_is_a_401(gateway: Gateway) -> None:
    answer = gateway.client.post("/admin/api/keys", content=b"{name", headers={"Content-Type": "application/json"})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    refused(answer, "invalid_key")


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_a_megabyte_is_a_413_also_with_the_token(gateway: Gateway, *, chunked: bool) -> None:
    body = b"x" * (1024**2 + 1)

    answer = gateway.admin("POST", "/keys", content=iter([body]) if chunked else body)

    assert answer.status_code == 413
    assert "1048576 bytes" in refused(answer, "request_too_large")["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("POST", "/v2", 404, "not_found"),
        ("POST", "/docs", 405, "method_not_allowed"),
        ("PUT", "/openapi.json", 405, "method_not_allowed"),
        ("POST", "/static-offline-docs/favicon.png", 405, "method_not_allowed"),
        ("GET", "/static-offline-docs/none.js", 404, "not_found"),
        ("POST", "/health/live", 405, "method_not_allowed"),
    ],
)
def test_every_path_refuses_in_the_one_shape(gateway: Gateway, method: str, path: str, status: int, code: str) -> None:
    answer = gateway.client.request(method, path)

    assert answer.status_code == status
    assert path in refused(answer, code)["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/keys", 405)])
def test_so_do_the_paths_behind_the_token(gateway: Gateway, method: str, path: str, status: int) -> None:
    answer = gateway.admin(method, path)

    assert answer.status_code == status
    refused(answer, "not_found" if status == 404 else "method_not_allowed")


def test_the_page_has_an_example_of_what_operators_send(gateway: Gateway) -> None:
    paths = gateway.client.get("/openapi.json").json()["paths"]

    for path, method in (
        ("endpoints/{name}", "patch"),
        ("cache/entries/{entry_id}/report", "post"),
        ("cache/warm", "post"),
    ):
        contents = paths[f"/admin/api/{path}"][method]["requestBody"]["content"]
        assert all(content.get("example") or content.get("examples") for content in contents.values()), path


def test_the_page_still_asks_for_the_token_and_knows_the_shape_of_errors(gateway: Gateway) -> None:
    described = gateway.client.get("/openapi.json").json()

    made = described["paths"]["/admin/api/keys"]["post"]
    assert made["security"] == [{"HTTPBearer": []}]
    assert "422" not in made["responses"]
    assert made["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refusal")


def test_the_documentation_names_every_field_and_route(gateway: Gateway) -> None:
    documented = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = gateway.client.get("/openapi.json").json()

    fields = [
        field
        for name in ("NewKey", "Change", "Report")
        for field in described["components"]["schemas"][name]["properties"]
    ]
    routes = [f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods]
    assert [name for name in fields if f"| `{name}` |" not in documented] == []
    assert [route for route in routes if f"| `{route}" not in documented] == []


def test_a_key_nobody_made_cannot_be_revoked(gateway: Gateway) -> None:
    answer = gateway.admin("DELETE", "/keys/0123456789ab")

    assert answer.status_code == 404
    assert "no key has that id" in refused(answer, "not_found")["message"]


def test_clearing_an_endpoint_that_does_not_exist_is_a_404_with_the_names(gateway: Gateway) -> None:
    answer = gateway.admin("DELETE", "/cache", params={"endpoint": "nope"})

    assert answer.status_code == 404
    assert "default" in refused(answer, "not_found")["message"]


class FullKeyring(MemoryKeyring):
    def add(self, digest: bytes, key: VirtualKey) -> None:  # noqa: ARG002 - as the protocol has it
        raise StoreFull("no room for another key")


@pytest.fixture
async def in_process() -> AsyncIterator[httpx.AsyncClient]:
    """The application alone, over a keyring that is full, and with no patience for slow bodies."""
    gateway = SimpleNamespace(endpoints={"default": None}, limits=Limits(max_body=1024, body_timeout=0.05))
    state = SimpleNamespace(gateway=gateway, cors_origins=frozenset())
    runtime = SimpleNamespace(admin_token=ADMIN_TOKEN, keyring=FullKeyring(), state=state)
    transport = httpx.ASGITransport(app=App(cast("Runtime", runtime)))
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client


async def test_a_store_that_fails_is_a_503_in_the_same_shape(in_process: httpx.AsyncClient) -> None:
    answer = await in_process.post("/admin/api/keys", json={"name": "x"})

    assert answer.status_code == 503
    assert refused(answer, "store_unavailable")["message"] == "no room for another key"


async def test_a_body_that_does_not_come_is_a_408_also_with_the_token(in_process: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await in_process.post("/admin/api/keys", content=endless())

    assert answer.status_code == 408
    refused(answer, "request_timeout")


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
