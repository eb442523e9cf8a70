"""What Anthropic's API refuses, in its words: the schema of the SDK's types, and what only the documentation says."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tests.support.fake_scenario import Prompt, attachment, flaw, sign, unsealed
from tests.support.fake_vendor import Json
from tests.support.sdk_shapes import Misfit, misfit

LEAST_BUDGET = 1024
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_SAMPLING = {"temperature": (float, 1.0), "top_p": (float, 1.0), "top_k": (int, 10**9)}


class Broken(Exception):
    """The request breaks a rule; the text is the vendor's."""

    def __init__(self, message: str, status: int = 400, details: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.details = details


# What a thread keeps, and a turn that goes on with it must not repeat.
THREADED = ("system", "tools")


def unthreaded(raw: bytes, threads: Mapping[str, Json]) -> tuple[bytes, bool]:
    """The whole conversation in place of a turn that goes on with a thread, and whether the answer is to be kept."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return raw, False
    thread = body.get("thread") if isinstance(body, dict) else None
    if not isinstance(thread, dict) or thread.get("type") != "continue" or not isinstance(body.get("messages"), list):
        return raw, thread is not None
    kept = threads.get(thread["previous_message_id"])
    if kept is None:
        raise Broken("No thread goes on from this message.", 404, {"error_code": "thread_not_found"})
    if repeated := [name for name in THREADED if name in body]:
        raise Broken(f"{repeated[0]}: is the thread's, and must not be sent with `continue`.")
    return msgspec.json.encode({**body, **kept, "messages": [*kept["messages"], *body["messages"]]}), True


def checked(raw: bytes, params: Any, *, sampling: bool) -> Json:
    """The body, if the vendor would take it. `sampling`: `temperature`, `top_p` and `top_k` are fields."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise Broken("The request body is not valid JSON") from error
    if not isinstance(body, dict):
        raise Broken("Input should be an object")
    plain = {name: value for name, value in body.items() if not (sampling and name in _SAMPLING)}
    if wrong := misfit(plain, params):
        raise Broken(_said(wrong))
    if sampling:
        _check_sampling(body)
    _check_limits(body)
    _check_tools(body)
    wanted = (body.get("output_config") or {}).get("format") or {}
    if wrong_schema := flaw(wanted.get("schema", {})):
        raise Broken(f"output_config.format.schema: JSON schema is invalid: {wrong_schema}")
    _check_turns(body["messages"], sampling=sampling)
    _check_thinking(body)
    return body


def last_turn(messages: list[Json]) -> Prompt:
    """The user turns at the end, which count as one."""
    texts: list[str] = []
    attachments: list[str] = []
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant" and (texts or attachments or results):
            break
        if message["role"] != "user":
            continue
        for block in reversed(_blocks(message)):
            if block["type"] == "text":
                texts.append(block["text"])
            elif block["type"] in {"image", "document"}:
                attachments.append(_attached(block))
            elif block["type"] == "tool_result":
                content = block.get("content", "")
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                said = [part["text"] if part["type"] == "text" else _attached(part) for part in parts]
                results.append(("error: " if block.get("is_error") else "") + " ".join(said))
    return Prompt("\n".join(reversed(texts)), attachments[::-1], results[::-1])


def caches(value: Any) -> bool:
    """Whether a `cache_control` is anywhere in it."""
    if isinstance(value, dict):
        return bool(value.get("cache_control")) or any(map(caches, value.values()))
    return isinstance(value, list) and any(map(caches, value))


def _attached(block: Json) -> str:
    source = block.get("source", {})
    if source.get("type") == "base64":
        try:
            return attachment(source["media_type"], source["data"])
        except ValueError:
            raise Broken(f"messages: invalid base64 data in {block['type']}") from None
    if source.get("type") == "text":
        return f"[{source['media_type']}, {len(source['data'])} bytes]"
    return f"[{block['type']} at {source.get('url') or source.get('file_id')}]"


def _said(wrong: Misfit) -> str:
    told = {
        "unknown": "Extra inputs are not permitted",
        "missing": "Field required",
        "type": f"Input should be {re.sub(r'^an? ', 'a valid ', wrong.wanted)}",
        "value": f"Input should be {wrong.wanted}",
    }
    return f"{'.'.join(map(str, wrong.path))}: {told[wrong.kind]}"


def _check_sampling(body: Json) -> None:
    for name, (kind, most) in _SAMPLING.items():
        value = body.get(name)
        if name in body and misfit(value, kind):
            raise Broken(f"{name}: Input should be a valid {'number' if kind is float else 'integer'}")
        if value is not None and not 0 <= value <= most:
            raise Broken(f"{name}: range: 0..{most:g}")


def _check_limits(body: Json) -> None:
    if not body["messages"]:
        raise Broken("messages: at least one message is required")
    if body.get("max_tokens", 1) < 0:
        raise Broken("max_tokens: must be greater than or equal to 0")
    for stop in body.get("stop_sequences", ()):
        if not stop.strip():
            raise Broken("stop_sequences: each stop sequence must contain non-whitespace")


def _check_tools(body: Json) -> None:
    tools = body.get("tools", [])
    for place, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            continue
        if not _NAME.fullmatch(tool["name"]):
            raise Broken(f"tools.{place}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if tool["input_schema"].get("type") != "object":
            raise Broken(f"tools.{place}.custom.input_schema.type: Field required")
        if wrong := flaw(tool["input_schema"]):
            raise Broken(f"tools.{place}.custom.input_schema: JSON schema is invalid: {wrong}")
    names = [tool.get("name") for tool in tools]
    if len(set(names)) < len(names):
        raise Broken("tools: Tool names must be unique.")
    choice = body.get("tool_choice", {})
    if choice and not tools:
        raise Broken("tool_choice: may only be specified while providing tools")
    if choice.get("type") == "tool" and choice["name"] not in names:
        raise Broken(f"tool_choice.name: Tool '{choice['name']}' not found in provided tools")


def _check_turns(messages: list[Json], *, sampling: bool) -> None:
    if messages[0]["role"] != "user":
        raise Broken('messages: first message must use the "user" role')
    turns = list(_turns(messages))
    for number, (role, blocks) in enumerate(turns):
        for place, block in enumerate(blocks):
            _check_block(f"messages.{number}.content.{place}", role, block, sampling=sampling)
        calls = {block["id"] for block in blocks if block["type"] == "tool_use"}
        following = turns[number + 1][1] if number + 1 < len(turns) else None
        answered = [block["tool_use_id"] for block in following or () if block["type"] == "tool_result"]
        if calls and following is not None and (missing := sorted(calls - set(answered))):
            raise Broken(
                f"messages.{number + 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
                "next message."
            )
        before = turns[number - 1][1] if number else []
        known = {block["id"] for block in before if block["type"] == "tool_use"}
        for place, block in enumerate(blocks):
            if block["type"] == "tool_result" and block["tool_use_id"] not in known:
                raise Broken(
                    f"messages.{number}.content.{place}: unexpected `tool_use_id` found in `tool_result` blocks: "
                    f"{block['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use` block in "
                    "the previous message."
                )
        kinds = [block["type"] == "tool_result" for block in blocks]
        if kinds != sorted(kinds, reverse=True):
            raise Broken(f"messages.{number}: `tool_result` blocks must come before any other content")


def _check_block(where: str, role: str, block: Json, *, sampling: bool) -> None:
    kind = block["type"]
    if kind == "text" and not block["text"].strip():
        raise Broken(f"{where}.text: text content blocks must be non-empty and contain non-whitespace text")
    if kind in {"tool_use", "thinking", "redacted_thinking"} and role != "assistant":
        raise Broken(f"{where}: `{kind}` blocks can only be in `assistant` messages")
    if kind in {"tool_result", "image"} and role != "user":
        raise Broken(f"{where}: `{kind}` blocks can only be in `user` messages")
    if not sampling and kind == "document" and role == "assistant":
        raise Broken(f"{where}: `document` blocks are not permitted in `assistant` messages")
    if not sampling and kind == "text" and role == "user" and block.get("citations"):
        raise Broken(f"{where}.citations: Extra inputs are not permitted")
    if kind == "tool_use" and not _ID.fullmatch(block["id"]):
        raise Broken(f"{where}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if kind == "thinking" and block["signature"] != sign("thinking", block["thinking"]):
        raise Broken(f"{where}: Invalid `signature` in `thinking` block")
    if kind == "redacted_thinking" and unsealed(block["data"]) is None:
        raise Broken(f"{where}: Invalid `data` in `redacted_thinking` block")
    if kind in {"image", "document"}:
        _attached(block)


def _check_thinking(body: Json) -> None:
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled":
        if thinking["budget_tokens"] < LEAST_BUDGET:
            raise Broken(f"thinking.enabled.budget_tokens: Input should be greater than or equal to {LEAST_BUDGET}")
        if thinking["budget_tokens"] >= body.get("max_tokens", thinking["budget_tokens"] + 1):
            raise Broken("`max_tokens` must be greater than `thinking.budget_tokens`")
        if body.get("temperature") not in (None, 1):
            raise Broken("`temperature` may only be set to 1 when thinking is enabled")
        role, blocks = list(_turns(body["messages"]))[-1]
        if role == "user" and any(block["type"] == "tool_result" for block in blocks):
            number, (_, before) = list(enumerate(_turns(body["messages"])))[-2]
            if before[0]["type"] not in {"thinking", "redacted_thinking"}:
                raise Broken(
                    f"messages.{number}.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
                    f"`{before[0]['type']}`. When `thinking` is enabled, a final `assistant` message must start with a "
                    "thinking block"
                )
    if thinking.get("type") in {"enabled", "adaptive"} and body.get("tool_choice", {}).get("type") in {"any", "tool"}:
        raise Broken("Thinking may not be enabled when tool_choice forces tool use.")


def _turns(messages: list[Json]) -> Iterator[tuple[str, list[Json]]]:
    """Messages of the same role one after another are one turn. System messages belong to none."""
    role = ""
    blocks: list[Json] = []
    for place, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if not message["content"] and place < len(messages) - 1:
            raise Broken(f"messages.{place}: {message['role']} messages must have non-empty content")
        if message["role"] != role:
            if blocks:
                yield role, blocks
            role, blocks = message["role"], []
        blocks += _blocks(message)
    if blocks:
        yield role, blocks


def _blocks(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
