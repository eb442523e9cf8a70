"""Which dialect and which operation a path stands for. Paths come without `/e/{endpoint}` before them."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from models.request import Operation
from service.api import anthropic_messages, gemini_generate, openai_chat
from service.api.anthropic_messages import ANTHROPIC
from service.api.dialect import Asked, Dialect
from service.api.exchange import HeaderList
from service.api.gemini_generate import GEMINI_SSE
from service.api.openai_chat import OPENAI
from service.api.openai_responses import RESPONSES

_OPENAI: dict[str, Operation] = {"chat/completions": "chat", "completions": "completion", "embeddings": "embedding"}
# Azure's SDKs name the deployment in the path; the newer ones have OpenAI's own paths under a prefix.
_DEPLOYMENT = re.compile(r"/openai/deployments/(.+?)/(chat/completions|completions|embeddings)")
_PREFIXES = ("/anthropic/v1/", "/openai/v1/")
# What is passed on: the contract's list, and what is kept under an answer's id at the provider.
_PASSED_ON = re.compile(
    r"(?:/audio/.+|/images/.+|/files(?:/.+)?|/batches(?:/.+)?|/responses/.+|/messages/batches(?:/.+)?|/moderations|/rerank)"
)


class Listing(NamedTuple):
    """The models as one dialect shows them, each a name and the upstream it leads to."""

    dialect: Dialect
    cards: Callable[[Iterable[tuple[str, str]]], bytes]
    card: Callable[[str, str], bytes]


_LISTINGS = {
    "openai": Listing(OPENAI, openai_chat.model_list, openai_chat.model_card),
    "anthropic": Listing(ANTHROPIC, anthropic_messages.model_list, anthropic_messages.model_card),
    "gemini": Listing(GEMINI_SSE, gemini_generate.model_list, gemini_generate.model_card),
}
_GEMINI_LISTING = re.compile(r"/genai/v1(?:beta)?/models(?:/(.+))?")


class Inference(NamedTuple):
    dialect: Dialect
    asked: Asked


class Counting(NamedTuple):
    """How many tokens a request has."""

    path: str


class PassedOn(NamedTuple):
    """`path` comes after `/v1`."""

    path: str


class Models(NamedTuple):
    """`name` is empty where all of them are asked for."""

    listing: Listing
    name: str


Place = Inference | Counting | PassedOn | Models

_INFERENCE = {
    **{f"/v1/{path}": Inference(OPENAI, Asked(operation)) for path, operation in _OPENAI.items()},
    "/v1/responses": Inference(RESPONSES, Asked("chat")),
    "/v1/messages": Inference(ANTHROPIC, Asked("chat")),
}


def place(path: str, query: bytes, headers: HeaderList) -> Place | None:
    """What `path` stands for among what clients of any dialect ask; None for anything else."""
    found = _INFERENCE.get(path)
    if found is not None:
        return found
    if path.startswith("/genai/"):
        return _of_gemini(path, query)
    if (azure := _DEPLOYMENT.fullmatch(path)) is not None:
        return Inference(OPENAI, Asked(_OPENAI[azure[2]], model=azure[1]))
    under = path
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            under = "/v1/" + path[len(prefix) :]
    if (found := _INFERENCE.get(under)) is not None:
        return found
    if under == "/v1/messages/count_tokens":
        return Counting(path)
    if under == "/v1/models" or under.startswith("/v1/models/"):
        # Anthropic's SDKs are told by the header they always send.
        anthropic = path.startswith("/anthropic/") or any(name == b"anthropic-version" for name, _ in headers)
        return Models(_LISTINGS["anthropic" if anthropic else "openai"], under[len("/v1/models/") :])
    rest = under[len("/v1") :] if under.startswith("/v1/") else ""
    return PassedOn(rest) if _PASSED_ON.fullmatch(rest) else None


def _of_gemini(path: str, query: bytes) -> Place | None:
    asked = gemini_generate.asked(path, query.decode("latin-1"))
    if asked is not None:
        return Inference(gemini_generate.dialect_for(asked), asked)
    if gemini_generate.counted_model(path) is not None:
        return Counting(path)
    listed = _GEMINI_LISTING.fullmatch(path)
    return None if listed is None else Models(_LISTINGS["gemini"], listed[1] or "")


def speaks(path: str) -> Dialect:
    """The dialect in which to answer who asks for something that is not served."""
    if path.startswith(("/anthropic/", "/v1/messages")):
        return ANTHROPIC
    return GEMINI_SSE if path.startswith("/genai/") else OPENAI
