"""Which web pages may ask a gateway that asks nobody for a key, and what a browser may read."""

from collections.abc import Iterator

import httpx
import pytest

from tests.integration.conftest import with_endpoints
from tests.support.gateway import ADMIN_TOKEN, Gateway, Mock, question, running_gateway

QUESTION = "How do I change my address?"
ORIGIN = "https://app.example.com"
REFUSED = (403, "not_allowed")


@pytest.fixture(scope="module")
def anyone(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    """A gateway for pages of every origin."""
    directory = tmp_path_factory.mktemp("anyone")
    config = with_endpoints(directory, provider.url, server={"cors_origins": ["*"]})
    with running_gateway(directory, config, ready=False) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    """A gateway that asks for a key, and for pages of one origin."""
    directory = tmp_path_factory.mktemp("guarded")
    config = with_endpoints(directory, provider.url, server={"cors_origins": [ORIGIN]}, keys={"require": True})
    with running_gateway(directory, config, ready=False) as gateway:
        yield gateway


def crossing(answer: httpx.Response) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin",
    [
        ORIGIN,
        "null",
        "",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example:8080",
        "http://127.evil.example",
        "http://localhost:8080@evil.example",
        "file://localhost",
        "http://rebound.example:8080",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/e/exact/v1/chat/completions"])
def test_a_page_from_elsewhere_may_not_spend_what_needs_no_key(
    gateway: Gateway, mock: Mock, model: str, origin: str, path: str
) -> None:
    body = str(question(QUESTION, model=model)).replace("'", '"')

    # What a page may send without asking first: a simple request.
    answer = gateway.client.post(path, content=body, headers={"Origin": origin, "Content-Type": "text/plain"})

    assert (answer.status_code, answer.json()["error"]["code"]) == REFUSED
    assert "server.cors_origins" in answer.json()["error"]["message"]
    assert mock.calls() == 0


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://localhost:5173", "http://127.0.0.1:8080", "http://127.9.8.7:1", "http://[::1]:3000"],
)
def test_a_page_of_this_machine_may(gateway: Gateway, model: str, origin: str) -> None:
    assert gateway.ask(QUESTION, model=model, headers={"Origin": origin}).status_code == 200


def test_so_may_pages_the_operator_named(anyone: Gateway, model: str) -> None:
    assert anyone.ask(QUESTION, model=model, headers={"Origin": ORIGIN}).status_code == 200


def test_where_a_key_is_required_the_key_decides(guarded: Gateway, model: str) -> None:
    headers = {"Origin": "https://elsewhere.example", "Authorization": f"Bearer {guarded.make_key('app')}"}

    assert guarded.ask(QUESTION, model=model, headers=headers).status_code == 200
    assert guarded.ask(QUESTION, model=model, headers={"Origin": ORIGIN}).status_code == 401


def test_without_an_origin_no_answer_says_who_may_read_it(anyone: Gateway, model: str) -> None:
    answer = anyone.ask(QUESTION, model=model)

    assert answer.status_code == 200
    assert crossing(answer) == []


@pytest.mark.parametrize("path", ["/v1/models", "/e/exact/v1/models"])
def test_pages_may_read_the_models(anyone: Gateway, path: str) -> None:
    answer = anyone.client.get(path, headers={"Origin": ORIGIN})

    assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("path", ["/admin/api/status", "/admin/api/keys", "/metrics", "/", "/docs", "/health/live"])
def test_pages_may_read_nothing_else(anyone: Gateway, path: str) -> None:
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {ADMIN_TOKEN}"}
    preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}

    read = anyone.client.get(path, headers=headers)
    asked = anyone.client.options(path, headers={"Origin": ORIGIN, **preflight})

    assert read.status_code == 200
    assert asked.status_code in (401, 405)
    assert crossing(read) == crossing(asked) == []


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 200), ("/e/nowhere/v1/models", 400)])
def test_answers_about_models_have_a_request_id(gateway: Gateway, path: str, status: int) -> None:
    answer = gateway.client.get(path)

    assert answer.status_code == status
    assert answer.headers["x-keepgate-request-id"]
