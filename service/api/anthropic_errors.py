"""Errors in the shape of Anthropic's API.

https://platform.claude.com/docs/en/api/errors
"""

from typing import Any, Final

import msgspec

from models.errors import GatewayError, Untranslatable, UpstreamError
from service.api.errors import provider_message, status_of

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Codes of ours whose status says less, or something else.
_TYPES_OF_CODES: Final = {"overloaded": "overloaded_error", "not_cached": "api_error"}


def error_body(error: GatewayError, request_id: str) -> bytes:
    """`{"type": "error", "error": {"type", "message", "code"}, "request_id"}`.

    A provider's own 4xx keeps its body where it is of this dialect.
    """
    message, code = error.message, _TYPES_OF_CODES.get(error.code)
    if isinstance(error, UpstreamError) and error.body is not None:
        if error.dialect == "anthropic":
            return error.body
        message, code = provider_message(error), None
    status = status_of(error)
    kind = code or _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    told: dict[str, Any] = {"type": kind, "message": message, "code": error.code}
    if isinstance(error, Untranslatable) and "thread" in error.names:
        # The API's own word, on which the SDK's tool runner, which always begins a thread, goes on without one.
        told["details"] = {"error_code": "thread_unsupported_request"}
    return msgspec.json.encode({"type": "error", "error": told, "request_id": request_id})
