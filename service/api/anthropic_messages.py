"""Anthropic's dialect: messages, the count of their tokens, and the list of models.

What is translated, dropped and refused is docs/dialects/anthropic.md.
https://platform.claude.com/docs/en/api/messages
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from service.api.anthropic_answer import Stream, whole
from service.api.anthropic_errors import error_body
from service.api.anthropic_request import decode
from service.api.dialect import Dialect

ANTHROPIC: Final = Dialect("anthropic", decode, whole, Stream, error_body, usage_first=True)

# The API's own word for a date that is not known.
_UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"


def model_list(cards: Iterable[tuple[str, str]]) -> bytes:
    """One page of all names; each comes with the upstream that owns it, which this shape has no field for."""
    models = [_card(name) for name, _ in cards]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {"first_id": None, "last_id": None}
    return msgspec.json.encode({"data": models, "has_more": False, **ends})


def model_card(name: str, owner: str) -> bytes:
    del owner
    return msgspec.json.encode(_card(name))


def counted_tokens(count: int) -> bytes:
    return msgspec.json.encode({"input_tokens": count})


def _card(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _UNKNOWN_DATE, "lifecycle": "active"}
