"""Reasoning of one provider's model, carried through clients of another dialect in what they keep as a signature.

A client sends it back as it was given it, and the gateway reads it for the model it came from. No other model is sent
it: who did not write a signature refuses it.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

import msgspec

# base64 of `keepgate:`. What follows, in base64 too, is JSON: the `reasoning_details`.
MARK: Final = "a2VlcGdhdGU6"


def packed(details: Sequence[dict[str, Any]]) -> str:
    """Never empty, and base64 as a whole."""
    return MARK + base64.b64encode(msgspec.json.encode(details)).decode() if details else MARK


def unpacked(signature: str) -> list[dict[str, Any]] | None:
    """None for a signature that was not written here. Nothing where the client did not keep it whole: the model then
    goes on without."""
    if not signature.startswith(MARK):
        return None
    try:
        details = msgspec.json.decode(base64.b64decode(signature[len(MARK) :], validate=True) or b"[]")
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        return []
    return [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []
