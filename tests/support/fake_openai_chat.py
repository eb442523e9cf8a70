"""OpenAI's chat completions as its fake answers them, whole and in chunks."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from openai.types.chat.completion_create_params import CompletionCreateParams

from tests.support import fake_openai_rules as rules
from tests.support.fake_scenario import (
    PAGE,
    REFUSAL,
    SAID_BEFORE_A_CALL,
    THOUGHT,
    Prompt,
    answer,
    digest,
    filled,
    pieces,
    tokens,
)
from tests.support.fake_vendor import SSE, Json, Reply, event, whole

CREATED = 1_760_000_000
BROKEN_OFF = {"error": {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}}


def reply(raw: bytes) -> Reply:
    body = rules.decoded(raw)
    rules.check(_without_annotations(body), CompletionCreateParams)
    rules.check_chat(body)
    exchange = _Exchange(body)
    if body.get("stream") is not True:
        return whole(exchange.completion())
    return Reply([*exchange.chunks(), b"data: [DONE]\n\n"], media_type=SSE, error_event=event(BROKEN_OFF))


def _without_annotations(body: Json) -> Json:
    """The types of the SDK do not know them in a request; the API takes its own message back as it is."""
    given = body.get("messages")
    if not isinstance(given, list):
        return body
    messages = [
        {name: value for name, value in message.items() if name != "annotations"}
        if isinstance(message, dict) and message.get("role") == "assistant"
        else message
        for message in given
    ]
    return {**body, "messages": messages}


class _Exchange:
    def __init__(self, body: Json) -> None:
        self._body = body
        self._prompt = _last_turn(body["messages"])
        self._id = digest(msgspec.json.encode({**body, "stream": None, "stream_options": None}).decode())
        if self._prompt.asks("block"):
            raise rules.Broken(
                "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                code="invalid_prompt",
            )
        self._messages = [self._message(index) for index in range(body.get("n") or 1)]

    def completion(self) -> Json:
        choices = [
            {"index": index, "message": message, "logprobs": self._logprobs(message), "finish_reason": reason}
            for index, (message, reason) in enumerate(self._messages)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def chunks(self) -> Iterator[bytes]:
        streams = [list(self._deltas(message)) for message, _ in self._messages]
        for index in range(len(streams)):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for step in range(max(map(len, streams))):
            for index, deltas in enumerate(streams):
                if step < len(deltas):
                    yield self._chunk(index, deltas[step])
        for index, (_, reason) in enumerate(self._messages):
            yield self._chunk(index, {}, reason)
        if self._counts:
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})

    def _message(self, index: int) -> tuple[Json, str]:
        prompt, body = self._prompt, self._body
        message: Json = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        if prompt.asks("reason"):
            message["reasoning_content"] = THOUGHT
        if prompt.asks("refuse"):
            return {**message, "refusal": REFUSAL}, "stop"
        if calls := self._calls():
            before = SAID_BEFORE_A_CALL if prompt.asks("say") else None
            return {**message, "content": before, "tool_calls": calls}, "tool_calls"
        stops = body.get("stop") or []
        said = answer(
            prompt,
            limit=body.get("max_completion_tokens") or body.get("max_tokens"),
            stops=[stops] if isinstance(stops, str) else stops,
            schema=_schema(body.get("response_format") or {}),
        )
        text = f"{said.text} ({index})" if index else said.text
        if prompt.asks("cite") or (prompt.asks("search") and "web_search_options" in body):
            cited = {**PAGE, "start_index": 0, "end_index": min(8, len(text))}
            message["annotations"] = [{"type": "url_citation", "url_citation": cited}]
        reason = "content_filter" if prompt.asks("filter") else "length" if said.cut == "length" else "stop"
        return {**message, "content": text}, reason

    def _calls(self) -> list[Json]:
        functions = [tool["function"] for tool in self._body.get("tools") or () if tool["type"] == "function"]
        chosen = called(functions, self._body, self._prompt)
        return [
            {
                "id": f"call_{digest(self._id, str(place))}",
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments(function, self._prompt)},
            }
            for place, function in enumerate(chosen)
        ]

    def _deltas(self, message: Json) -> Iterator[Json]:
        if "reasoning_content" in message:
            yield from ({"reasoning_content": piece} for piece in pieces(message["reasoning_content"]))
        for field in ("refusal", "content"):
            for piece in pieces(message[field] or ""):
                yield {field: piece}
        if message["annotations"]:
            yield {"annotations": message["annotations"]}
        # One call after the other: the SDK takes a call for finished when the next begins.
        for index, call in enumerate(message.get("tool_calls", ())):
            yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
            for piece in pieces(call["function"]["arguments"]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def _chunk(self, index: int, delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(delta), "finish_reason": reason}
        counted = {"usage": None} if self._counts else {}
        head = self._head("chat.completion.chunk")
        return event({**head, "choices": [choice], **counted, "obfuscation": digest(str(index), str(delta))[:8]})

    @property
    def _counts(self) -> bool:
        return bool((self._body.get("stream_options") or {}).get("include_usage"))

    def _head(self, kind: str) -> Json:
        head = {"id": f"chatcmpl-{self._id}", "object": kind, "created": CREATED, "model": self._body["model"]}
        return {**head, "service_tier": "default", "system_fingerprint": "fp_fake"}

    def _logprobs(self, message: Json) -> Json | None:
        if not self._body.get("logprobs") or not message.get("content"):
            return None
        return {"content": logprobs(message["content"], self._body.get("top_logprobs") or 0), "refusal": None}

    def _usage(self) -> Json:
        read = tokens([self._body["messages"], self._body.get("tools") or []])
        reasoned = 0 if self._body.get("reasoning_effort") in (None, "none") else tokens(THOUGHT)
        written = sum(_written(message) for message, _ in self._messages) + reasoned
        cached = read // 2 if self._prompt.asks("cached") else 0
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": reasoned,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def called(functions: Sequence[Json], body: Json, prompt: Prompt) -> Sequence[Json]:
    """The functions that the request or its marks want called; each has a `name`."""
    choice = body.get("tool_choice") or "auto"
    if choice == "none" or not functions:
        return []
    if isinstance(choice, dict) and choice.get("type") == "function":
        wanted = choice.get("name") or choice["function"]["name"]
        found: Sequence[Json] = [function for function in functions if function["name"] == wanted]
    elif prompt.call is not None:
        found = [function for function in functions if function["name"] == prompt.call[0]]
    elif prompt.asks("tools"):
        found = functions if len(functions) > 1 else [*functions, *functions]
    elif prompt.asks("tool") or prompt.asks("empty") or choice == "required":
        found = functions[:1]
    else:
        found = []
    return found[:1] if body.get("parallel_tool_calls") is False else found


def arguments(function: Json, prompt: Prompt) -> str:
    return msgspec.json.encode(filled(function.get("parameters") or {"type": "object"}, prompt)).decode()


def logprobs(text: str, top: int) -> list[Json]:
    def one(token: str, logprob: float) -> Json:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return [
        {**one(piece, -0.25), "top_logprobs": [one(piece, -0.25), *(one(f"x{i}", -2.5) for i in range(1, top))][:top]}
        for piece in pieces(text)
    ]


def _written(message: Json) -> int:
    calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    return tokens([message["content"] or "", message["refusal"] or "", *calls])


def _schema(asked_format: Json) -> Any:
    if asked_format.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return asked_format["json_schema"].get("schema") if asked_format.get("type") == "json_schema" else None


def _last_turn(messages: list[Json]) -> Prompt:
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] == "tool":
            results.insert(0, _text(message["content"]))
        elif message["role"] == "user":
            content = message["content"]
            parts = content if isinstance(content, list) else []
            attachments = [rules.attached(part) for part in parts if part["type"] != "text"]
            return Prompt(_text(content), attachments, results)
    return Prompt("", (), results)


def _text(content: Any) -> str:
    return (
        content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content if "text" in part)
    )
