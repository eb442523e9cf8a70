"""A chat request in the OpenAI API's words: the canonical one, and a client's own where a provider knows other names.

docs/dialects.md has the canonical form, docs/providers.md what providers know.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from backends.upstream.base import Call
from models.errors import Untranslatable

Json = dict[str, Any]

# Of a message and of a call, what only other dialects, or servers that said it, can read.
_FOREIGN: Final = frozenset({"reasoning_details", "provider_content", "content_items", "layout"})
# Who can read `reasoning_details`: their `format`s that this gateway gives.
_MAKERS: Final = frozenset({"anthropic-claude-v1", "openai-responses-v1", "google-gemini-v1"})
_FOREIGN_TO_CALLS: Final = ("item_id", "namespace", "caller", "async", "toolset_name")
# Tokens that may go into reasoning, up to which an effort stands for them. The API has no word for a number of them.
_EFFORTS: Final = ((0, "none"), (2048, "low"), (16384, "medium"))


class Quirks(msgspec.Struct, frozen=True):
    """What a provider has of its own. `renamed` are fields it knows under another name only, `roles` those of messages;
    `accepted` are fields it takes beyond the OpenAI API (`top_k`; `reasoning_content` and `reasoning_details` in
    messages) and, as `custom_tools`, tools of free form. `call_id_length`: ids of tool calls have exactly so many
    letters and digits."""

    renamed: Mapping[str, str] = {}
    roles: Mapping[str, str] = {}
    accepted: frozenset[str] = frozenset()
    call_id_length: int | None = None


NO_QUIRKS: Final = Quirks()


def corrections(body: Mapping[str, Any], quirks: Quirks) -> Json:
    """What of a client's own body the provider would refuse or not hear, by field, as it calls it; None takes a field
    out."""
    changes: Json = {}
    for name, other in quirks.renamed.items():
        if name in body:
            changes[name] = None
            if body[name] is not None:
                changes[other] = body[name]
    messages = body.get("messages")
    if isinstance(messages, list):
        corrected = [_corrected(_without_foreign(message, quirks), quirks) for message in messages]
        if any(new is not old for new, old in zip(corrected, messages, strict=True)):
            changes["messages"] = corrected
    return changes


def translated(call: Call, quirks: Quirks) -> Json:
    """The canonical body without what is not of the OpenAI API. Raises `Untranslatable`."""
    refused = list(call.refused)
    body = dict(call.body)
    body.pop("stream", None)
    body.pop("stream_options", None)
    body["model"] = call.model
    if "top_k" in body and "top_k" not in quirks.accepted:
        refused.append("top_k")
    budget = body.pop("reasoning_budget", None)
    if budget is not None and "reasoning_effort" not in body and budget >= 0:
        body["reasoning_effort"] = next((effort for most, effort in _EFFORTS if budget <= most), "high")
    if "response_format" in body:
        body["response_format"] = _format(body["response_format"])
    custom = "custom_tools" in quirks.accepted
    if not custom:
        _without_custom_tools(body)
    body["messages"] = _messages(body.get("messages", ()), quirks, refused, custom=custom)
    for name, other in quirks.renamed.items():
        if name in body:
            body[other] = body.pop(name)
    if refused:
        raise Untranslatable(list(dict.fromkeys(refused)), dialect="openai")
    return body


def _messages(canonical: Any, quirks: Quirks, refused: list[str], *, custom: bool) -> list[Json]:
    messages: list[Json] = []
    told = {name.partition("]")[0] for name in refused}
    shown: list[Json] = []  # by tools, in turns that have no place for it
    for at, message in enumerate(canonical):
        path = f"messages[{at}]"
        # Read by the dialect that wrote it, above: what is left here has no words in this one.
        if message.get("provider_content") and f"messages[{at}" not in told:
            refused.append(f"{path} (content of another dialect)")
        tool = message["role"] == "tool"
        foreign = _FOREIGN | ({"is_error"} if tool else {"reasoning_content"} - quirks.accepted)
        kept = {quirks.renamed.get(name, name): value for name, value in message.items() if name not in foreign}
        if "tool_calls" in kept:
            kept["tool_calls"] = [_call(each, custom=custom) for each in kept["tool_calls"]]
        content = kept.get("content")
        if isinstance(content, list):
            for part in content:
                file = part.get("file") if part.get("type") == "file" else None
                if isinstance(file, dict) and "file_url" in file:
                    refused.append(f"{path}.content (a document by its address)")
            if tool:
                texts = [part for part in content if part.get("type") == "text"]
                shown += [part for part in content if part.get("type") != "text"]
                kept["content"] = texts or ""
        if shown and not tool:
            messages.append({"role": "user", "content": shown})
            shown = []
        messages.append(_corrected(kept, quirks))
    if shown:
        messages.append({"role": "user", "content": shown})
    return messages


def _call(call: Json, *, custom: bool) -> Json:
    kept = {name: value for name, value in call.items() if name not in _FOREIGN_TO_CALLS}
    if not custom and kept.get("type") == "custom" and isinstance(kept.get("custom"), dict):
        told = kept.pop("custom")
        arguments = msgspec.json.encode({"input": told.get("input", "")}).decode()
        return {**kept, "type": "function", "function": {"name": told.get("name"), "arguments": arguments}}
    return kept


def _without_custom_tools(body: Json) -> None:
    """A tool of free form as a function of one text: who offered it is told its calls as calls of the tool again."""
    tools = body.get("tools")
    if isinstance(tools, list):
        body["tools"] = [_as_function(tool) if tool.get("type") == "custom" else tool for tool in tools]
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "custom" and isinstance(choice.get("custom"), dict):
        body["tool_choice"] = {"type": "function", "function": choice["custom"]}


def _as_function(tool: Json) -> Json:
    custom = tool.get("custom")
    if not isinstance(custom, dict):
        return tool
    about = custom.get("description") or ""
    grammar = custom.get("format")
    if isinstance(grammar, dict) and isinstance(grammar.get("grammar"), dict):
        about += f"\n\nThe input follows this grammar:\n{grammar['grammar'].get('definition', '')}"
    parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return {
        "type": "function",
        "function": {"name": custom.get("name"), "description": about.strip(), "parameters": parameters},
    }


def _format(response_format: Any) -> Any:
    """Without `strict` where the API would refuse the schema for it: other dialects take properties as optional."""
    schema = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if not isinstance(schema, dict) or not schema.get("strict") or is_strict(schema.get("schema")):
        return response_format
    return {**response_format, "json_schema": {**schema, "strict": False}}


def is_strict(schema: Any) -> bool:
    """Whether every object in it requires all its properties and allows no others.

    https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
    """
    waiting = [schema]  # nested as deeply as a client likes
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, list):
            waiting += inner
        elif isinstance(inner, dict):
            properties = inner.get("properties") or {}
            if inner.get("type") == "object" or isinstance(inner.get("properties"), dict):
                required = inner.get("required")
                if inner.get("additionalProperties") is not False or not isinstance(required, list):
                    return False
                if not isinstance(properties, dict) or properties.keys() - {n for n in required if isinstance(n, str)}:
                    return False
            waiting += inner.values()
    return True


def _without_foreign(message: Any, quirks: Quirks) -> Any:
    """The message itself, or without what this gateway told a client of another dialect's answer: the client sends it
    back wherever the conversation goes on. What a server says of its reasoning in fields of these names is its own."""
    if not isinstance(message, dict) or message.get("role") != "assistant" or len(message) == 2:
        return message
    gone = {name for name in ("content_items", "layout", "provider_content") if name in message}
    details = message.get("reasoning_details")
    if "reasoning_details" not in quirks.accepted and isinstance(details, list) and any(map(_is_made_here, details)):
        gone.add("reasoning_details")
        gone |= {"reasoning_content"} - quirks.accepted
    kept = {name: value for name, value in message.items() if name not in gone} if gone else message
    calls = kept.get("tool_calls")
    if isinstance(calls, list) and any(isinstance(call, dict) and "item_id" in call for call in calls):
        told = [
            {name: call[name] for name in call if name not in _FOREIGN_TO_CALLS} if isinstance(call, dict) else call
            for call in calls
        ]
        kept = {**kept, "tool_calls": told}
    return kept


def _is_made_here(detail: Any) -> bool:
    maker = detail.get("format") if isinstance(detail, dict) else None
    return isinstance(maker, str) and maker in _MAKERS


def _corrected(message: Any, quirks: Quirks) -> Any:
    """The message itself where nothing in it needs to change, or where it is none: the provider says what it is."""
    if not isinstance(message, dict):
        return message
    changes: Json = {}
    role = message.get("role")
    if isinstance(role, str) and role in quirks.roles:
        changes["role"] = quirks.roles[role]
    length = quirks.call_id_length
    if length is not None:
        calls = message.get("tool_calls")
        if not _fits(message.get("tool_call_id"), length):
            changes["tool_call_id"] = _short(message["tool_call_id"], length)
        if isinstance(calls, list) and not all(_fits(_id_of(call), length) for call in calls):
            changes["tool_calls"] = [
                call if _fits(_id_of(call), length) else {**call, "id": _short(call["id"], length)} for call in calls
            ]
    return {**message, **changes} if changes else message


def _fits(call_id: Any, length: int) -> bool:
    """Also of what is no id."""
    return not isinstance(call_id, str) or (len(call_id) == length and call_id.isascii() and call_id.isalnum())


def _short(call_id: str, length: int) -> str:
    """The same for the call and its result, and nothing the model or the client ever compares."""
    return blake2b(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _id_of(call: Any) -> Any:
    return call.get("id") if isinstance(call, dict) else None
