"""Who a request's credentials make known, and what happens when that cannot be told."""

import pytest

from backends.keyring.base import Keyring
from backends.keyring.memory import MemoryKeyring
from models.errors import BackendError, GatewayError
from models.key import VirtualKey
from service.api.errors import status_of
from service.governance.keys import identify


class BrokenKeyring(MemoryKeyring):
    def find(self, digest: bytes) -> VirtualKey | None:  # noqa: ARG002  # the name is part of the protocol
        raise BackendError("the keyring cannot be read: MDB_CORRUPTED")


@pytest.mark.parametrize("required", [True, False])
def test_a_keyring_that_fails_lets_nobody_in(required: bool) -> None:
    keyring: Keyring = BrokenKeyring()
    headers = {b"authorization": b"Bearer kg-whoever"}

    with pytest.raises(GatewayError) as failed:
        identify(headers, keyring, required=required, scope=None, now=0.0)

    assert status_of(failed.value) == 500
    assert "MDB" not in failed.value.message
