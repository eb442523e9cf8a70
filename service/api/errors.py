"""One table from an error's code to its status, the OpenAI dialect's body, and what a provider said."""

from typing import Any

import msgspec

from models.errors import (
    AccessError,
    ContentBlocked,
    GatewayError,
    LimitError,
    NotCached,
    RequestError,
    UpstreamError,
)

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "content_blocked": 400,
    "unknown_endpoint": 400,
    "invalid_key": 401,
    "budget_exceeded": 402,
    "not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "request_too_large": 413,
    "rate_limited": 429,
    "internal_error": 500,
    "upstream_error": 502,
    "upstream_unavailable": 503,
    "guardrail_unavailable": 503,
    "overloaded": 503,
    "store_unavailable": 503,
    "upstream_timeout": 504,
    "not_cached": 504,
}

_OPENAI_TYPES: tuple[tuple[type[GatewayError], str], ...] = (
    (RequestError, "invalid_request_error"),
    (ContentBlocked, "invalid_request_error"),
    (AccessError, "authentication_error"),
    (LimitError, "rate_limit_error"),
    (NotCached, "cache_error"),
    (UpstreamError, "upstream_error"),
)


def status_of(error: GatewayError) -> int:
    if isinstance(error, UpstreamError) and error.status is not None:
        return error.status
    return STATUS[error.code]


def provider_message(error: GatewayError) -> str:
    """What the provider said of a request that it refused, whichever dialect it said it in; else our own words.

    `{"error": {"message"}}` in all three, and a list with one such object at
    Gemini; some compatible servers have `{"message"}` or `{"error": "…"}`.
    """
    if not isinstance(error, UpstreamError) or error.body is None:
        return error.message
    said: Any = msgspec.json.decode(error.body)  # the adapter has read it before
    if isinstance(said, list) and said:
        said = said[0]
    for name in ("error", "message"):
        said = said.get(name, said) if isinstance(said, dict) else said
    return said if isinstance(said, str) and said else error.message


def _has_our_shape(body: bytes) -> bool:
    said = msgspec.json.decode(body)
    return isinstance(said, dict) and isinstance(said.get("error"), dict)


def openai_body(error: GatewayError, request_id: str) -> bytes:
    """`{"error": {"message", "type", "param", "code", "request_id"}}`.

    A provider's own 4xx keeps its body where that has this shape.
    https://platform.openai.com/docs/guides/error-codes
    """
    message = error.message
    if isinstance(error, UpstreamError) and error.body is not None:
        if error.dialect in ("openai", "responses") and _has_our_shape(error.body):
            return error.body
        message = provider_message(error)
    kind = next((name for base, name in _OPENAI_TYPES if isinstance(error, base)), "server_error")
    if error.code == "not_allowed":
        kind = "permission_error"
    elif error.code == "overloaded":
        kind = "server_error"
    return msgspec.json.encode(
        {
            "error": {
                "message": message,
                "type": kind,
                "param": error.param,
                "code": error.code,
                "request_id": request_id,
            }
        }
    )


def error_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    """What a client's retry logic reads, and what the upstream said."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", error.retry_after.encode("latin-1", "replace")))
    if isinstance(error, UpstreamError):
        headers += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in error.headers]
        if error.status is None:
            # We have already done what retrying can do; an SDK that retries 5xx would only multiply the load.
            headers.append((b"x-should-retry", b"false"))
    elif isinstance(error, NotCached | AccessError):
        # Claude Code asks on for minutes after a 401 that does not say so.
        headers.append((b"x-should-retry", b"false"))
    return headers
