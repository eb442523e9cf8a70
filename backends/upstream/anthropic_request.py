"""A canonical request as the body of Anthropic's Messages API.

https://platform.claude.com/docs/en/api/messages. What is translated, dropped
and refused is the table of docs/dialects/anthropic.md.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from backends.upstream.base import Call
from models.errors import RequestError, Untranslatable

REASONING_FORMAT = "anthropic-claude-v1"
# What `provider_content` holds for the citations of a text, see docs/dialects/anthropic.md.
CITATIONS = "text_citations"

Block = dict[str, Any]

_TRANSLATED = frozenset(
    {
        *("model", "messages", "max_completion_tokens", "max_tokens", "stop", "response_format", "cache_control"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "parallel_tool_calls"),
        *("reasoning_effort", "reasoning_budget", "user", "safety_identifier"),
    }
)
# Without these the same question is asked.
_HARMLESS = frozenset(
    {
        *("metadata", "prediction", "seed", "service_tier", "store", "stream", "stream_options"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)
# Without these another question is asked, but for the values that say what is so without them.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"], []),
    "moderation": (),
    "n": (1,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_MESSAGE_FIELDS = frozenset(
    {
        *("role", "content", "name", "refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id"),
        *("is_error", "reasoning", "reasoning_content", "reasoning_details", "provider_content", "layout"),
        *("cache_control", "content_items"),
    }
)
_TOOL_FIELDS = frozenset({"type", "function", "cache_control"})
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict", "cache_control"})

_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")
_VERSION = re.compile(r"claude-(?:[a-z]+-)*?v?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")

THOUGHTS = frozenset({"thinking", "redacted_thinking"})
_THINKS = frozenset({"enabled", "adaptive"})
_LEAST_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 24576}
_USUAL_BUDGET = _BUDGETS["medium"]
_EFFORTS = ((4096, "low"), (12288, "medium"), (20480, "high"), (32768, "xhigh"))
_ROOM_TO_ANSWER = 4096
_LONG_ANSWER = 64_000
_LONGEST_PATH = 200

# Of JSON Schema what structured outputs know, beside those that hold schemas.
_PLAIN_KEYWORDS = frozenset(
    {"$ref", "additionalProperties", "const", "description", "enum", "required", "title", "type"}
)
_STRING_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)


class Translated(NamedTuple):
    body: dict[str, Any]
    dropped: tuple[str, ...]


def translate(call: Call, *, stream: bool) -> Translated:
    """Raises `Untranslatable` that names all that cannot be said, and `RequestError` for a field of another type."""
    losses = _Losses(call)
    body, model = call.body, _traits(call.model)
    losses.note_fields(body)
    system, turns = _conversation(_array(body.get("messages"), "messages"), losses)
    if not turns and system:
        # There must be a turn to answer; a system prompt alone is one.
        turns, system = [{"role": "user", "content": system}], []
    if not turns and not losses.refused:
        raise RequestError("messages must say something", param="messages")
    translated: dict[str, Any] = {"model": call.model, "max_tokens": 0}
    if system:
        translated["system"] = _shortest(system)
    translated["messages"] = [{**turn, "content": _shortest(turn["content"])} for turn in turns]
    translated |= _tools(body, losses)
    limit = _limit(body)
    thinking, config, room = _reasoning(body, model, limit, losses)
    # A forced call is made without thinking.
    forced = translated.get("tool_choice", {}).get("type") in {"any", "tool"}
    if (forced or (not model.adaptive and _goes_on_without_thoughts(turns))) and thinking.get("type") in _THINKS:
        thinking = {}
    translated["max_tokens"] = limit or max(model.usual_limit, room)
    if thinking:
        translated["thinking"] = thinking
    output_format = _output_format(body, losses)
    if output_format:
        config["format"] = output_format
    if config:
        translated["output_config"] = config
    translated |= _sampling(body, model, losses, with_budget=thinking.get("type") == "enabled")
    stop = _stop(body, losses)
    if stop:
        translated["stop_sequences"] = stop
    user = body.get("safety_identifier") or body.get("user")
    if isinstance(user, str) and user:
        translated["metadata"] = {"user_id": user}
    if isinstance(body.get("cache_control"), dict):
        translated["cache_control"] = body["cache_control"]
    if stream:
        translated["stream"] = True
    if losses.refused:
        raise Untranslatable(tuple(losses.refused), dialect="anthropic")
    return Translated(translated, tuple(losses.dropped))


class _Losses:
    """What of a request did not make it, by name and in the order it was met."""

    def __init__(self, call: Call) -> None:
        self.refused: dict[str, None] = dict.fromkeys(call.refused)
        self.dropped: dict[str, None] = dict.fromkeys(call.dropped)

    def note_fields(self, body: Mapping[str, Any]) -> None:
        for name, value in body.items():
            if value is None or name in _TRANSLATED or name in _HARMLESS:
                continue
            if name not in _REFUSED:
                self.dropped[name] = None
            elif value not in _REFUSED[name]:
                self.refused[name] = None

    def note_unknown(self, given: Mapping[str, Any], known: frozenset[str], where: str) -> None:
        """`where` has no position in it: the names are counted."""
        for name, value in given.items():
            if name not in known and value is not None:
                self.dropped[f"{where}.{name}"] = None


class _Traits(NamedTuple):
    """What a model's name says of it. `adaptive`: an effort says how much it thinks, else a budget of tokens."""

    adaptive: bool
    takes_sampling: bool
    takes_xhigh: bool
    without_thinking: Mapping[str, str]  # empty where that goes without saying
    shows_thinking: bool
    usual_limit: int


@lru_cache(maxsize=1024)
def _traits(name: str) -> _Traits:
    """A Claude without a version in its name, and what is no Claude, are taken to be as new as can be.

    https://platform.claude.com/docs/en/build-with-claude/thinking and
    https://platform.claude.com/docs/en/about-claude/models/migration-guide
    """
    name = name.lower()
    claude = "claude" in name
    found = _VERSION.search(name)
    version = (int(found[1]), int(found[2] or 0)) if found else (99, 0)
    off = "between_tools" if "sonnet" in name and (5, 5) <= version < (99, 0) else "disabled"
    return _Traits(
        adaptive=version >= (4, 6),
        takes_sampling=not claude or version < (4, 7),
        takes_xhigh=version >= (4, 7),
        without_thinking={"type": off} if version >= (5, 0) else {},
        shows_thinking=version == (4, 6),
        usual_limit=_LONG_ANSWER if claude and version >= (4, 5) else _ROOM_TO_ANSWER,
    )


def _conversation(messages: Sequence[Any], losses: _Losses) -> tuple[list[Block], list[Block]]:
    """The system prompt, and turns whose contents are lists of blocks."""
    system: list[Block] = []
    turns: list[Block] = []
    for position, message in enumerate(messages):
        at = f"messages[{position}]"
        message = _object(message, at)
        losses.note_unknown(message, _MESSAGE_FIELDS, "messages[]")
        role = message.get("role")
        if role in ("system", "developer"):
            system += _cached(_texts(message.get("content"), at, losses), message)
            continue
        if role == "user":
            blocks = [*_parts(message.get("content"), at, losses), *_own_blocks(message, at, losses)]
        elif role == "assistant":
            blocks = _assistant(message, at, losses)
        elif role == "tool":
            blocks = [_tool_result(message, at, losses), *_own_blocks(message, at, losses)]
        elif role == "function":
            losses.refused[f"{at}.role"] = None
            continue
        else:
            raise RequestError(f"{at}.role must be system, developer, user, assistant or tool", param=f"{at}.role")
        if not blocks:
            continue  # an empty message says nothing, and an empty turn is refused
        blocks = _cached(blocks, message)
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return system, turns


def _parts(content: Any, at: str, losses: _Losses) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks = []
    for position, part in enumerate(_array(content, f"{at}.content")):
        where = f"{at}.content[{position}]"
        block = _part(_object(part, where), where, losses)
        if block is not None:
            blocks.append(_with_cache_control(block, part))
    return blocks


def _part(part: Mapping[str, Any], at: str, losses: _Losses) -> Block | None:
    """None for a text of nothing, and for what cannot be said."""
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = _string(part.get(kind), f"{at}.{kind}")
        return {"type": "text", "text": text} if text.strip() else None  # the API takes none of white space alone
    block = None
    if kind == "image_url":
        image = part.get("image_url")
        url = image if isinstance(image, str) else _object(image, f"{at}.image_url").get("url")
        block = _image(_string(url, f"{at}.image_url.url"))
    elif kind == "file":
        block = _document(_object(part.get("file"), f"{at}.file"), f"{at}.file")
    elif not isinstance(kind, str):
        raise RequestError(f"{at}.type must be a string", param=f"{at}.type")
    if block is None:
        losses.refused[at] = None
    return block


def _texts(content: Any, at: str, losses: _Losses) -> list[Block]:
    blocks = _parts(content, at, losses)
    if any(block["type"] != "text" for block in blocks):
        losses.refused[f"{at}.content"] = None
    return blocks


def _image(url: str) -> Block | None:
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, encoded = _data_url(url)
    if media_type not in _IMAGE_TYPES:
        return None
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}


def _document(file: Mapping[str, Any], at: str) -> Block | None:
    if file.get("file_data") is not None:
        media_type, encoded = _data_url(_string(file["file_data"], f"{at}.file_data"))
        if media_type == "application/pdf":
            source = {"type": "base64", "media_type": media_type, "data": encoded}
        elif media_type.startswith("text/"):
            try:
                text = base64.b64decode(encoded, validate=True).decode()
            except (binascii.Error, ValueError):
                raise RequestError(f"{at}.file_data is not a text in base64", param=f"{at}.file_data") from None
            source = {"type": "text", "media_type": "text/plain", "data": text}
        else:
            return None
    elif file.get("file_url") is not None:
        source = {"type": "url", "url": _string(file["file_url"], f"{at}.file_url")}
    else:
        return None  # a `file_id` names a file that lies with another provider
    title = file.get("filename")
    return {"type": "document", "source": source, **({"title": title} if isinstance(title, str) and title else {})}


def _data_url(url: str) -> tuple[str, str]:
    """Media type and base64; both empty for anything else."""
    head, comma, encoded = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return "", ""
    return head[5:].partition(";")[0].lower(), encoded


def _tool_result(message: Mapping[str, Any], at: str, losses: _Losses) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": _call_id(message.get("tool_call_id"), f"{at}.tool_call_id")}
    content = _parts(message.get("content"), at, losses)
    if content:
        block["content"] = _shortest(content)
    if message.get("is_error") is True:
        block["is_error"] = True
    return block


def _assistant(message: Mapping[str, Any], at: str, losses: _Losses) -> list[Block]:
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            losses.refused[f"{at}.{name}"] = None
    content = message.get("content")
    texts = _texts(content, at, losses)
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        texts.append({"type": "text", "text": message["refusal"]})
    lists: dict[str, list[Block | None]] = {
        "reasoning_details": _thinking(message.get("reasoning_details")),
        "tool_calls": [
            _tool_use(call, f"{at}.tool_calls[{position}]", losses)
            for position, call in enumerate(_array(message.get("tool_calls") or [], f"{at}.tool_calls"))
        ],
        "provider_content": list(_own_blocks(message, at, losses)),
    }
    said = _as_laid_out(message.get("layout"), content if isinstance(content, str) else "", lists) or [
        *lists["reasoning_details"],
        *texts,
        *lists["tool_calls"],
        *lists["provider_content"],
    ]
    blocks: list[Block] = []
    for block in said:
        if block is None:
            continue
        if block.get("type") == CITATIONS:
            _cite(blocks, block)
        else:
            blocks.append(block)
    return blocks


def _as_laid_out(layout: Any, text: str, lists: Mapping[str, list[Block | None]]) -> list[Block | None]:
    """Everything in the order of `layout` (docs/dialects.md); nothing where there is none, or it does not add up."""
    if not isinstance(layout, list):
        return []
    done = dict.fromkeys(("content", *lists), 0)
    blocks: list[Block | None] = []
    for run in layout:
        match run:
            case [str(name), int(count)] if name in done and count > 0:
                begin = done[name]
                done[name] = begin + count
                if name == "content":
                    said = text[begin : begin + count]
                    blocks += [{"type": "text", "text": said}] if said.strip() else []
                else:
                    blocks += lists[name][begin : begin + count]
            case _:
                return []
    whole = done["content"] == len(text) and all(done[name] == len(items) for name, items in lists.items())
    return blocks if whole else []


def _cite(blocks: list[Block], cited: Block) -> None:
    """Gives the last `length` characters said their citations back; they stay without where that cannot be."""
    length, citations = cited.get("length"), cited.get("citations")
    last = blocks[-1] if blocks else {}
    text = last.get("text")
    if not isinstance(text, str) or not isinstance(length, int) or not 0 < length <= len(text) or "citations" in last:
        return
    blocks.pop()
    if length < len(text):
        blocks.append({"type": "text", "text": text[:-length]})
    blocks.append({"type": "text", "text": text[-length:], "citations": citations})


def _thinking(details: Any) -> list[Block | None]:
    """The blocks as they were signed; None for those of another provider, or never signed."""
    if not isinstance(details, list):
        return []
    merged: dict[Any, dict[str, Any]] = {}
    texts: dict[Any, list[str]] = {}
    for position, item in enumerate(details):
        if not isinstance(item, dict):
            continue
        index = item.get("index")
        key = index if isinstance(index, int) else f"at {position}"
        so_far = merged.setdefault(key, {})
        for name, value in item.items():
            if name == "text" and isinstance(value, str):
                # Clients that put streams together by appending send the pieces back.
                texts.setdefault(key, []).append(value)
            elif value is not None:
                so_far[name] = value
    for key, pieces in texts.items():
        merged[key]["text"] = "".join(pieces)
    return [_thinking_block(item) for item in merged.values()]


def _thinking_block(item: Mapping[str, Any]) -> Block | None:
    if item.get("format") != REASONING_FORMAT:
        return None
    if item.get("type") == "reasoning.encrypted" and isinstance(item.get("data"), str):
        return {"type": "redacted_thinking", "data": item["data"]}
    text, signature = item.get("text", ""), item.get("signature")
    if item.get("type") != "reasoning.text" or not isinstance(text, str):
        return None
    if not isinstance(signature, str) or not signature:
        return None
    return {"type": "thinking", "thinking": text, "signature": signature}


def _tool_use(call: Any, at: str, losses: _Losses) -> Block | None:
    call = _object(call, at)
    if call.get("type", "function") != "function":
        losses.refused[at] = None
        return None
    function = _object(call.get("function"), f"{at}.function")
    block = {
        "type": "tool_use",
        "id": _call_id(call.get("id"), f"{at}.id"),
        "name": _string(function.get("name"), f"{at}.function.name"),
        "input": _arguments(_string(function.get("arguments") or "", f"{at}.function.arguments")),
    }
    block |= {name: call[name] for name in ("caller", "toolset_name") if call.get(name) is not None}
    return _with_cache_control(block, call)


def _arguments(arguments: str) -> dict[str, Any]:
    """What is no JSON object is the model's mistake, and stays readable as one: its tool result answers it.

    https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming
    """
    if not arguments.strip():
        return {}
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        decoded = None
    return decoded if isinstance(decoded, dict) else {"INVALID_JSON": arguments}


def _call_id(value: Any, at: str) -> str:
    """Ids may hold letters, digits, `_` and `-` only; others give longer ones."""
    return _NOT_IN_IDS.sub("_", _string(value, at))


def _own_blocks(message: Mapping[str, Any], at: str, losses: _Losses) -> Iterator[Block]:
    items = message.get("provider_content")
    for position, item in enumerate(items if isinstance(items, list) else ()):
        block = item.get("block") if isinstance(item, dict) else None
        if isinstance(block, dict) and item.get("dialect") == "anthropic":
            yield block
        else:
            losses.refused[f"{at}.provider_content[{position}]"] = None


def _cached(blocks: list[Block], message: Mapping[str, Any]) -> list[Block]:
    if blocks and isinstance(message.get("cache_control"), dict):
        blocks[-1] = {**blocks[-1], "cache_control": message["cache_control"]}
    return blocks


def _with_cache_control(block: Block, given: Mapping[str, Any]) -> Block:
    if isinstance(given.get("cache_control"), dict):
        block["cache_control"] = given["cache_control"]
    return block


def _shortest(blocks: list[Block]) -> str | list[Block]:
    """A text alone is a string."""
    first = blocks[0]
    alone = len(blocks) == 1 and first.keys() == {"type", "text"} and isinstance(first["text"], str)
    return first["text"] if alone else blocks


def _tools(body: Mapping[str, Any], losses: _Losses) -> dict[str, Any]:
    given = _array(body.get("tools") or [], "tools")
    if not given:
        return {}
    tools = [_tool(tool, f"tools[{position}]", losses) for position, tool in enumerate(given)]
    choice = _tool_choice(body.get("tool_choice"), losses)
    allowed = choice.pop("allowed", None)
    if allowed is not None:
        tools = [tool for tool in tools if tool["name"] in allowed]
        if not tools:
            losses.refused["tool_choice"] = None
    if body.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return {"tools": tools, **({"tool_choice": choice} if choice else {})}


def _tool(tool: Any, at: str, losses: _Losses) -> Block:
    tool = _object(tool, at)
    if tool.get("type", "function") != "function":
        losses.refused[at] = None
        return {"name": ""}
    function = _object(tool.get("function"), f"{at}.function")
    losses.note_unknown(tool, _TOOL_FIELDS, "tools[]")
    losses.note_unknown(function, _FUNCTION_FIELDS, "tools[].function")
    translated: Block = {"name": _string(function.get("name"), f"{at}.function.name")}
    if function.get("description"):
        translated["description"] = _string(function["description"], f"{at}.function.description")
    schema = _object(function.get("parameters") or {}, f"{at}.function.parameters")
    if "type" not in schema:
        schema = {"type": "object", "properties": {}, **schema}
    if function.get("strict") is True:
        translated["strict"] = True
        schema = _constrained(schema, f"{at}.function.parameters", losses)
    translated["input_schema"] = schema
    return _with_cache_control(_with_cache_control(translated, function), tool)


def _tool_choice(choice: Any, losses: _Losses) -> dict[str, Any]:
    match choice:
        case None | "auto":
            return {}
        case "none":
            return {"type": "none"}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            names = {tool["function"]["name"] for tool in tools if _names_function(tool)}
            return {**({"type": "any"} if mode == "required" else {}), "allowed": names}
    losses.refused["tool_choice"] = None
    return {}


def _names_function(tool: Any) -> bool:
    match tool:
        case {"type": "function", "function": {"name": str()}}:
            return True
    return False


def _limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if body.get(name) is not None:
            return _whole_number(body[name], name, least=1)
    return None


def _reasoning(
    body: Mapping[str, Any], model: _Traits, limit: int | None, losses: _Losses
) -> tuple[Mapping[str, Any], dict[str, Any], int]:
    """`thinking`, `output_config`, and the limit that leaves room for both thinking and an answer."""
    effort, budget = body.get("reasoning_effort"), body.get("reasoning_budget")
    if budget is not None:
        budget = _whole_number(budget, "reasoning_budget", least=-1)
    if effort is not None and _string(effort, "reasoning_effort") not in ("none", *_BUDGETS):
        losses.refused["reasoning_effort"] = None
        return {}, {}, 0
    if effort is None and budget is None:
        return {}, {}, 0
    if budget == 0 or effort == "none":
        return model.without_thinking, {}, 0
    if not model.adaptive:
        tokens = budget if budget is not None and budget > 0 else _BUDGETS.get(effort or "", _USUAL_BUDGET)
        tokens = max(_LEAST_BUDGET, tokens)
        room = max(model.usual_limit, tokens + _ROOM_TO_ANSWER) if limit is None else limit
        tokens = min(tokens, room - 1)
        if tokens < _LEAST_BUDGET:
            return {}, {}, 0  # a limit that leaves no room to think
        return {"type": "enabled", "budget_tokens": tokens}, {}, room
    thinking = {"type": "adaptive"} if model.shows_thinking else {"type": "adaptive", "display": "summarized"}
    if effort is None and budget is not None and budget > 0:
        effort = next((name for less_than, name in _EFFORTS if budget < less_than), "max")
    if effort is None:
        return thinking, {}, 0
    if effort == "minimal":
        effort = "low"
    elif effort == "xhigh" and not model.takes_xhigh:
        effort = "high"
    return thinking, {"effort": effort}, 0


def _goes_on_without_thoughts(turns: Sequence[Block]) -> bool:
    """Whether the turn to go on with called tools and has none of the thoughts that a budget asks to see again: most
    clients do not keep them. The API refuses such a turn if it is to think on."""
    if len(turns) < 2 or not any(block.get("type") == "tool_result" for block in turns[-1]["content"]):
        return False
    return turns[-2]["content"][0].get("type") not in THOUGHTS


def _sampling(body: Mapping[str, Any], model: _Traits, losses: _Losses, *, with_budget: bool) -> dict[str, Any]:
    translated: dict[str, Any] = {}
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise RequestError(f"{name} must be a number", param=name)
        if value == 1:
            continue  # is so without it
        translated[name] = value
    if body.get("top_k") is not None:
        translated["top_k"] = _whole_number(body["top_k"], "top_k", least=0)
    for name, value in translated.items():
        narrow = with_budget and not (name == "top_p" and value >= 0.95)
        if not model.takes_sampling or narrow or (name == "temperature" and value > 1):
            losses.refused[name] = None
    return translated


def _stop(body: Mapping[str, Any], losses: _Losses) -> list[str]:
    stop = body.get("stop")
    given = [stop] if isinstance(stop, str) else _array(stop or [], "stop")
    sequences = [_string(sequence, f"stop[{position}]") for position, sequence in enumerate(given)]
    for position, sequence in enumerate(sequences):
        if not sequence.strip():
            losses.refused[f"stop[{position}]"] = None  # the API takes none of white space alone
    return sequences


def _output_format(body: Mapping[str, Any], losses: _Losses) -> dict[str, Any] | None:
    """https://platform.claude.com/docs/en/build-with-claude/structured-outputs"""
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = _object(wanted, "response_format").get("type")
    if kind == "text":
        return None
    if kind != "json_schema":
        losses.refused["response_format"] = None
        return None
    named = _object(wanted.get("json_schema"), "response_format.json_schema")
    schema = _object(named.get("schema") or {}, "response_format.json_schema.schema")
    if named.get("description") and "description" not in schema:
        schema = {**schema, "description": named["description"]}
    return {"type": "json_schema", "schema": _constrained(schema, "response_format.json_schema.schema", losses)}


def _constrained(schema: Any, at: str, losses: _Losses) -> Any:
    """A schema that answers can be held to: objects are closed, and what else cannot be held to is told in words.

    A schema for objects with names nobody lists is refused: closed, it would
    mean another thing.
    """
    if not isinstance(schema, dict):
        losses.refused[at] = None  # `true` is a schema as well: anything goes
        return schema
    held: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("$defs", "definitions", "properties") and isinstance(value, dict):
            held[name] = {
                key: _constrained(inner, _within(at, f"{name}.{key}"), losses) for key, inner in value.items()
            }
        elif name in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            held["anyOf" if name == "oneOf" else name] = [
                _constrained(inner, _within(at, f"{name}[{position}]"), losses) for position, inner in enumerate(value)
            ]
        elif name == "items" and isinstance(value, dict):
            held[name] = _constrained(value, _within(at, "items"), losses)
        elif (
            name in _PLAIN_KEYWORDS
            or (name == "format" and isinstance(value, str) and value in _STRING_FORMATS)
            or (name == "minItems" and value in (0, 1))
        ):
            held[name] = value
        elif not name.startswith("$"):
            told[name] = value
    kinds = schema.get("type")
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        if schema.get("additionalProperties") or not isinstance(schema.get("properties"), dict):
            losses.refused[f"{at}.additionalProperties"] = None
        held["additionalProperties"] = False
    if told:
        words = msgspec.json.encode(told).decode()
        before = held.get("description")
        held["description"] = f"{before}\n\n{words}" if isinstance(before, str) and before else words
    return held


def _within(at: str, name: str) -> str:
    """Deep down, the beginning of a path: every level holds its own, and names are as long as a client likes."""
    return at if len(at) > _LONGEST_PATH else f"{at}.{name[:_LONGEST_PATH]}"


def _object(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be an object", param=at)
    return value


def _array(value: Any, at: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{at} must be an array", param=at)
    return value


def _string(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{at} must be a string", param=at)
    return value


def _whole_number(value: Any, at: str, *, least: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{at} must be a whole number of at least {least}", param=at)
    return value
