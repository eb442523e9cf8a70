"""The first stage: headers and path to a context, before the body is read."""

import time
from collections.abc import Mapping
from hashlib import blake2b

from backends.keyring.base import Keyring
from models.errors import AccessError, RequestError
from service.caching import directives
from service.context import Context, Directives, Endpoint
from service.governance import keys

# Their values change what an upstream answers.
_MEANINGFUL = (b"openai-beta", b"anthropic-beta", b"openai-organization", b"openai-project")
_PARTITIONING = (b"x-keepgate-namespace", b"x-keepgate-context")
_IN_IDENTITY = frozenset({*_MEANINGFUL, *_PARTITIONING, b"anthropic-version"})
_USUAL_ANTHROPIC_VERSION = b"2023-06-01"
_LONGEST_VALUE = 4096


def authenticate(
    headers: Mapping[bytes, bytes],
    endpoint_name: str,
    *,
    endpoints: Mapping[str, tuple[Endpoint, Directives]],
    keyring: Keyring,
    keys_required: bool,
    request_id: str,
    started: float,
) -> Context:
    """Raises `AccessError` or `RequestError`."""
    found = endpoints.get(endpoint_name)
    if found is None:
        raise RequestError(
            f"no endpoint of that name; known: {', '.join(endpoints)}", code="unknown_endpoint", param="endpoint"
        )
    endpoint, asked = found
    caller = keys.identify(headers, keyring, required=keys_required, scope=endpoint.scope, now=time.time())
    if caller.key is not None and caller.key.endpoints is not None and endpoint.name not in caller.key.endpoints:
        raise AccessError(f"this key may not use the endpoint {endpoint.name}", code="not_allowed")
    if not directives.HEADERS.isdisjoint(headers):
        asked = directives.parse(headers, endpoint)
    return Context(
        request_id=request_id,
        endpoint=endpoint,
        caller=caller,
        directives=asked,
        started=started,
        headers=headers,
        meaning=() if _IN_IDENTITY.isdisjoint(headers) else _meaning(headers),
    )


def credential_mark(credential: str | None, secret: bytes) -> str:
    """Stands for a forwarded credential in identities: 128 bits, keyed, so that it tells nothing about it."""
    if credential is None:
        return "no-credential"
    return blake2b(credential.encode("utf-8", "surrogateescape"), key=secret, digest_size=16).hexdigest()


def _meaning(headers: Mapping[bytes, bytes]) -> tuple[str, ...]:
    meaning = [f"{name.decode()}={headers[name].decode('latin-1')}" for name in _MEANINGFUL if name in headers]
    version = headers.get(b"anthropic-version", _USUAL_ANTHROPIC_VERSION)
    if version != _USUAL_ANTHROPIC_VERSION:
        meaning.append(f"anthropic-version={version.decode('latin-1')}")
    for header in _PARTITIONING:
        value = headers.get(header)
        if value is None:
            continue
        name = header.decode()
        if not value.strip() or len(value) > _LONGEST_VALUE:
            raise RequestError(f"the header {name} must have 1 to {_LONGEST_VALUE} characters", param=name)
        text = value.decode("latin-1").strip()
        if header == b"x-keepgate-context":
            text = ",".join(part.strip() for part in text.split(","))
        meaning.append(f"{name}={text}")
    return tuple(meaning)
