"""Which requests the semantic tier may answer, and which answers may be kept at all.

The exact tier needs no rule here: the same request has the same answer.
"""

from typing import Any

import msgspec

from models.completion import Completion
from models.request import Request

_OF_A_CONTAINER = ("container", "container_id")


def not_semantic(request: Request, *, max_temperature: float) -> str | None:
    """Why this request may not be answered from a similar one, as a word for `Cache-Status`; None if it may.

    An absent temperature is eligible; an explicit one above `max_temperature`
    asks for variety.
    """
    if request.operation != "chat":
        return "operation"
    body: dict[str, Any] = request.body
    if body.get("n") not in (None, 1):
        return "several-choices"
    if body.get("logprobs"):
        return "logprobs"
    temperature = body.get("temperature")
    if temperature is not None and temperature > max_temperature:
        return "temperature"
    return None


def keepable(completion: Completion, keep: frozenset[str]) -> bool:
    """Whether every choice finished for a reason in `keep`. Embeddings have no choices and are always kept."""
    return all(reason in keep for reason in completion.finish_reasons)


def names_a_container(completion: Completion) -> bool:
    """Whether the answer holds the id of a container that its provider keeps: who has it can go on in there, files and
    all, which is for the caller who asked and for nobody after."""
    # Few answers have the word right after a quote, and what is looked for are names of fields.
    if b'"container' not in completion.body:
        return False
    left: list[Any] = [msgspec.json.decode(completion.body)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if any(value.get(name) for name in _OF_A_CONTAINER):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False
