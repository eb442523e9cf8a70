"""A canonical request in the words of the OpenAI Responses API.

https://platform.openai.com/docs/api-reference/responses/create, and what is
lost on the way: docs/dialects/responses.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import msgspec

from backends.upstream.base import Call
from backends.upstream.openai_request import is_strict
from models.errors import Untranslatable

FORMAT = "openai-responses-v1"

_SAME = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "temperature",
        "top_logprobs",
        "top_p",
        "user",
    }
)
_TRANSLATED = frozenset(
    {
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "reasoning_budget",
        "reasoning_effort",
        "response_format",
        "store",
        "stream",
        "tool_choice",
        "tools",
        "verbosity",
    }
)
_HARMLESS = frozenset({"cache_control", "prediction", "seed", "stream_options"})
# There are no words for these. The value is the one that says what would be so without the field.
_REFUSED: dict[str, Any] = {
    "audio": None,
    "frequency_penalty": 0,
    "function_call": None,
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "stop": [],
    "top_k": None,
    "web_search_options": None,
}

_MESSAGE = frozenset({"role", "content", "name", "cache_control", "provider_content"})
_KNOWN_IN: dict[str, frozenset[str]] = {
    "system": _MESSAGE,
    "developer": _MESSAGE,
    "user": _MESSAGE,
    "tool": _MESSAGE | {"tool_call_id", "is_error"},
    "assistant": _MESSAGE
    | {
        "annotations",
        "content_items",
        "layout",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "refusal",
        "tool_calls",
    },
}
_REFUSED_IN_MESSAGES = frozenset({"audio", "function_call"})
_LAID_OUT = ("reasoning_details", "content", "tool_calls", "provider_content")

# The most tokens of a budget that each effort stands for; the chat API's table.
_EFFORTS = ((0, "none"), (1024, "minimal"), (4096, "low"), (16384, "medium"))


class _Lost:
    """What the translation could not say: `refused` changes the answer, `dropped` nobody knows."""

    def __init__(self, call: Call) -> None:
        self.refused = list(call.refused)
        self._dropped = dict.fromkeys(call.dropped)

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(self._dropped)

    def drop(self, *names: str) -> None:
        self._dropped |= dict.fromkeys(names)

    def drop_others(self, of: Mapping[Any, Any], known: frozenset[str], where: str) -> None:
        if not of.keys() <= known:
            self.drop(*(f"{where}.{name}" for name in of if name not in known and of[name] is not None))


def translated(call: Call, *, stream: bool) -> tuple[bytes, tuple[str, ...]]:
    """The body, and the names of fields that were dropped unknown. Raises `Untranslatable`."""
    body, lost = call.body, _Lost(call)
    stored = body.get("store") is True
    instructions, items = _input(body.get("messages"), lost, stored=stored)
    to_send: dict[str, Any] = {"model": call.model, "input": items, "store": stored}
    if instructions is not None:
        to_send["instructions"] = instructions
    for name, value in body.items():
        if value is None:
            continue
        if name in _SAME:
            to_send[name] = value
        elif name in _REFUSED:
            if value != _REFUSED[name]:
                lost.refused.append(name)
        elif name not in _TRANSLATED and name not in _HARMLESS:
            lost.drop(name)
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    include = ["message.output_text.logprobs"] if body.get("logprobs") else []
    reasoning = _reasoning(body, lost)
    thinks = reasoning is not None and reasoning.get("effort") != "none"
    if not stored and (thinks or any(item.get("type") == "reasoning" for item in items)):
        include.append("reasoning.encrypted_content")
    optional = {
        "max_output_tokens": limit,
        "text": _text(call, lost),
        "tools": _tools(body.get("tools"), lost),
        "tool_choice": _tool_choice(body.get("tool_choice"), lost),
        "reasoning": reasoning,
        "include": include or None,
        "stream": True if stream else None,
    }
    to_send.update({name: value for name, value in optional.items() if value is not None})
    if lost.refused:
        raise Untranslatable(lost.refused, dialect="responses")
    return msgspec.json.encode(to_send), lost.dropped


def _reasoning(body: Mapping[str, Any], lost: _Lost) -> dict[str, str] | None:
    effort, budget = body.get("reasoning_effort"), body.get("reasoning_budget")
    if effort is not None and not isinstance(effort, str):
        lost.refused.append("reasoning_effort")
        return None
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool)):
        lost.refused.append("reasoning_budget")
        return None
    reasoning = {}
    if effort is None and budget is not None and budget >= 0:
        effort = next((word for most, word in _EFFORTS if budget <= most), "high")
    if effort is not None:
        reasoning["effort"] = effort
    if budget and effort != "none":
        # Who gives a budget has a dialect in which reasoning is shown; this one hides it unless asked.
        reasoning["summary"] = "auto"
    return reasoning or None


def _text(call: Call, lost: _Lost) -> dict[str, Any] | None:
    body = call.body
    text: dict[str, Any] = {}
    match body.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            text["format"] = {"type": "json_object"}
        case {"type": "json_schema", "json_schema": {"name": str(name), **rest}}:
            lost.drop_others(rest, frozenset({"schema", "strict", "description"}), "response_format.json_schema")
            said = {key: rest[key] for key in ("strict", "description") if rest.get(key) is not None}
            if call.dialect != "openai" and said.get("strict") and not is_strict(rest.get("schema")):
                said["strict"] = False  # other dialects hold an answer to schemas that this one refuses
            text["format"] = {"type": "json_schema", "name": name, "schema": rest.get("schema") or {}, **said}
        case _:
            lost.refused.append("response_format")
    if body.get("verbosity") is not None:
        text["verbosity"] = body["verbosity"]
    return text or None


_TOOL = frozenset({"type", "function", "cache_control"})
_CUSTOM_TOOL = frozenset({"type", "custom", "cache_control"})
_CUSTOM = frozenset({"name", "description"})
_FUNCTION = frozenset({"name", "description", "parameters", "strict"})


def _tools(tools: Any, lost: _Lost) -> list[dict[str, Any]] | None:
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        lost.refused.append("tools")
        return None
    flat = []
    for i, tool in enumerate(tools):
        match tool:
            case {"type": "function", "function": {"name": str(name), **rest}}:
                lost.drop_others(tool, _TOOL, "tools[]")
                lost.drop_others(rest, _FUNCTION, "tools[].function")
                one = {
                    "type": "function",
                    "name": name,
                    "description": rest.get("description"),
                    # The chat API reads a function without parameters as one without arguments.
                    "parameters": rest.get("parameters") or {"type": "object", "properties": {}},
                    # Taken for granted here, and not in the chat API.
                    "strict": rest.get("strict") or False,
                }
                flat.append({key: value for key, value in one.items() if value is not None})
            case {"type": "custom", "custom": {"name": str(), **rest} as custom}:
                lost.drop_others(tool, _CUSTOM_TOOL, "tools[]")
                lost.drop_others(rest, _CUSTOM | {"format"}, "tools[].custom")
                form = _form(custom.get("format"), f"tools[{i}].custom.format", lost)
                flat.append({"type": "custom", **{name: custom[name] for name in custom.keys() & _CUSTOM}, **form})
            case _:
                lost.refused.append(f"tools[{i}]")
    return flat


def _form(form: Any, at: str, lost: _Lost) -> dict[str, Any]:
    match form:
        case None | {"type": "text"}:
            return {}
        case {"type": "grammar", "grammar": {"definition": str(definition), "syntax": str(syntax)}}:
            return {"format": {"type": "grammar", "definition": definition, "syntax": syntax}}
        case _:
            lost.refused.append(at)
            return {}


def _tool_choice(choice: Any, lost: _Lost) -> Any:
    match choice:
        case None | "auto" | "none" | "required":
            return choice
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "function", "name": name}
        case {"type": "custom", "custom": {"name": str(name)}}:
            return {"type": "custom", "name": name}
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}:
            allowed = [_tool_choice(tool, lost) for tool in tools if isinstance(tool, dict)]
            return {"type": "allowed_tools", "mode": mode, "tools": allowed}
        case _:
            lost.refused.append("tool_choice")
            return None


def _input(messages: Any, lost: _Lost, *, stored: bool) -> tuple[str | None, list[dict[str, Any]]]:
    """The instructions, if any, and all else as items."""
    if not isinstance(messages, list):
        lost.refused.append("messages")
        return None, []
    instructions, begin = None, 0
    match messages:
        case [{"role": "system" | "developer", "content": str(text)} as first, _, *_] if (
            first.keys() <= _MESSAGE and first.get("provider_content") is None
        ):
            instructions, begin = text, 1
    items: list[dict[str, Any]] = []
    customs: set[str] = set()  # ids of calls whose results are items of another type
    for i in range(begin, len(messages)):
        items.extend(_items(messages[i], f"messages[{i}]", lost, customs, stored=stored))
    return instructions, items


def _items(message: Any, at: str, lost: _Lost, customs: set[str], *, stored: bool) -> Iterator[dict[str, Any]]:
    role = message.get("role") if isinstance(message, dict) else None
    known = _KNOWN_IN.get(role) if isinstance(role, str) else None
    if known is None:
        lost.refused.append(at)
        return
    if not message.keys() <= known:
        lost.refused += [f"{at}.{name}" for name in _REFUSED_IN_MESSAGES if message.get(name) is not None]
        lost.drop_others(message, known | _REFUSED_IN_MESSAGES, "messages[]")
    if role == "assistant":
        for item in _turn(message, at, lost, stored=stored):
            if item.get("type") == "custom_tool_call" and isinstance(item.get("call_id"), str):
                customs.add(item["call_id"])
            yield item
        return
    blocks = _blocks(message, at, lost)
    content = message.get("content")
    # A message may be nothing but what this dialect alone has words for.
    if content is not None or not blocks:
        if not isinstance(content, str):
            content = _parts(content, f"{at}.content", lost)
        if role != "tool":
            yield {"type": "message", "role": role, "content": content}
        elif isinstance(message.get("tool_call_id"), str):
            kind = "custom_tool_call" if message["tool_call_id"] in customs else "function_call"
            yield {"type": f"{kind}_output", "call_id": message["tool_call_id"], "output": content}
        else:
            lost.refused.append(f"{at}.tool_call_id")
    yield from blocks


_CACHING = ("prompt_cache_breakpoint",)
_PART = frozenset({"type", "cache_control", *_CACHING})
_IMAGE = frozenset({"url", "detail"})
_FILE = frozenset({"file_data", "file_url", "file_id", "filename"})


def _parts(parts: Any, at: str, lost: _Lost) -> list[dict[str, Any]]:
    if not isinstance(parts, list):
        lost.refused.append(at)
        return []
    found = []
    for i, part in enumerate(parts):
        match part:
            case {"type": "text", "text": str(text)}:
                said: dict[str, Any] = {"type": "input_text", "text": text}
            case {"type": "image_url", "image_url": {"url": str(url)} as image}:
                lost.drop_others(image, _IMAGE, "messages[].content[].image_url")
                said = {"type": "input_image", "image_url": url, "detail": image.get("detail") or "auto"}
            case {"type": "file", "file": dict(file)}:
                lost.drop_others(file, _FILE, "messages[].content[].file")
                said = {"type": "input_file", **{name: file[name] for name in _FILE if file.get(name) is not None}}
                if "file_data" in said:
                    said.setdefault("filename", "document")
            case _:
                lost.refused.append(f"{at}[{i}]")
                continue
        lost.drop_others(part, _PART | {part["type"]}, "messages[].content[]")
        found.append(said | {name: part[name] for name in _CACHING if part.get(name) is not None})
    return found


def _blocks(message: Mapping[str, Any], at: str, lost: _Lost) -> list[dict[str, Any]]:
    """Items as they came. One entry each, so that a layout's counts hold."""
    blocks = message.get("provider_content")
    if blocks is None:
        return []
    if not isinstance(blocks, list):
        lost.refused.append(f"{at}.provider_content")
        return []
    found = []
    for i, block in enumerate(blocks):
        match block:
            case {"dialect": "responses", "block": dict(item)}:
                found.append(item)
            case _:
                lost.refused.append(f"{at}.provider_content[{i}]")
    return found


class _Turn:
    """An assistant message, each field of it a list (or a text) of the expected kind."""

    def __init__(self, message: Mapping[str, Any], at: str, lost: _Lost) -> None:
        content = message.get("content")
        self.text = content if isinstance(content, str) else ""
        self.parts = [] if content is None or isinstance(content, str) else _said(content, f"{at}.content", lost)
        self.details = _dicts(message, "reasoning_details", at, lost)
        self.calls = _dicts(message, "tool_calls", at, lost)
        self.blocks = _blocks(message, at, lost)
        refusal = message.get("refusal")
        if refusal is not None and not isinstance(refusal, str):
            lost.refused.append(f"{at}.refusal")
        elif refusal:
            self.parts.append({"type": "refusal", "refusal": refusal})
        items = _dicts(message, "content_items", at, lost)
        self.items = sorted(
            (item for item in items if isinstance(item.get("offset"), int) and 0 <= item["offset"] <= len(self.text)),
            key=lambda item: item["offset"],
        )

    def runs(self, layout: Any) -> list[tuple[str, int]]:
        """What comes next, and how many of it: in the order of `layout` if it adds up."""
        sizes = dict(
            zip(_LAID_OUT, map(len, (self.details, self.text, self.calls, self.blocks)), strict=True),
        )
        runs, counts = [], dict.fromkeys(_LAID_OUT, 0)
        for run in layout if isinstance(layout, list) else ():
            match run:
                case [str(name), int(count)] if name in counts and count >= 0:
                    counts[name] += count
                    runs.append((name, count))
        return runs if counts == sizes else list(sizes.items())

    def rest(self, *, ids: bool) -> Iterator[dict[str, Any]]:
        """What was said in parts, once."""
        if self.parts:
            yield _message(self.parts, self.items[-1] if self.items else {}, ids=ids)
            self.parts = []


def _turn(message: Mapping[str, Any], at: str, lost: _Lost, *, stored: bool) -> Iterator[dict[str, Any]]:
    turn = _Turn(message, at, lost)
    thoughts = [_thought(details) for details in _by_item(turn.details)]
    ids = (
        # An API that knows an item by its id wants those that were around it (and refuses half of them).
        all(_readable(thought, stored=stored) and "id" in thought for thought in thoughts)
        and all(isinstance(call.get("item_id"), str) for call in turn.calls)
        and all(isinstance(item.get("id"), str) for item in turn.items)
        and (turn.items[0]["offset"] == 0 if turn.items else not (turn.text or turn.parts))
        and not (turn.text and turn.parts)
    )
    done = dict.fromkeys(_LAID_OUT, 0)
    for name, count in turn.runs(message.get("layout")):
        begin = done[name]
        end = done[name] = begin + count
        if name == "reasoning_details":
            for details in _by_item(turn.details[begin:end]):
                thought = _thought(details)
                if _readable(thought, stored=stored):
                    yield thought if ids else {key: value for key, value in thought.items() if key != "id"}
        elif name == "content":
            yield from _texts(turn, begin, end, ids=ids)
            if end == len(turn.text):
                yield from turn.rest(ids=ids)
        elif name == "tool_calls":
            for i, call in enumerate(turn.calls[begin:end], begin):
                yield from _call(call, f"{at}.tool_calls[{i}]", lost, ids=ids)
        else:
            yield from turn.blocks[begin:end]
    yield from turn.rest(ids=ids)


def _texts(turn: _Turn, begin: int, end: int, *, ids: bool) -> Iterator[dict[str, Any]]:
    """One message for each that `content` is made of."""
    begins = {item["offset"]: item for item in turn.items if begin < item["offset"] < end}
    within = [item for item in turn.items if item["offset"] <= begin]
    first = within[-1] if within else {}
    for here, there in pairwise((begin, *begins, end)):
        if here < there:
            text = turn.text[here:there]
            item = begins.get(here, first)
            part = {"type": "output_text", "text": text, "annotations": []}
            yield _message([part] if ids else text, item, ids=ids)


def _message(content: str | list[dict[str, Any]], item: Mapping[str, Any], *, ids: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"type": "message", "role": "assistant", "content": content}
    if not isinstance(content, str):
        said["status"] = "completed"
    if ids:
        said["id"] = item["id"]
    if isinstance(item.get("phase"), str):
        said["phase"] = item["phase"]
    return said


def _said(parts: Any, at: str, lost: _Lost) -> list[dict[str, Any]]:
    if not isinstance(parts, list):
        lost.refused.append(at)
        return []
    found: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        match part:
            case {"type": "text", "text": str(text)}:
                found.append({"type": "output_text", "text": text, "annotations": []})
            case {"type": "refusal", "refusal": str(text)}:
                found.append({"type": "refusal", "refusal": text})
            case _:
                lost.refused.append(f"{at}[{i}]")
    return found


def _call(call: Mapping[str, Any], at: str, lost: _Lost, *, ids: bool) -> Iterator[dict[str, Any]]:
    match call:
        case {"id": str(call_id), "function": {"name": str(name), "arguments": str(arguments)}} if call.get("type") in (
            None,
            "function",
        ):
            item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        case {"id": str(call_id), "type": "custom", "custom": {"name": str(name), "input": str(text)}}:
            item = {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": text}
        case _:
            lost.refused.append(at)
            return
    if ids:
        item["id"] = call["item_id"]
    yield item


def _by_item(details: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The details of each reasoning item of this API; those of others are not for it."""
    for (own, _), group in groupby(details, key=lambda detail: (detail.get("format") == FORMAT, detail.get("id"))):
        if own:
            yield list(group)


def _thought(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    thought: dict[str, Any] = {"type": "reasoning", "summary": []}
    for detail in details:
        if isinstance(detail.get("id"), str):
            thought["id"] = detail["id"]
        match detail:
            case {"type": "reasoning.summary", "summary": str(text)} if text:
                thought["summary"].append({"type": "summary_text", "text": text})
            case {"type": "reasoning.text", "text": str(text)} if text:
                thought.setdefault("content", []).append({"type": "reasoning_text", "text": text})
            case {"type": "reasoning.encrypted", "data": str(sealed)}:
                thought["encrypted_content"] = sealed
    return thought


def _readable(thought: Mapping[str, Any], *, stored: bool) -> bool:
    """Whether the provider can make anything of it. A summary is for people; an id is one of something it kept."""
    return "encrypted_content" in thought or "content" in thought or (stored and "id" in thought)


def _dicts(message: Mapping[str, Any], name: str, at: str, lost: _Lost) -> list[dict[str, Any]]:
    value = message.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        lost.refused.append(f"{at}.{name}")
        return []
    return value
