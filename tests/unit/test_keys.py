"""Who asks, from the headers alone."""

import pytest

from backends.keyring.memory import MemoryKeyring
from models.errors import AccessError
from service.context import Scope
from service.governance import keys

NOW = 1_000.0


def keyring_with(**options: object) -> tuple[MemoryKeyring, str, str]:
    keyring = MemoryKeyring()
    secret, key = keys.make("test", now=NOW, **options)  # type: ignore[arg-type]  # the tests name real options
    keyring.add(keys.digest(secret), key)
    return keyring, secret, key.key_id


def identified(headers: dict[bytes, bytes], keyring: MemoryKeyring, *, scope: Scope | None = None) -> str:
    return keys.identify(headers, keyring, required=False, scope=scope, now=NOW).partition


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"])
def test_a_key_is_found_in_every_header_that_sdks_use(header: bytes) -> None:
    keyring, secret, key_id = keyring_with()
    value = f"Bearer {secret}" if header == b"authorization" else secret

    assert identified({header: value.encode()}, keyring) == f"key:{key_id}"


@pytest.mark.parametrize(
    ("scope", "team", "partition"),
    [
        (None, "blue", "key:ID"),
        ("key", "blue", "key:ID"),
        ("team", "blue", "team:blue"),
        ("team", None, "key:ID"),  # nobody to share with
        ("endpoint", "blue", "everyone"),
    ],
)
def test_the_scope_says_who_shares_entries(scope: Scope | None, team: str | None, partition: str) -> None:
    keyring, secret, key_id = keyring_with(team=team)

    found = identified({b"x-api-key": secret.encode()}, keyring, scope=scope)

    assert found == partition.replace("ID", key_id)


@pytest.mark.parametrize("state", ["unknown", "expired", "revoked"])
def test_a_virtual_key_that_is_not_valid_is_refused_even_where_none_is_required(state: str) -> None:
    keyring, secret, key_id = keyring_with(expires_at=NOW if state == "expired" else None)
    if state == "revoked":
        keyring.revoke(key_id, NOW)
    if state == "unknown":
        secret += "x"

    with pytest.raises(AccessError) as refused:
        identified({b"x-api-key": secret.encode()}, keyring)

    assert refused.value.code == "invalid_key"
    assert secret not in str(refused.value)


def test_another_credential_makes_nobody_known_and_is_kept_for_passthrough() -> None:
    caller = keys.identify({b"authorization": b"Bearer sk-other"}, MemoryKeyring(), required=False, scope=None, now=NOW)

    assert caller.key is None
    assert caller.credential is not None
    assert "sk-other" in caller.credential


def test_without_a_key_a_required_one_is_asked_for() -> None:
    with pytest.raises(AccessError, match="keepgate keys create"):
        keys.identify({b"authorization": b"Bearer sk-other"}, MemoryKeyring(), required=True, scope=None, now=NOW)


def test_a_secret_has_256_random_bits_behind_its_prefix() -> None:
    first, _ = keys.make("a", now=NOW)
    second, _ = keys.make("a", now=NOW)

    assert first.startswith("kg-")
    assert len(first) >= 3 + 43  # 32 bytes in base64
    assert first != second
