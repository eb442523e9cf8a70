"""Which dialect and which operation a path stands for."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from models.request import Operation
from service.api import openai_chat
from service.api.dialect import Asked, Dialect
from service.api.exchange import HeaderList
from service.api.openai_chat import OPENAI

_OPENAI: dict[str, Operation] = {"chat/completions": "chat", "completions": "completion", "embeddings": "embedding"}
_INFERENCE: dict[str, tuple[Dialect, Asked]] = {
    f"/v1/{path}": (OPENAI, Asked(operation)) for path, operation in _OPENAI.items()
}
# Azure's SDKs: the deployment in the path, or the newer form without one.
_DEPLOYMENT = re.compile(r"/openai/deployments/(.+)/(chat/completions|completions|embeddings)")


def inference(path: str) -> tuple[Dialect, Asked] | None:
    """None where `path` stands for no operation. It comes without `/e/{endpoint}`, prefix and query."""
    found = _INFERENCE.get(path)
    if found is None and (azure := _DEPLOYMENT.fullmatch(path)) is not None:
        return OPENAI, Asked(_OPENAI[azure[2]], model=azure[1])
    return found


class Listing(NamedTuple):
    """The models as one dialect shows them, each a name and the upstream it leads to."""

    dialect: Dialect
    cards: Callable[[Iterable[tuple[str, str]]], bytes]
    card: Callable[[str, str], bytes]


_OPENAI_LISTING = Listing(OPENAI, openai_chat.model_list, openai_chat.model_card)
_LISTINGS = (("/v1/models", _OPENAI_LISTING), ("/openai/v1/models", _OPENAI_LISTING))


def listing(path: str, headers: HeaderList) -> tuple[Listing, str] | None:
    """Who lists models at `path`, and the name of the one that is asked for, empty for all of them."""
    for prefix, shown in _LISTINGS:
        if path == prefix or path.startswith(f"{prefix}/"):
            return shown, path[len(prefix) + 1 :]
    return None
