"""The first stage: headers and path to a context, before the body is read."""

import time
from collections.abc import Mapping
from hashlib import blake2b

from backends.keyring.base import Keyring
from models.errors import AccessError, RequestError
from service.caching import directives
from service.context import Context, Directives, Endpoint
from service.governance import keys
from service.pipeline.headers import meaning


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
    scope = None if found is None else found[0].scope
    # First of all, so that nobody learns which endpoints exist without a key where one is required.
    caller = keys.identify(headers, keyring, required=keys_required, scope=scope, now=time.time())
    if found is None:
        raise RequestError(
            f"no endpoint of that name; known: {', '.join(endpoints)}", code="unknown_endpoint", param="endpoint"
        )
    endpoint, asked = found
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
        meaning=meaning(headers),
    )


def credential_mark(credential: str | None, secret: bytes) -> str:
    """Stands for a forwarded credential in identities: 128 bits, keyed, so that it tells nothing about it."""
    if credential is None:
        return "no-credential"
    return blake2b(credential.encode("utf-8", "surrogateescape"), key=secret, digest_size=16).hexdigest()
