"""Every error has a status, and says what a client may do about it."""

import json
import re
from pathlib import Path

import pytest

from models import errors
from models.errors import AccessError, GatewayError, LimitError, NotCached, RequestError, UpstreamError
from service.api.errors import STATUS, error_headers, openai_body, status_of

ROOT = Path(__file__).parents[2]


def test_every_code_in_the_code_has_a_status() -> None:
    sources = [
        path.read_text() for folder in ("service", "backends", "models") for path in (ROOT / folder).rglob("*.py")
    ]
    codes = {code for source in sources for code in re.findall(r'\bcode\s*=\s*"(\w+)"', source)}

    assert codes - {"ok"} <= STATUS.keys()


def test_every_gateway_error_has_a_status_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GatewayError)]

    assert len(kinds) > 5
    assert {kind.__name__: kind.code in STATUS for kind in kinds} == {kind.__name__: True for kind in kinds}


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RequestError("x"), 400, "invalid_request_error"),
        (RequestError("x", code="model_not_found"), 404, "invalid_request_error"),
        (AccessError("x"), 401, "authentication_error"),
        (AccessError("x", code="not_allowed"), 403, "permission_error"),
        (LimitError("x"), 429, "rate_limit_error"),
        (UpstreamError("x"), 502, "upstream_error"),
        (UpstreamError("x", code="upstream_timeout"), 504, "upstream_error"),
        (NotCached("x"), 504, "cache_error"),
    ],
)
def test_an_error_has_the_shape_of_the_openai_api(error: GatewayError, status: int, kind: str) -> None:
    body = json.loads(openai_body(error, "req_1"))["error"]

    assert status_of(error) == status
    assert (body["message"], body["type"], body["code"], body["request_id"]) == ("x", kind, error.code, "req_1")


def test_a_providers_own_refusal_keeps_its_status_and_words() -> None:
    refusal = UpstreamError("x", status=429, body=b'{"error":{"message":"slow down"}}', retry_after="7")

    assert status_of(refusal) == 429
    assert openai_body(refusal, "req_1") == b'{"error":{"message":"slow down"}}'
    assert (b"retry-after", b"7") in error_headers(refusal)
    assert (b"x-should-retry", b"false") not in error_headers(refusal)


def test_an_sdk_is_told_not_to_repeat_what_was_tried_or_is_not_allowed() -> None:
    assert (b"x-should-retry", b"false") in error_headers(UpstreamError("x"))
    assert (b"x-should-retry", b"false") in error_headers(NotCached("x"))
    assert (b"x-should-retry", b"false") in error_headers(AccessError("x"))
