"""Requests made of parts, and which of them are one: what leak tests ask with."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from service.caching.identity import NEUTRAL
from service.context import Scope

Json = dict[str, Any]


class Part(NamedTuple):
    """`same` maps words to others that say the same."""

    words: tuple[str, ...]
    same: Mapping[str, str] = MappingProxyType({})


PARTS = {
    "account": Part(("", "ann", "bob", "cem")),
    "endpoint": Part(("own", "other", "teams", "open", "masks", "ruled")),
    "model": Part(("m", "n", "alias"), {"alias": "m"}),
    "system": Part(("", "You sell shoes.", "You sell shoes. ", "You buy shoes.")),
    "role": Part(("system", "developer"), {"developer": "system"}),
    "history": Part(("", "Hello", "Hello there")),
    "tools": Part(("", "price", "stock", "price, not strict"), {"price, not strict": "price"}),
    "format": Part(("", "text", "json", "schema a", "schema b"), {"text": ""}),
    "temperature": Part(("", "0", "0.0", "0.2"), {"0.0": "0"}),
    "sampling": Part(("", "top_p", "seed 1", "seed 2", "stop", "max_tokens", "max_completion_tokens", "penalty 0"),
                     {"max_completion_tokens": "max_tokens", "penalty 0": ""}),
    "passage": Part(("", "Boots are kept for a week.", "Boots are kept for a month.")),
    "x-keepgate-context": Part(("", "doc-1", "doc-2", "doc-1, doc-2", "doc-1,doc-2"), {"doc-1,doc-2": "doc-1, doc-2"}),
    "x-keepgate-namespace": Part(("", "red", "blue", "red ", "x-keepgate-context=doc-1"), {"red ": "red"}),
    "openai-organization": Part(("", "org-1", "org-2")),
    "openai-beta": Part(("", "assistants=v2")),
    "x-tier": Part(("", "gold", "free"), {"free": ""}),  # no part by itself: a rule of one endpoint asks for it
    "mail": Part(("ann@example.com", "bob@example.com")),  # where it is masked; elsewhere it is words of the question
    "vendor": Part(("", "fast", "slow")),
    "neutral": Part(("", *sorted(NEUTRAL), "user-agent", "idempotency-key", "other order"),
                    dict.fromkeys((*NEUTRAL, "user-agent", "idempotency-key", "other order"), "")),
}  # fmt: skip

TEAMS = {"ann": "blue", "bob": "blue", "cem": "red"}
SCOPES: dict[str, Scope | None] = {"own": None, "other": None, "teams": "team", "open": "endpoint"}

Scene = dict[str, str]
# One thing asked, and nothing beside it.
PLAIN: Scene = {name: part.words[0] for name, part in PARTS.items()}


def meant(scene: Scene) -> tuple[str, ...]:
    """All that makes two requests one, said once more and independently: equal exactly where they may share."""
    said = {name: PARTS[name].same.get(word, word) for name, word in scene.items()}
    account, endpoint = said.pop("account"), said["endpoint"]
    if endpoint == "open" or not account:
        partition = "everyone"
    elif endpoint == "teams":
        partition = TEAMS[account]
    else:
        partition = account
    if endpoint != "ruled":
        del said["x-tier"]
    if endpoint != "masks":
        del said["mail"]
    if not said["system"]:
        del said["role"]
    return partition, *(f"{name}={said[name]}" for name in sorted(said))


def request(scene: Scene, wording: str, *, secrets: Mapping[str, str]) -> tuple[Json, dict[str, str]]:
    """Its body and headers. `{}` in the wording is a place for an address; `secrets` are the accounts' keys."""
    question = wording.format(scene["mail"] if scene["endpoint"] == "masks" else "the shop")
    if scene["passage"]:
        question = f"Context: {scene['passage']}\n\nQuestion: {question}"
    messages: list[Json] = [{"role": scene["role"], "content": scene["system"]}] if scene["system"] else []
    if scene["history"]:
        messages += [{"role": "user", "content": scene["history"]}, {"role": "assistant", "content": "Yes?"}]
    body: Json = {"model": scene["model"], "messages": [*messages, {"role": "user", "content": question}]}
    if scene["tools"]:
        name, _, lax = scene["tools"].partition(", ")
        function = {"name": name, "parameters": {"type": "object"}, **({"strict": False} if lax else {})}
        body["tools"] = [{"type": "function", "function": function}]
    kind, _, name = scene["format"].partition(" ")
    if kind:
        body["response_format"] = {
            "text": {"type": "text"},
            "json": {"type": "json_object"},
            "schema": {"type": "json_schema", "json_schema": {"name": name, "schema": {"type": "object"}}},
        }[kind]
    if scene["temperature"]:
        body["temperature"] = msgspec.json.decode(scene["temperature"])
    sampling: dict[str, Json] = {
        "": {}, "top_p": {"top_p": 0.5}, "seed 1": {"seed": 1}, "seed 2": {"seed": 2}, "stop": {"stop": "END"},
        "max_tokens": {"max_tokens": 9}, "max_completion_tokens": {"max_completion_tokens": 9},
        "penalty 0": {"frequency_penalty": 0},
    }  # fmt: skip
    body |= sampling[scene["sampling"]]
    if scene["vendor"]:
        body["x_vendor"] = {"speed": scene["vendor"]}
    headers = {name: scene[name] for name in ("openai-organization", "openai-beta", "x-tier") if scene[name]}
    headers |= {name: scene[name] for name in ("x-keepgate-context", "x-keepgate-namespace") if scene[name]}
    if scene["account"]:
        headers["authorization"] = f"Bearer {secrets[scene['account']]}"
    neutral = scene["neutral"]
    if neutral in ("user-agent", "idempotency-key"):
        headers[neutral] = "whoever"
    elif neutral == "other order":
        body = dict(reversed(body.items()))
    elif neutral:
        value: Json = {"stream": False, "stream_options": None, "metadata": {"for": "whoever"}}
        body[neutral] = value.get(neutral, "whoever")
    return body, headers
