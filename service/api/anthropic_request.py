"""A request of Anthropic's Messages API in the canonical form.

https://platform.claude.com/docs/en/api/messages/create, and the `beta` types
of the SDK for what needs a header.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from models.errors import RequestError
from models.request import Request
from service.api.body import json_object, model_name
from service.api.carried import unpacked
from service.api.dialect import Asked

FORMAT = "anthropic-claude-v1"

Json = dict[str, Any]

# Shapes how an answer travels, what it costs or who is noted as asking: no part of the question.
_NEUTRAL = frozenset({"model", "messages", "stream", "max_tokens", "metadata", "cache_control", "diagnostics"})
# Read below, each in its own way.
_READ = frozenset(
    {
        *("system", "tools", "tool_choice", "thinking", "output_config", "output_format"),
        *("stop_sequences", "temperature", "top_p", "top_k"),
    }
)
# Without these the answer may come later, dearer or from a fuller context window, but to the same question.
_HARMLESS = frozenset(
    {
        *("service_tier", "speed", "context_management", "compaction", "fallbacks", "fallback_credit_token"),
        *("billing_policy", "user_profile_id", "workspace_id", "betas", "anthropic_beta", "anthropic_version"),
    }
)
# Without these it is another question, or one that must not be answered elsewhere.
_REFUSED = frozenset({"container", "mcp_servers", "thread", "inference_geo"})
_USUAL: Json = {"service_tier": "auto", "speed": "standard"}

_BLOCK = frozenset({"type", "cache_control"})
_TEXT = _BLOCK | {"text", "citations"}
_IMAGE = _BLOCK | {"source", "transformations"}
_DOCUMENT = _BLOCK | {"source", "citations", "context", "title"}
_SOURCE = frozenset({"type", "media_type", "data", "url", "content"})
_SEARCH_RESULT = _BLOCK | {"source", "title", "content", "citations"}
_TOOL_RESULT = _BLOCK | {"tool_use_id", "content", "is_error", "toolset_name"}
_TOOL_USE = _BLOCK | {"id", "name", "input", "caller", "toolset_name"}
_TOOL = _BLOCK | {"name", "description", "input_schema", "strict", "eager_input_streaming"}
_TOOL_HARMLESS = frozenset({"defer_loading", "input_examples", "allowed_callers"})

# OpenAI refuses a longer `user`. Claude Code sends some 170 characters of JSON.
_LONGEST_USER = 64

_REASONING, _SAID, _CALLS, _OTHER = range(4)
_ORDER = ("thinking", "text", "tool_use", "other")


def decode(raw: bytes, asked: Asked) -> Request:
    """Raises `RequestError` that says which field cannot be used."""
    return _decoded(raw, asked, counting=False)


def decode_count(raw: bytes) -> Request:
    """A request whose tokens are to be counted: no limit on those to come."""
    return _decoded(raw, Asked("chat"), counting=True)


class _Beyond:
    """What the canonical body has no word for."""

    def __init__(self) -> None:
        self.fields: Json = {}
        self.refused: list[str] = []
        self.dropped: list[str] = []

    def keep(self, path: str, value: Any) -> None:
        """A name of the client's own is not to pass for a path: `field` makes it one."""
        self.fields[path] = value

    def refuse(self, path: str, value: Any, kind: str = "") -> None:
        self.fields[path] = value
        self.refused.append(f"{path} ({kind})" if kind else path)

    def unknown(self, path: str, fields: Mapping[str, Any], known: frozenset[str]) -> None:
        if not fields.keys() <= known:
            for name in sorted(fields.keys() - known):
                self.fields[f"{path}.{_field(name)}"] = fields[name]
                self.dropped.append(f"{path}.{name}")


def _field(name: str) -> str:
    return name.replace("\\", "\\\\").replace(".", "\\.")


def _decoded(raw: bytes, asked: Asked, *, counting: bool) -> Request:
    native = json_object(raw)
    model = model_name(native.get("model") if asked.model is None else asked.model)
    stream = _flag(native.get("stream"), "stream") if asked.stream is None else asked.stream
    beyond = _Beyond()
    body: Json = {"model": model}
    if stream:
        body["stream"] = True
    messages = body["messages"] = _system(native.get("system"), beyond)
    carried = _add_messages(messages, native, beyond)
    limit = native.get("max_tokens")
    if limit is not None or not counting:
        body["max_completion_tokens"] = _whole_number(limit, "max_tokens", least=0)
        if limit == 0:
            beyond.refuse("max_tokens", 0, "nothing but filling the provider's cache")
    _add_sampling(body, native)
    _add_tools(body, native, beyond)
    _add_reasoning(body, native.get("thinking"), beyond)
    _add_output(body, native, beyond)
    metadata = _fields(native.get("metadata"), "metadata")
    if metadata.get("user_id") is not None:
        body["user"] = _user(_text(metadata["user_id"], "metadata.user_id"))
    for name, value in native.items():
        if name in _NEUTRAL or name in _READ or value is None or value in ([], {}) or _USUAL.get(name) == value:
            continue
        if name in _REFUSED:
            beyond.refuse(name, value)
        else:
            beyond.keep(_field(name), value)
            if name not in _HARMLESS:
                beyond.dropped.append(name)
    return Request(
        "chat",
        model,
        body,
        msgspec.json.encode(native) if carried else raw,
        stream,
        include_usage=True,
        dialect="anthropic",
        native=native,
        beyond=beyond.fields,
        refused=tuple(beyond.refused),
        dropped=tuple(beyond.dropped),
    )


# --- fields of the body


def _user(user_id: str) -> str:
    return user_id if len(user_id) <= _LONGEST_USER else hashlib.sha256(user_id.encode()).hexdigest()


def _add_sampling(body: Json, native: Json) -> None:
    for name in ("temperature", "top_p"):
        value = native.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{name} must be a number", param=name)
            body[name] = value
    if native.get("top_k") is not None:
        body["top_k"] = _whole_number(native["top_k"], "top_k", least=0)
    stops = _list(native.get("stop_sequences"), "stop_sequences")
    for number, stop in enumerate(stops):
        _text(stop, f"stop_sequences[{number}]")
    if stops:
        body["stop"] = stops


def _add_tools(body: Json, native: Json, beyond: _Beyond) -> None:
    tools = []
    for number, tool in enumerate(_list(native.get("tools"), "tools")):
        path = f"tools[{number}]"
        kind = _object(tool, path).get("type")
        if kind is None or kind == "custom":
            tools.append(_function(tool, path, beyond))
        else:
            beyond.refuse(path, _uncached(tool), _text(kind, f"{path}.type"))
    if tools:
        body["tools"] = tools
    choice = native.get("tool_choice")
    if choice is None:
        return
    kind = _object(choice, "tool_choice").get("type")
    if kind == "any":
        body["tool_choice"] = "required"
    elif kind == "none":
        body["tool_choice"] = "none"
    elif kind == "tool":
        name = _text(choice.get("name"), "tool_choice.name")
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind != "auto":
        raise RequestError("tool_choice.type must be auto, any, tool or none", param="tool_choice.type")
    beyond.unknown("tool_choice", choice, frozenset({"type", "name", "disable_parallel_tool_use"}))
    if _flag(choice.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False


def _function(tool: Json, path: str, beyond: _Beyond) -> Json:
    function: Json = {"name": _text(tool.get("name"), f"{path}.name")}
    if tool.get("description") is not None:
        function["description"] = _text(tool["description"], f"{path}.description")
    function["parameters"] = _object(tool.get("input_schema"), f"{path}.input_schema")
    if _flag(tool.get("strict"), f"{path}.strict"):
        function["strict"] = True
    for name in _TOOL_HARMLESS & tool.keys():
        if tool[name]:
            beyond.keep(f"{path}.{name}", tool[name])
    beyond.unknown(path, tool, _TOOL | _TOOL_HARMLESS)
    return {"type": "function", "function": function}


def _add_reasoning(body: Json, thinking: object, beyond: _Beyond) -> None:
    if thinking is None:
        return
    wanted = _object(thinking, "thinking")
    kind = wanted.get("type")
    if kind == "enabled":
        body["reasoning_budget"] = _whole_number(wanted.get("budget_tokens"), "thinking.budget_tokens", least=1)
    elif kind == "disabled" or kind == "between_tools":
        body["reasoning_budget"] = 0
        if kind == "between_tools":  # the least that some models have, where others have none
            beyond.keep("thinking.type", kind)
    elif kind == "adaptive":
        body["reasoning_budget"] = -1
    else:
        raise RequestError("thinking.type must be enabled, adaptive, between_tools or disabled", param="thinking.type")
    if wanted.get("display") is not None:
        beyond.keep("thinking.display", wanted["display"])
    beyond.unknown("thinking", wanted, frozenset({"type", "budget_tokens", "display"}))


def _add_output(body: Json, native: Json, beyond: _Beyond) -> None:
    output = _fields(native.get("output_config"), "output_config")
    if output.get("effort") is not None:
        body["reasoning_effort"] = _text(output["effort"], "output_config.effort")
    if output.get("task_budget") is not None:
        beyond.keep("output_config.task_budget", output["task_budget"])
    beyond.unknown("output_config", output, frozenset({"effort", "format", "task_budget"}))
    path, wanted = "output_config.format", output.get("format")
    if native.get("output_format") is not None:
        if wanted is not None:
            raise RequestError("output_format is the older name of output_config.format", param="output_format")
        path, wanted = "output_format", native["output_format"]
    if wanted is None:
        return
    if _object(wanted, path).get("type") != "json_schema":
        raise RequestError(f"{path}.type must be json_schema", param=f"{path}.type")
    schema = _object(wanted.get("schema"), f"{path}.schema")
    # Strict, for this API never answers with anything else.
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    beyond.unknown(path, wanted, frozenset({"type", "schema"}))


def _system(system: object, beyond: _Beyond) -> list[Json]:
    if system is None:
        return []
    content = _text_content(system, "system", beyond)
    return [{"role": "system", "content": content}] if content else []


# --- messages


def _add_messages(messages: list[Json], native: Json, beyond: _Beyond) -> bool:
    """Whether `native` was relieved of reasoning that only this gateway could have put there."""
    asked = native.get("messages")
    thread = native.get("thread")
    # A thread whose turn was paused goes on with nothing new.
    least = 0 if isinstance(thread, dict) and thread.get("type") == "continue" else 1
    if not isinstance(asked, list) or len(asked) < least:
        raise RequestError("messages must be a list of at least one message", param="messages")
    relieved: dict[int, list[Any]] = {}
    for number, message in enumerate(asked):
        path = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            _add_user(messages, message, path, beyond)
        elif role == "assistant":
            kept = _add_assistant(messages, message, path, beyond)
            if kept is not None:
                relieved[number] = kept
        elif role == "system":
            _add_later_system(messages, message, path, beyond)
        else:
            raise RequestError(f"{path} must be an object with the role user, assistant or system", param=path)
    if asked and asked[-1]["role"] == "assistant":
        # Here the answer goes on where the message ends; anywhere else it starts anew.
        path = f"messages[{len(asked) - 1}]"
        beyond.refuse(path, "prefill", "the beginning of the answer")
    if relieved:
        native["messages"] = [
            {**message, "content": relieved[number]} if number in relieved else message
            for number, message in enumerate(asked)
            if relieved.get(number) != []
        ]
    return bool(relieved)


def _add_user(messages: list[Json], message: Json, path: str, beyond: _Beyond) -> None:
    beyond.unknown(path, message, frozenset({"role", "content"}))
    content = message.get("content")
    if isinstance(content, str):
        messages.append({"role": "user", "content": content})
        return
    parts: list[Json] = []
    others: list[Json] = []
    before = len(messages)
    for number, block in enumerate(_blocks(content, f"{path}.content")):
        place = f"{path}.content[{number}]"
        kind = _kind(block, place)
        if kind == "tool_result":
            messages.append(_tool_result(block, place, beyond))
        elif kind in ("tool_use", "thinking", "redacted_thinking"):
            raise RequestError(f"{place} ({kind}) belongs in a turn of the assistant", param=place)
        else:
            _add_parts(parts, others, block, kind, place, beyond)
    if parts or others:
        messages.append({"role": "user", "content": _content(parts), **_provider_content(others)})
    elif len(messages) == before:
        raise RequestError(f"{path}.content must have at least one block", param=f"{path}.content")


def _tool_result(block: Json, path: str, beyond: _Beyond) -> Json:
    call = _text(block.get("tool_use_id"), f"{path}.tool_use_id")
    content = block.get("content")
    parts: list[Json] = []
    others: list[Json] = []
    if content is not None and not isinstance(content, str):
        for number, inner in enumerate(_blocks(content, f"{path}.content")):
            place = f"{path}.content[{number}]"
            _add_parts(parts, others, inner, _kind(inner, place), place, beyond)
        content = _content(parts)
    message: Json = {"role": "tool", "tool_call_id": call, "content": content or "", **_provider_content(others)}
    if _flag(block.get("is_error"), f"{path}.is_error"):
        message["is_error"] = True
    if block.get("toolset_name") is not None:
        beyond.keep(f"{path}.toolset_name", block["toolset_name"])
    beyond.unknown(path, block, _TOOL_RESULT)
    return message


def _add_assistant(messages: list[Json], message: Json, path: str, beyond: _Beyond) -> list[Any] | None:
    """The blocks that are left for a provider of this dialect, where some are not its own."""
    beyond.unknown(path, message, frozenset({"role", "content"}))
    content = message.get("content")
    if isinstance(content, str):
        messages.append({"role": "assistant", "content": content})
        return None
    parts: list[Json] = []
    calls: list[Json] = []
    others: list[Json] = []
    details: list[Json] = []
    readable: list[str] = []
    order: list[int] = []
    foreign: set[int] = set()
    for number, block in enumerate(_blocks(content, f"{path}.content")):
        place = f"{path}.content[{number}]"
        kind = _kind(block, place)
        if kind == "text":
            order.append(_SAID)
            parts.append(_text_part(block, place, beyond))
        elif kind == "tool_use":
            order.append(_CALLS)
            calls.append(_tool_call(block, place, beyond))
        elif kind == "thinking" or kind == "redacted_thinking":
            order.append(_REASONING)
            if _add_thinking(details, readable, block, place, beyond):
                foreign.add(number)
        elif kind in ("image", "document", "search_result", "tool_result"):
            raise RequestError(f"{place} ({kind}) belongs in a turn of the user", param=place)
        else:
            order.append(_OTHER)
            _add_other(others, block, kind, place, beyond)
    if order != sorted(order):
        # The canonical message has its fields in one order; two turns in another are not the same.
        beyond.keep(f"{path}.order", [_ORDER[rank] for rank in order])
    turn: Json = {"role": "assistant", "content": _content(parts) if parts else None if calls else ""}
    if any(readable):
        turn["reasoning_content"] = "".join(readable)
    if details:
        turn["reasoning_details"] = details
    if calls:
        turn["tool_calls"] = calls
    messages.append({**turn, **_provider_content(others)})
    return [block for number, block in enumerate(content or ()) if number not in foreign] if foreign else None


def _add_thinking(details: list[Json], readable: list[str], block: Json, path: str, beyond: _Beyond) -> bool:
    """Whether the block is another provider's reasoning."""
    if block["type"] == "redacted_thinking":
        sealed = _text(block.get("data"), f"{path}.data")
        details.append({"type": "reasoning.encrypted", "index": len(details), "format": FORMAT, "data": sealed})
        beyond.unknown(path, block, _BLOCK | {"data"})
        return False
    text = _text(block.get("thinking"), f"{path}.thinking")
    signature = _text(block.get("signature", ""), f"{path}.signature")
    readable.append(text)
    beyond.unknown(path, block, _BLOCK | {"thinking", "signature"})
    carried = unpacked(signature)
    if carried is not None:
        details.extend(carried)
        return True
    if signature:
        item = {"type": "reasoning.text", "index": len(details), "format": FORMAT, "text": text}
        details.append({**item, "signature": signature})
    return False


def _tool_call(block: Json, path: str, beyond: _Beyond) -> Json:
    call = _text(block.get("id"), f"{path}.id")
    name = _text(block.get("name"), f"{path}.name")
    arguments = msgspec.json.encode(_object(block.get("input"), f"{path}.input")).decode()
    if block.get("caller") not in (None, {"type": "direct"}):
        beyond.keep(f"{path}.caller", block["caller"])
    if block.get("toolset_name") is not None:
        beyond.keep(f"{path}.toolset_name", block["toolset_name"])
    beyond.unknown(path, block, _TOOL_USE)
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def _add_later_system(messages: list[Json], message: Json, path: str, beyond: _Beyond) -> None:
    beyond.unknown(path, message, frozenset({"role", "content", "clear_at", "output_config"}))
    for name in ("clear_at", "output_config"):
        if message.get(name) is not None:
            beyond.refuse(f"{path}.{name}", message[name])
    if message.get("content") is not None:
        content = _text_content(message["content"], f"{path}.content", beyond)
        if content:
            messages.append({"role": "system", "content": content})


# --- blocks


def _text_content(content: object, path: str, beyond: _Beyond) -> str | list[Json]:
    """Of a system prompt, which has text and little else."""
    if isinstance(content, str):
        return content
    parts = []
    for number, block in enumerate(_blocks(content, path)):
        place = f"{path}[{number}]"
        kind = _kind(block, place)
        if kind == "text":
            parts.append(_text_part(block, place, beyond))
        else:
            beyond.refuse(place, _uncached(block), kind)
    return _content(parts) if parts else ""


def _add_parts(parts: list[Json], others: list[Json], block: Json, kind: str, path: str, beyond: _Beyond) -> None:
    if kind == "text":
        parts.append(_text_part(block, path, beyond))
    elif kind == "image":
        _add_image(parts, others, block, path, beyond)
    elif kind == "document":
        _add_document(parts, others, block, path, beyond)
    elif kind == "search_result":
        _refuse_citations(block, path, beyond)
        beyond.unknown(path, block, _SEARCH_RESULT)
        title = _text(block.get("title"), f"{path}.title")
        source = _text(block.get("source"), f"{path}.source")
        found: list[str] = []
        for number, inner in enumerate(_blocks(block.get("content"), f"{path}.content")):
            place = f"{path}.content[{number}]"
            _kind(inner, place)
            found.append(str(_text_part(inner, place, beyond)["text"]))
        # Joined, nobody can tell one from the other.
        beyond.keep(path, ["search_result", title, source, *found])
        parts.append({"type": "text", "text": "\n\n".join([f"{title}\n{source}", *found])})
    else:
        _add_other(others, block, kind, path, beyond)


def _add_image(parts: list[Json], others: list[Json], block: Json, path: str, beyond: _Beyond) -> None:
    source = _object(block.get("source"), f"{path}.source")
    if source.get("type") == "base64":
        url = _data_url(source, f"{path}.source")
    elif source.get("type") == "url":
        url = _text(source.get("url"), f"{path}.source.url")
    else:
        _add_other(others, block, f"image from {_kind(source, f'{path}.source')}", path, beyond)
        return
    beyond.unknown(f"{path}.source", source, _SOURCE)
    if block.get("transformations"):
        beyond.keep(f"{path}.transformations", block["transformations"])
    beyond.unknown(path, block, _IMAGE)
    parts.append({"type": "image_url", "image_url": {"url": url}})


def _add_document(parts: list[Json], others: list[Json], block: Json, path: str, beyond: _Beyond) -> None:
    """What the model is told of a document beside its pages is text before it."""
    place = f"{path}.source"
    source = _object(block.get("source"), place)
    kind = _kind(source, place)
    title = "" if block.get("title") is None else _text(block["title"], f"{path}.title")
    context = "" if block.get("context") is None else _text(block["context"], f"{path}.context")
    if kind == "base64" or kind == "url":
        url = kind == "url"
        file = (
            {"file_url": _text(source.get("url"), f"{place}.url")} if url else {"file_data": _data_url(source, place)}
        )
        if context:
            parts.append({"type": "text", "text": context})
        parts.append({"type": "file", "file": {**file, "filename": title} if title else file})
    elif kind == "text" or kind == "content":
        content = source.get("data" if kind == "text" else "content")
        heading = "\n".join(filter(None, (title, context)))
        if isinstance(content, str):
            parts.append({"type": "text", "text": f"{heading}\n\n{content}" if heading else content})
        elif kind == "text":
            raise RequestError(f"{place}.data must be a string", param=f"{place}.data")
        else:
            if heading:
                parts.append({"type": "text", "text": heading})
            for number, inner in enumerate(_blocks(content, f"{place}.content")):
                inside = f"{place}.content[{number}]"
                _add_parts(parts, others, inner, _kind(inner, inside), inside, beyond)
    else:
        _add_other(others, block, f"document from {kind}", path, beyond)
        return
    if kind in ("text", "content") and (title or context):
        beyond.keep(f"{path}.heading", [title, context])
    beyond.unknown(f"{path}.source", source, _SOURCE)
    _refuse_citations(block, path, beyond)
    beyond.unknown(path, block, _DOCUMENT)


def _add_other(others: list[Json], block: Json, kind: str, path: str, beyond: _Beyond) -> None:
    """Only this dialect has it. Its place among the other blocks is kept, for that is part of the question."""
    others.append({"dialect": "anthropic", "block": _uncached(block)})
    beyond.refuse(path, kind, kind)


def _refuse_citations(block: Json, path: str, beyond: _Beyond) -> None:
    citations = block.get("citations")
    if citations is None:
        return
    if _object(citations, f"{path}.citations").get("enabled"):
        beyond.refuse(f"{path}.citations", citations)
    else:
        beyond.unknown(f"{path}.citations", citations, frozenset({"enabled"}))


def _text_part(block: Json, path: str, beyond: _Beyond) -> Json:
    if block.get("citations"):
        beyond.keep(f"{path}.citations", block["citations"])
    beyond.unknown(path, block, _TEXT)
    return {"type": "text", "text": _text(block.get("text"), f"{path}.text")}


def _data_url(source: Json, path: str) -> str:
    media_type = _text(source.get("media_type"), f"{path}.media_type")
    return f"data:{media_type};base64,{_text(source.get('data'), f'{path}.data')}"


def _content(parts: list[Json]) -> str | list[Json]:
    if not parts:
        return ""
    alone = len(parts) == 1 and parts[0]["type"] == "text"
    return str(parts[0]["text"]) if alone else parts


def _provider_content(others: list[Json]) -> Json:
    return {"provider_content": others} if others else {}


def _uncached(block: Json) -> Json:
    return {name: value for name, value in block.items() if name != "cache_control"}


# --- values


def _blocks(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{path} must be a string or a list of blocks", param=path)
    return value


def _kind(block: object, path: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise RequestError(f"{path} must be an object with a type", param=path)
    return kind


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{path} must be a string", param=path)
    return value


def _flag(value: object, path: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{path} must be true or false", param=path)
    return bool(value)


def _whole_number(value: object, path: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(f"{path} must be a whole number of at least {least}", param=path)
    return value


def _list(value: object, path: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(f"{path} must be a list", param=path)
    return value


def _object(value: object, path: str) -> Json:
    if not isinstance(value, dict):
        raise RequestError(f"{path} must be an object", param=path)
    return value


def _fields(value: object, path: str) -> Json:
    return {} if value is None else _object(value, path)
