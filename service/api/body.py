"""What every dialect's body has in common: a JSON object, and a model's name in it."""

import re
from typing import Any

import msgspec

from models.errors import RequestError

_LONGEST_NAME = 256
_POSITION = re.compile(r" \(byte \d+\)")


def json_object(raw: bytes) -> dict[str, Any]:
    """Raises `RequestError` that says where `raw` stops being JSON."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise RequestError("the body is nested too deeply") from error
        if not raw:
            raise RequestError("the body is empty; send a JSON object") from error
        # Of the decoder's message only the position: the rest is its own business.
        place = _POSITION.search(str(error))
        raise RequestError(f"the body is not valid JSON in UTF-8{place[0] if place else ''}") from error
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def is_model_name(model: str) -> bool:
    return 0 < len(model) <= _LONGEST_NAME and model.isprintable()


def model_name(value: object) -> str:
    """Raises `RequestError` for what cannot name a model."""
    if not isinstance(value, str) or not is_model_name(value):
        raise RequestError(f"model must be a name of 1 to {_LONGEST_NAME} printable characters", param="model")
    return value
