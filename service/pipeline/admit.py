"""May this caller ask this model, and what does its name stand for."""

from collections.abc import Iterable, Iterator

from models.errors import AccessError
from models.request import Request
from service.context import Context
from service.routing.aliases import Aliases, Route


def admit(request: Request, context: Context, aliases: Aliases) -> Route:
    """Raises `AccessError` before the name is resolved, so that a key learns nothing about models it may not use."""
    key = context.caller.key
    if key is not None and key.models is not None and request.model not in key.models:
        raise AccessError("this key may not use that model", code="not_allowed", param="model")
    return aliases.resolve(request.model)


def visible(names: Iterable[str], context: Context, aliases: Aliases) -> Iterator[tuple[str, str]]:
    """Those that the caller may ask, each with the upstream it leads to first."""
    key = context.caller.key
    for name in names:
        if key is None or key.models is None or name in key.models:
            yield name, aliases.resolve(name).targets[0].upstream
