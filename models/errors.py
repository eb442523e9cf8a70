"""What can go wrong, as callers see it.

`code` is the stable name of docs/api.md; service/api/errors.py holds the one
table that turns it into a status and a dialect's body. No message holds
prompt text, a key or a vector.
"""

from collections.abc import Sequence

# What a client is told of its own names.
_LONGEST_NAME = 80


class GatewayError(Exception):
    """An end to a request that the caller is told about."""

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class RequestError(GatewayError):
    """The body, a header or a name in it cannot be used: `invalid_request`,
    `unknown_endpoint`, `model_not_found`, `request_timeout`, `request_too_large`."""

    code = "invalid_request"


class Untranslatable(RequestError):
    """The request says something that the dialect of every target lacks, and that changes what is answered.

    `names` are paths into the canonical body, or into what the client wrote
    where that is in `Request.refused`; a path may have a note in brackets after
    it. What the client is told is in its own words (service/api/wording.py).
    """

    def __init__(self, names: Sequence[str], *, dialect: str) -> None:
        names = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names]
        shown = ", ".join(names[:10])
        super().__init__(
            f"the model asked for cannot be told this in its dialect ({dialect}): {shown}",
            param=names[0].partition(" (")[0],
        )
        self.names = tuple(names)
        self.dialect = dialect


class AccessError(GatewayError):
    """`invalid_key` or `not_allowed`."""

    code = "invalid_key"


class LimitError(GatewayError):
    """`budget_exceeded`, `rate_limited`, or `overloaded`."""

    code = "rate_limited"


class NotCached(GatewayError):
    """`only-if-cached` met a miss."""

    code = "not_cached"


class ContentBlocked(GatewayError):
    """A guardrail blocked; kinds are named, the text never."""

    code = "content_blocked"


class GuardrailUnavailable(GatewayError):
    """A rule that must not be left out could not look; nothing was let through."""

    code = "guardrail_unavailable"


class UpstreamError(GatewayError):
    """The upstream did not answer as asked.

    `code` is `upstream_error` (it answered, and not with an answer),
    `upstream_unavailable` (nothing could be sent) or `upstream_timeout`.
    `status` and `body` are set for the provider's own 4xx, which callers see
    as they came where it is of their dialect (`dialect` says whose `body` is),
    else with its message; for 401 and 403 only where the credential was the
    caller's, else they are the operator's to mend.
    `answered` is the HTTP status the upstream gave, None where it gave none.
    `headers` are the provider's, already filtered and prefixed.
    """

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        body: bytes | None = None,
        retry_after: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        dialect: str = "openai",
        answered: int | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.answered = answered if answered is not None else status
        self.dialect = dialect
        self.status = status
        self.body = body
        self.headers = headers


class BackendError(Exception):
    """A store or an embedder failed. Never reaches a caller: the stage that asked carries on without it."""


class StoreFull(BackendError):
    """No room to write; reads still work."""


class TextRefused(BackendError):
    """The embedder works but will not take this text, now or later."""


class TextTooLong(TextRefused):
    """Longer than the embedder's window: what lies beyond it would not count."""


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds one `path.to.key: what is wrong` each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
