"""What every keyring does."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from backends.keyring.base import Keyring
from backends.registry import create
from models.key import VirtualKey

SUITE = {"keyring": {"memory", "lmdb"}}

FIRST, SECOND = sha256(b"kg-first").digest(), sha256(b"kg-second").digest()
FULL = VirtualKey(
    key_id="k1",
    name="Küche 🍳",
    created_at=100.5,
    team="blue",
    endpoints=("default", "support"),
    models=(),
    expires_at=200.25,
)


@pytest.fixture(params=sorted(SUITE["keyring"]))
def keyring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keyring]:
    options: dict[str, dict[str, object]] = {"lmdb": {"path": tmp_path / "keys"}}
    keyring: Keyring = create("keyring", request.param, **options.get(request.param, {}))
    yield keyring
    keyring.close()


def test_a_key_is_found_by_the_digest_of_its_secret(keyring: Keyring) -> None:
    keyring.add(FIRST, FULL)

    assert keyring.find(FIRST) == FULL


def test_an_unknown_digest_finds_nothing(keyring: Keyring) -> None:
    keyring.add(FIRST, FULL)

    assert keyring.find(SECOND) is None


def test_all_are_listed_in_the_order_of_creation(keyring: Keyring) -> None:
    keyring.add(FIRST, VirtualKey(key_id="later", name="b", created_at=2.0))
    keyring.add(SECOND, VirtualKey(key_id="earlier", name="a", created_at=1.0))
    keyring.revoke("earlier", 3.0)

    assert [key.key_id for key in keyring.all()] == ["earlier", "later"]


def test_a_revoked_key_is_found_as_revoked(keyring: Keyring) -> None:
    keyring.add(FIRST, FULL)

    revoked = keyring.revoke("k1", 150.0)

    assert revoked is not None
    assert revoked.revoked_at == 150.0
    assert keyring.find(FIRST) == revoked


def test_a_key_revoked_twice_keeps_the_earlier_time(keyring: Keyring) -> None:
    keyring.add(FIRST, FULL)
    keyring.revoke("k1", 150.0)

    keyring.revoke("k1", 170.0)
    later = keyring.find(FIRST)
    keyring.revoke("k1", 140.0)
    earlier = keyring.find(FIRST)

    assert later is not None
    assert earlier is not None
    assert (later.revoked_at, earlier.revoked_at) == (150.0, 140.0)


def test_revoking_an_unknown_id_revokes_nothing(keyring: Keyring) -> None:
    keyring.add(FIRST, FULL)

    assert keyring.revoke("k2", 150.0) is None
    assert keyring.find(FIRST) == FULL


@pytest.mark.parametrize(("digest", "key_id"), [(FIRST, "k2"), (SECOND, "k1")])
def test_neither_a_secret_nor_an_id_is_taken_twice(keyring: Keyring, digest: bytes, key_id: str) -> None:
    keyring.add(FIRST, FULL)

    with pytest.raises(ValueError, match="already"):
        keyring.add(digest, VirtualKey(key_id=key_id, name="copy", created_at=1.0))

    assert list(keyring.all()) == [FULL]
