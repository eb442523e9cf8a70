"""Which of a client's headers travel upstream, and which of those change what is answered: one rule for both.

What is forwarded is part of the identity, but for what only tells requests
apart (`Idempotency-Key`, `traceparent`) or who asks with what (`User-Agent`).
Never forwarded: credentials, cookies, hop-by-hop headers, where the client sits.
"""

from collections.abc import Mapping

from models.errors import RequestError

_MEANING = frozenset({b"openai-beta", b"openai-organization", b"openai-project"})
_NEUTRAL = frozenset({b"idempotency-key", b"traceparent"})
# What the SDKs send unasked. They differ in what they refuse, not in what they answer.
_USUAL_ANTHROPIC_VERSIONS = frozenset({b"2023-06-01", b"2026-10-21"})
_PARTITIONING = frozenset({b"x-keepgate-namespace", b"x-keepgate-context"})
_LONGEST_VALUE = 4096


def forwarded(headers: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    """Names in lower case."""
    found = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers.items()
        if name in _MEANING or name in _NEUTRAL or name.startswith(b"anthropic-")
    ]
    agent = headers.get(b"user-agent")
    if agent is not None:
        found.append(("x-forwarded-user-agent", agent.decode("latin-1")))
    return tuple(found)


def meaning(headers: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """What joins the identity, in an order of its own. Raises `RequestError` that names a header of ours that is
    empty or too long."""
    found = [
        _partition(name, value) if name in _PARTITIONING else f"{name.decode('latin-1')}={value.decode('latin-1')}"
        for name, value in headers.items()
        if name in _MEANING or name in _PARTITIONING or (name.startswith(b"anthropic-") and not _is_usual(name, value))
    ]
    return tuple(sorted(found)) if found else ()


def _is_usual(name: bytes, value: bytes) -> bool:
    return name == b"anthropic-version" and value in _USUAL_ANTHROPIC_VERSIONS


def _partition(header: bytes, value: bytes) -> str:
    name = header.decode()
    if not value.strip() or len(value) > _LONGEST_VALUE:
        raise RequestError(f"the header {name} must have 1 to {_LONGEST_VALUE} characters", param=name)
    parts = [value.decode("latin-1")]
    if header == b"x-keepgate-context":
        parts = parts[0].split(",")
    return f"{name}={','.join(part.strip() for part in parts)}"
