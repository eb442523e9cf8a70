"""Virtual keys: made, hashed, and checked."""

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence

from backends.keyring.base import Keyring
from models.errors import AccessError, BackendError, GatewayError
from models.key import VirtualKey
from service.context import Caller, Scope

log = logging.getLogger("keepgate.keys")

PREFIX = "kg-"
_HEADERS = (b"x-api-key", b"x-goog-api-key", b"api-key")


def make(
    name: str,
    *,
    now: float,
    team: str | None = None,
    endpoints: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    expires_at: float | None = None,
) -> tuple[str, VirtualKey]:
    """A new secret (`kg-` and 256 random bits), shown to its owner once, and the key that is stored by its digest."""
    key = VirtualKey(
        key_id=secrets.token_hex(6),
        name=name,
        created_at=now,
        team=team,
        endpoints=None if endpoints is None else tuple(endpoints),
        models=None if models is None else tuple(models),
        expires_at=expires_at,
    )
    return PREFIX + secrets.token_urlsafe(32), key


def digest(secret: str) -> bytes:
    """What is stored. A plain hash is enough for 256 random bits; finding by it tells no timing about the secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def credentials(headers: Mapping[bytes, bytes]) -> list[str]:
    """Every credential of the request, in the order that clients of all dialects expect."""
    found = []
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and value.strip():
            found.append(value.strip().decode("latin-1"))
    for name in _HEADERS:
        value = headers.get(name, b"").strip()
        if value:
            found.append(value.decode("latin-1"))
    return found


def identify(
    headers: Mapping[bytes, bytes], keyring: Keyring, *, required: bool, scope: Scope | None, now: float
) -> Caller:
    """Who asks. Raises `AccessError` for a virtual key that is unknown, expired or revoked, or for none where one
    is required. A credential that is no virtual key makes nobody known."""
    # A caller of a passthrough upstream may send both, in either order.
    secret = foreign = None
    for credential in credentials(headers):
        if credential.startswith(PREFIX):
            secret = secret or credential
        else:
            foreign = foreign or credential
    if secret is not None:
        key = _found(keyring, secret)
        if key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
            raise AccessError("this key is unknown, expired or revoked; make one with: keepgate keys create")
        return Caller(partition=partition_of(key, scope), key=key, credential=foreign)
    if required:
        raise AccessError(
            "a Keepgate key is required: send it as Authorization: Bearer kg-...; make one with: keepgate keys create"
        )
    return Caller(partition="everyone", credential=foreign)


def _found(keyring: Keyring, secret: str) -> VirtualKey | None:
    try:
        return keyring.find(digest(secret))
    except BackendError as error:
        # Closed: whoever cannot be told apart is not let in.
        log.error("a key could not be checked: %s", error)  # noqa: TRY400  # the cause is in the message
        raise GatewayError("keys cannot be checked now: the gateway's log has the cause") from error


def partition_of(key: VirtualKey, scope: Scope | None) -> str:
    if scope == "endpoint":
        return "everyone"
    if scope == "team" and key.team is not None:
        return f"team:{key.team}"
    return f"key:{key.key_id}"
