"""OpenAI's Responses as its fake answers them, whole and in events."""

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
from openai.types.responses.response_create_params import ResponseCreateParams

from tests.support import fake_openai_rules as rules
from tests.support.fake_openai_chat import CREATED, arguments, called, logprobs
from tests.support.fake_scenario import (
    PAGE,
    REFUSAL,
    SAID_BEFORE_A_CALL,
    THOUGHT,
    Prompt,
    Said,
    answer,
    digest,
    pieces,
    sealed,
    tokens,
    unsealed,
)
from tests.support.fake_vendor import SSE, Json, Reply, event, whole


class Responses:
    """Keeps what it said, for `previous_response_id`."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Json]] = {}

    def reply(self, raw: bytes) -> Reply:
        body = rules.decoded(raw)
        given = body.get("input")
        checked = dict(body)
        if isinstance(given, list):
            checked["input"] = [_filled(item) for item in given]
        if isinstance(body.get("tools"), list):
            checked["tools"] = [_filled_tool(tool) for tool in body["tools"]]
        checked.pop("client_metadata", None)  # the types of the SDK do not know it; codex sends it
        rules.check(checked, ResponseCreateParams)
        items = [*self._before(body), *_items(given)]
        _check(body, items)
        exchange = _Exchange(body, items)
        response = exchange.response()
        if body.get("store") is not False:
            self._kept[response["id"]] = [*items, *response["output"]]
        if body.get("stream") is not True:
            return whole(response)
        broken = {"type": "error", "code": "server_error", "message": "The server had an error.", "param": None}
        return Reply(
            list(_events(response)), media_type=SSE, error_event=event({**broken, "sequence_number": 3}, "error")
        )

    def _before(self, body: Json) -> list[Json]:
        before = body.get("previous_response_id")
        if before is None:
            return []
        if before not in self._kept:
            raise rules.Broken(
                f"Previous response with id '{before}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return self._kept[before]


def _items(given: Any) -> list[Json]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())


def _filled_tool(tool: Any) -> Any:
    return {"strict": None, **tool} if isinstance(tool, dict) and tool.get("type") == "function" else tool


def _filled(item: Any) -> Any:
    """The item with what the API does without although the types of the SDK want it, and without what it takes
    although they do not know it."""
    if not isinstance(item, dict):
        return item
    if item.get("type") == "reasoning":
        return {"id": "rs_0", **{name: value for name, value in item.items() if value is not None}}
    content = item.get("content")
    if item.get("role") == "assistant" and isinstance(content, list):
        filled = [
            {"annotations": [], **part} if isinstance(part, dict) and part.get("type") == "output_text" else part
            for part in content
        ]
        return {"id": "msg_0", "status": "completed", "type": "message", **item, "content": filled}
    item = {name: value for name, value in item.items() if name != "id" or "role" not in item}
    for field in ("content", "output"):
        if isinstance(parts := item.get(field), list):
            item[field] = [
                {"detail": "auto", **part} if isinstance(part, dict) and part.get("type") == "input_image" else part
                for part in parts
            ]
    return item


def _check(body: Json, items: list[Json]) -> None:
    if not items and not body.get("prompt"):
        raise rules.Broken("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    functions = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    rules.check_tools(functions, body.get("tool_choice"))
    asked_format = (body.get("text") or {}).get("format") or {}
    if asked_format.get("type") == "json_schema":
        rules.check_schema("text.format", asked_format)
    calls = {item["call_id"] for item in items if item.get("type") == "function_call"}
    answered = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    for call_id in answered:
        if call_id not in calls:
            raise rules.Broken(f"No tool call found for function call output with call_id {call_id}.", param="input")
    for call_id in sorted(calls - set(answered)):
        raise rules.Broken(f"No tool output found for function call {call_id}.", param="input")
    for place, item in enumerate(items):
        if item.get("type") != "reasoning":
            continue
        if item.get("encrypted_content") and unsealed(item["encrypted_content"]) is None:
            raise rules.Broken("The encrypted content could not be verified.", code="invalid_encrypted_content")
        if place + 1 == len(items) or items[place + 1].get("role") == "user":
            raise rules.Broken(
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.",
                param="input",
            )


def _last_turn(items: list[Json]) -> Prompt:
    results: list[str] = []
    for item in reversed(items):
        if item.get("type") == "function_call_output":
            results.insert(0, _read(item["output"])[0])
        elif item.get("role") == "user":
            text, attachments = _read(item["content"])
            return Prompt(text, attachments, results)
    return Prompt("", (), results)


def _read(content: Any) -> tuple[str, list[str]]:
    if isinstance(content, str):
        return content, []
    texts = [part["text"] for part in content if part["type"] == "input_text"]
    return "\n".join(texts), [rules.attached(part) for part in content if part["type"] != "input_text"]


class _Exchange:
    def __init__(self, body: Json, items: list[Json]) -> None:
        self._body = body
        self._items = items
        self._prompt = _last_turn(items)
        self._id = digest(msgspec.json.encode({**body, "stream": None, "stream_options": None}).decode())
        if self._prompt.asks("block"):
            raise rules.Broken(
                "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                code="invalid_prompt",
            )
        self._cut: str | None = None
        self._output = list(self._content())

    def response(self) -> Json:
        body = self._body
        reasoning = body.get("reasoning") or {}
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": CREATED,
            "completed_at": None if self._cut else CREATED + 1,
            "status": "incomplete" if self._cut else "completed",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": self._cut} if self._cut else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "max_tool_calls": body.get("max_tool_calls"),
            "metadata": body.get("metadata") or {},
            "model": body["model"],
            "output": self._output,
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": body.get("previous_response_id"),
            "prompt_cache_key": body.get("prompt_cache_key"),
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": None,
            "service_tier": "default",
            "temperature": body.get("temperature", 1.0),
            "text": {"verbosity": "medium", **(body.get("text") or {"format": {"type": "text"}})},
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools") or [],
            "top_logprobs": body.get("top_logprobs", 0),
            "top_p": body.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": self._usage(),
            "user": None,
        }

    def _content(self) -> Iterator[Json]:
        prompt, body = self._prompt, self._body
        if self._reasons:
            yield self._reasoning()
        if prompt.asks("refuse"):
            yield self._message([{"type": "refusal", "refusal": REFUSAL}])
            return
        functions = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
        if calls := called(functions, body, prompt):
            if prompt.asks("say"):
                yield self._message([self._text(SAID_BEFORE_A_CALL)])
            for place, function in enumerate(calls):
                number = digest(self._id, str(place))
                call: Json = {"call_id": f"call_{number}", "name": function["name"]}
                filled = {"arguments": arguments(function, prompt), "status": "completed"}
                yield {"id": f"fc_{number}", "type": "function_call", **call, **filled}
            return
        cites = prompt.asks("cite")
        if prompt.asks("search") and any(tool["type"].startswith("web_search") for tool in body.get("tools") or ()):
            action = {"type": "search", "query": prompt.text, "queries": [prompt.text]}
            yield {"id": f"ws_{self._id}", "type": "web_search_call", "status": "completed", "action": action}
            cites = True
        said = self._said()
        self._cut = "content_filter" if prompt.asks("filter") else "max_output_tokens" if said.cut else None
        part = self._text(said.text)
        if cites:
            end = min(8, len(said.text))
            part["annotations"] = [{"type": "url_citation", **PAGE, "start_index": 0, "end_index": end}]
        yield self._message([part])

    def _said(self) -> Said:
        wanted = (self._body.get("text") or {}).get("format") or {}
        schema = wanted.get("schema")
        if wanted.get("type") == "json_object":
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        return answer(self._prompt, limit=self._body.get("max_output_tokens"), stops=[], schema=schema)

    @property
    def _reasons(self) -> bool:
        reasoning = self._body.get("reasoning")
        return reasoning is not None and reasoning.get("effort") != "none"

    @property
    def _included(self) -> list[str]:
        included: list[str] = self._body.get("include") or []
        return included

    def _reasoning(self) -> Json:
        summarised = (self._body.get("reasoning") or {}).get("summary") is not None
        item: Json = {"id": f"rs_{self._id}", "type": "reasoning", "summary": []}
        if summarised:
            item["summary"] = [{"type": "summary_text", "text": THOUGHT}]
        if "reasoning.encrypted_content" in self._included:
            item["encrypted_content"] = sealed(THOUGHT)
        return item

    def _message(self, content: list[Json]) -> Json:
        status = "incomplete" if self._cut else "completed"
        return {"id": f"msg_{self._id}", "type": "message", "status": status, "role": "assistant", "content": content}

    def _text(self, text: str) -> Json:
        wanted = "message.output_text.logprobs" in self._included
        found = logprobs(text, self._body.get("top_logprobs") or 0) if wanted else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": found}

    def _usage(self) -> Json:
        read = tokens([self._items, self._body.get("instructions") or "", self._body.get("tools") or []])
        said = [part.get("text") or part.get("refusal") for item in self._output for part in item.get("content", ())]
        reasoned = tokens(THOUGHT) if self._reasons else 0
        written = tokens([said, [item.get("arguments", "") for item in self._output]]) + reasoned
        cached = read // 2 if self._prompt.asks("cached") else 0
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": reasoned},
            "total_tokens": read + written,
        }


def _events(response: Json) -> Iterator[bytes]:
    for number, (kind, payload) in enumerate(_told(response)):
        yield event({"type": kind, "sequence_number": number, **payload}, kind)


def _told(response: Json) -> Iterator[tuple[str, Json]]:
    begun: Json = {
        "status": "in_progress",
        "output": [],
        "usage": None,
        "incomplete_details": None,
        "completed_at": None,
    }
    yield "response.created", {"response": {**response, **begun}}
    yield "response.in_progress", {"response": {**response, **begun}}
    for index, item in enumerate(response["output"]):
        where = {"output_index": index, "item_id": item["id"]}
        kind = item["type"]
        if kind == "message":
            opened, inside = {**item, "status": "in_progress", "content": []}, _message_events(item, where)
        elif kind == "function_call":
            opened, inside = {**item, "status": "in_progress", "arguments": ""}, _call_events(item, where)
        elif kind == "reasoning":
            opened, inside = {**item, "summary": []}, _reasoning_events(item, where)
        else:
            steps = ("in_progress", "searching", "completed")
            opened = {**item, "status": "in_progress"}
            inside = iter([(f"response.web_search_call.{step}", where) for step in steps])
        yield "response.output_item.added", {"output_index": index, "item": opened}
        yield from inside
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield f"response.{response['status']}", {"response": response}


def _message_events(item: Json, where: Json) -> Iterator[tuple[str, Json]]:
    for index, part in enumerate(item["content"]):
        place = {**where, "content_index": index}
        field = "refusal" if part["type"] == "refusal" else "text"
        kind = "response.refusal" if field == "refusal" else "response.output_text"
        empty = {**part, field: "", **({"annotations": [], "logprobs": []} if field == "text" else {})}
        yield "response.content_part.added", {**place, "part": empty}
        split = pieces(part[field])
        told = [_brief(token) for token in part.get("logprobs", ())]
        for piece, token in itertools.zip_longest(split, told):
            extra = {"logprobs": [token] if token else []} if field == "text" else {}
            yield f"{kind}.delta", {**place, "delta": piece, **extra}
        for number, annotation in enumerate(part.get("annotations", ())):
            yield (
                "response.output_text.annotation.added",
                {**place, "annotation_index": number, "annotation": annotation},
            )
        yield f"{kind}.done", {**place, field: part[field], **({"logprobs": told} if field == "text" else {})}
        yield "response.content_part.done", {**place, "part": part}


def _brief(token: Json) -> Json:
    """A logprob as events have it: without bytes."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in token["top_logprobs"]]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": top}


def _call_events(item: Json, where: Json) -> Iterator[tuple[str, Json]]:
    for piece in pieces(item["arguments"]):
        yield "response.function_call_arguments.delta", {**where, "delta": piece}
    yield "response.function_call_arguments.done", {**where, "arguments": item["arguments"]}


def _reasoning_events(item: Json, where: Json) -> Iterator[tuple[str, Json]]:
    for index, part in enumerate(item["summary"]):
        place = {**where, "summary_index": index}
        yield "response.reasoning_summary_part.added", {**place, "part": {**part, "text": ""}}
        for piece in pieces(part["text"]):
            yield "response.reasoning_summary_text.delta", {**place, "delta": piece}
        yield "response.reasoning_summary_text.done", {**place, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**place, "part": part}
