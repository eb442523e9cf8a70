"""One question in each dialect, as a client writes it by hand, and its answer, whole or streamed, as a client reads it.

Nothing here is shared with the gateway's own dialects: what these write and
read is what the vendors' documentation says.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from models.request import Dialect

Json = dict[str, Any]
Finish = Literal["stop", "length", "tool_calls", "filtered"]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = "JVBERi0xLjQKJSVFT0YK"
SOUND = "UklGRiQAAABXQVZFZm10IA=="
PICTURE_AT = "https://example.com/cat.png"
PAPER_AT = "https://example.com/paper.pdf"
THINKING_TOKENS = 2048

Attachment = Literal["image", "image at", "document", "document at", "audio"]


class Unsaid(Exception):
    """The dialect has no words for that."""


class Tool(NamedTuple):
    name: str
    description: str
    schema: Json


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A question. `earlier` are turns of user and assistant; `must_call` names the tool to call; `effort` says how much
    to think, `thinks` asks to read and to keep the thoughts; `more` are fields that one dialect alone has, at the top
    level of its body."""

    text: str
    system: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    attached: Attachment | None = None
    tools: tuple[Tool, ...] = ()
    must_call: str | None = None
    one_call: bool = False
    limit: int = 4096
    temperature: float | None = None
    stop: str | None = None
    schema: Json | None = None
    any_json: bool = False
    effort: str | None = None
    thinks: bool = False
    logprobs: bool = False
    choices: int = 1
    more: Mapping[str, Json] = {}


class Spoken(NamedTuple):
    """`read` and `written` count every token, those `cached` and `thought` among them."""

    read: int
    written: int
    cached: int
    thought: int


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says, whichever dialect says it: texts (one a choice, refusals too), calls with their arguments
    as values, logprobs as token, its own and its rivals'."""

    texts: tuple[str, ...]
    thoughts: str
    calls: tuple[tuple[str, Any], ...]
    finish: Finish
    tokens: Spoken
    logprobs: tuple[tuple[str, float, tuple[tuple[str, float], ...]], ...] = ()


class Told(NamedTuple):
    """An error: what it says, and the field it names where the dialect has a place for that."""

    message: str
    field: str | None


class Speaker(Protocol):
    """A client of one dialect. `native` is the part of an answer that a model goes on from: ids, signatures,
    citations, in order; without what docs/dialects says is not kept."""

    name: Dialect

    def path(self, model: str, *, stream: bool) -> str: ...

    def body(self, ask: Ask, model: str, *, stream: bool) -> Json:
        """Raises `Unsaid`."""

    def whole(self, stream: str) -> Json:
        """A stream put together to the whole answer. Raises AssertionError where it is not well-formed."""

    def heard(self, answer: Json) -> Heard: ...

    def native(self, answer: Json) -> Any: ...

    def going_on(self, body: Json, answer: Json, results: Sequence[str], text: str = "") -> Json:
        """`body` with the answer as its next turn, then the results of its calls in order, or what the user says."""

    def error(self, answer: Json) -> Told: ...

    def broken(self, stream: str) -> str:
        """What the error that ends the stream says. Raises AssertionError where there is none."""


def events(stream: str) -> Iterator[tuple[str, str]]:
    """Name (or nothing) and payload of each."""
    for block in stream.replace("\r\n", "\n").split("\n\n"):
        name, payload = "", []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            if field == "event":
                name = value.strip()
            elif field == "data":
                payload.append(value.removeprefix(" "))
        if payload:
            yield name, "\n".join(payload)


class ChatSpeaker:
    name: Dialect = "openai"

    def path(self, model: str, *, stream: bool) -> str:
        del model, stream
        return "/v1/chat/completions"

    def body(self, ask: Ask, model: str, *, stream: bool) -> Json:
        messages: list[Json] = [{"role": "system", "content": ask.system}] if ask.system else []
        for asked, said in ask.earlier:
            messages += {"role": "user", "content": asked}, {"role": "assistant", "content": said}
        parts: list[Json] = [{"type": "text", "text": ask.text}]
        if ask.attached is not None:
            parts.insert(0, self._attachment(ask.attached))
        messages.append({"role": "user", "content": ask.text if len(parts) == 1 else parts})
        body: Json = {"model": model, "messages": messages, "max_completion_tokens": ask.limit}
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        if ask.stop is not None:
            body["stop"] = [ask.stop]
        if ask.tools:
            body["tools"] = [
                {"type": "function", "function": {"name": name, "description": told, "parameters": schema}}
                for name, told, schema in ask.tools
            ]
        if ask.must_call:
            body["tool_choice"] = {"type": "function", "function": {"name": ask.must_call}}
        if ask.one_call:
            body["parallel_tool_calls"] = False
        if ask.schema is not None:
            wanted = {"name": "answer", "strict": True, "schema": ask.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        if ask.any_json:
            body["response_format"] = {"type": "json_object"}
        if ask.effort or ask.thinks:
            body["reasoning_effort"] = ask.effort or "low"
        if ask.logprobs:
            body |= {"logprobs": True, "top_logprobs": 2}
        if ask.choices > 1:
            body["n"] = ask.choices
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | ask.more.get(self.name, {})

    def _attachment(self, attached: Attachment) -> Json:
        if attached == "image":
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        if attached == "image at":
            return {"type": "image_url", "image_url": {"url": PICTURE_AT}}
        if attached == "document":
            return {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}}
        if attached == "audio":
            return {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
        raise Unsaid

    def whole(self, stream: str) -> Json:
        *payloads, end = [payload for _, payload in events(stream)]
        assert end == "[DONE]"
        whole: Json = {}
        choices: dict[int, Json] = {}
        for payload in payloads:
            chunk = json.loads(payload)
            assert chunk["object"] == "chat.completion.chunk"
            whole |= {name: chunk[name] for name in ("id", "model", "created", "usage") if chunk.get(name) is not None}
            for piece in chunk["choices"]:
                choice = choices.setdefault(piece["index"], {"message": {}, "logprobs": None, "finish_reason": None})
                self._add(choice, piece)
        for choice in choices.values():
            if "tool_calls" in choice["message"]:
                choice["message"]["tool_calls"] = list(choice["message"]["tool_calls"].values())
        return {**whole, "choices": [{"index": index, **choices[index]} for index in sorted(choices)]}

    def _add(self, choice: Json, piece: Json) -> None:
        message, delta = choice["message"], piece["delta"]
        if piece.get("logprobs"):
            before = (choice["logprobs"] or {}).get("content") or []
            choice["logprobs"] = {**piece["logprobs"], "content": before + piece["logprobs"]["content"]}
        if piece.get("finish_reason"):
            assert choice["finish_reason"] is None
            choice["finish_reason"] = piece["finish_reason"]
        for name, value in delta.items():
            if name == "tool_calls":
                calls = message.setdefault(name, {})
                for part in value:
                    function = part["function"]
                    if part["index"] not in calls:
                        calls[part["index"]] = {**part, "function": {"arguments": "", **function}}
                        del calls[part["index"]]["index"]
                    else:
                        calls[part["index"]]["function"]["arguments"] += function["arguments"]
            elif name == "reasoning_details":
                details = message.setdefault(name, [])
                for part in value:
                    same = next((known for known in details if known["index"] == part["index"]), None)
                    if same is None:
                        details.append(dict(part))
                        continue
                    for field, text in part.items():
                        added = field in {"text", "summary", "data", "signature"} and field in same
                        same[field] = same[field] + text if added else text
            elif name != "role" and isinstance(value, str | list):
                message[name] = message[name] + value if message.get(name) else value
            elif value is not None or name not in message:
                message[name] = value

    def heard(self, answer: Json) -> Heard:
        messages = [choice["message"] for choice in answer["choices"]]
        first = answer["choices"][0]
        usage = answer["usage"]
        refused = any(message.get("refusal") for message in messages)
        return Heard(
            texts=tuple((message.get("content") or "") + (message.get("refusal") or "") for message in messages),
            thoughts=messages[0].get("reasoning_content") or "",
            calls=tuple(
                (call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in messages[0].get("tool_calls") or ()
            ),
            finish="filtered" if refused or first["finish_reason"] == "content_filter" else first["finish_reason"],
            tokens=Spoken(
                usage["prompt_tokens"],
                usage["completion_tokens"],
                (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
                (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
            ),
            logprobs=tuple(_logprob(token) for token in (first.get("logprobs") or {}).get("content") or ()),
        )

    def native(self, answer: Json) -> Any:
        return [
            {
                "message": {name: said for name, said in choice["message"].items() if said not in (None, [], "")},
                "logprobs": choice["logprobs"],
                "finish_reason": choice["finish_reason"],
            }
            for choice in answer["choices"]
        ]

    def going_on(self, body: Json, answer: Json, results: Sequence[str], text: str = "") -> Json:
        message = answer["choices"][0]["message"]
        # As SDKs do it: what says nothing stays behind.
        turn = {"role": "assistant", **{name: said for name, said in message.items() if said not in (None, [])}}
        told = [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(message.get("tool_calls") or (), results, strict=True)
        ]
        asked = [{"role": "user", "content": text}] if text else []
        return {**body, "messages": [*body["messages"], turn, *told, *asked]}

    def error(self, answer: Json) -> Told:
        return Told(answer["error"]["message"], answer["error"]["param"])

    def broken(self, stream: str) -> str:
        _, last = list(events(stream))[-1]
        message: str = json.loads(last)["error"]["message"]
        return message


class ResponsesSpeaker:
    name: Dialect = "responses"

    def path(self, model: str, *, stream: bool) -> str:
        del model, stream
        return "/v1/responses"

    def body(self, ask: Ask, model: str, *, stream: bool) -> Json:
        if ask.stop is not None or ask.choices > 1 or ask.attached == "audio":
            raise Unsaid
        items: list[Json] = []
        for asked, said in ask.earlier:
            items.append({"role": "user", "content": asked})
            items.append({"role": "assistant", "content": said})
        parts: list[Json] = [{"type": "input_text", "text": ask.text}]
        if ask.attached is not None:
            parts.insert(0, self._attachment(ask.attached))
        items.append({"role": "user", "content": parts})
        body: Json = {"model": model, "input": items, "max_output_tokens": ask.limit, "store": False}
        include = []
        if ask.system is not None:
            body["instructions"] = ask.system
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        if ask.tools:
            body["tools"] = [
                {"type": "function", "name": name, "description": told, "parameters": schema, "strict": False}
                for name, told, schema in ask.tools
            ]
        if ask.must_call:
            body["tool_choice"] = {"type": "function", "name": ask.must_call}
        if ask.one_call:
            body["parallel_tool_calls"] = False
        if ask.schema is not None:
            body["text"] = {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": ask.schema}}
        if ask.any_json:
            body["text"] = {"format": {"type": "json_object"}}
        if ask.effort:
            body["reasoning"] = {"effort": ask.effort}
        if ask.thinks:
            body["reasoning"] = {"effort": "low", "summary": "auto"}
            include.append("reasoning.encrypted_content")
        if ask.logprobs:
            body["top_logprobs"] = 2
            include.append("message.output_text.logprobs")
        if include:
            body["include"] = include
        if stream:
            body["stream"] = True
        return body | ask.more.get(self.name, {})

    def _attachment(self, attached: Attachment) -> Json:
        parts: dict[Attachment, Json] = {
            "image": {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
            "image at": {"type": "input_image", "image_url": PICTURE_AT, "detail": "auto"},
            "document": {
                "type": "input_file",
                "filename": "a.pdf",
                "file_data": f"data:application/pdf;base64,{PDF}",
            },
            "document at": {"type": "input_file", "file_url": PAPER_AT},
        }
        return parts[attached]

    def whole(self, stream: str) -> Json:
        told = [(name, json.loads(payload)) for name, payload in events(stream)]
        assert [name for name, _ in told] == [event["type"] for _, event in told]
        assert [event["sequence_number"] for _, event in told] == list(range(len(told)))
        assert [name for name, _ in told[:2]] == ["response.created", "response.in_progress"]
        items: dict[int, Json] = {}
        pieces: dict[tuple[int, str], str] = defaultdict(str)
        for name, event in told:
            if name == "response.output_item.done":
                items[event["output_index"]] = event["item"]
            elif name.endswith(".delta"):
                pieces[event["output_index"], name.removeprefix("response.").removesuffix(".delta")] += event["delta"]
        end, last = told[-1]
        assert end in {"response.completed", "response.incomplete"}, end
        whole: Json = last["response"]
        assert [items[index] for index in sorted(items)] == whole["output"]
        for index, item in items.items():
            for kind, said in _said_in(item):
                assert pieces.pop((index, kind), "") == said
        assert not pieces
        return whole

    def heard(self, answer: Json) -> Heard:
        output = answer["output"]
        parts = [part for item in output if item["type"] == "message" for part in item["content"]]
        calls = [item for item in output if item["type"] == "function_call"]
        reason = (answer["incomplete_details"] or {}).get("reason")
        assert answer["status"] == ("completed" if reason is None else "incomplete")
        refused = any(part["type"] == "refusal" for part in parts)
        usage = answer["usage"]
        finish: Finish = "tool_calls" if calls else "stop"
        if refused or reason == "content_filter":
            finish = "filtered"
        elif reason is not None:
            assert reason == "max_output_tokens"
            finish = "length"
        return Heard(
            texts=("".join(part.get("text") or part.get("refusal") or "" for part in parts),),
            thoughts="\n\n".join(
                part["text"]
                for item in output
                if item["type"] == "reasoning"
                for part in [*item["summary"], *item.get("content", ())]
            ),
            calls=tuple((call["name"], json.loads(call["arguments"])) for call in calls),
            finish=finish,
            tokens=Spoken(
                usage["input_tokens"],
                usage["output_tokens"],
                usage["input_tokens_details"]["cached_tokens"],
                usage["output_tokens_details"]["reasoning_tokens"],
            ),
            logprobs=tuple(_logprob(token) for part in parts for token in part.get("logprobs") or ()),
        )

    def native(self, answer: Json) -> Any:
        # The events of a stream have log probabilities without bytes.
        return without("bytes", answer["output"]), answer["status"], answer["incomplete_details"]

    def going_on(self, body: Json, answer: Json, results: Sequence[str], text: str = "") -> Json:
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        told = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": result}
            for call, result in zip(calls, results, strict=True)
        ]
        asked = [{"role": "user", "content": [{"type": "input_text", "text": text}]}] if text else []
        return {**body, "input": [*body["input"], *answer["output"], *told, *asked]}

    def error(self, answer: Json) -> Told:
        return Told(answer["error"]["message"], answer["error"]["param"])

    def broken(self, stream: str) -> str:
        told = [json.loads(payload) for _, payload in events(stream)]
        assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
        message: str = told[-2]["message"]
        return message


def _said_in(item: Json) -> Iterator[tuple[str, str]]:
    """What the deltas of an item have to add up to, by their kind."""
    if item["type"] == "message":
        for kind, field in (("output_text", "text"), ("refusal", "refusal")):
            yield kind, "".join(part[field] for part in item["content"] if part["type"] == kind)
    elif item["type"] == "function_call":
        yield "function_call_arguments", item["arguments"]
    elif item["type"] == "reasoning":
        yield "reasoning_summary_text", "".join(part["text"] for part in item["summary"])
        yield "reasoning_text", "".join(part["text"] for part in item.get("content", ()))


class AnthropicSpeaker:
    name: Dialect = "anthropic"

    def path(self, model: str, *, stream: bool) -> str:
        del model, stream
        return "/v1/messages"

    def body(self, ask: Ask, model: str, *, stream: bool) -> Json:
        if ask.choices > 1 or ask.logprobs or ask.any_json:
            raise Unsaid
        messages: list[Json] = []
        for asked, said in ask.earlier:
            messages += {"role": "user", "content": asked}, {"role": "assistant", "content": said}
        blocks: list[Json] = [{"type": "text", "text": ask.text}]
        if ask.attached is not None:
            blocks.insert(0, self._attachment(ask.attached))
        messages.append({"role": "user", "content": blocks})
        body: Json = {"model": model, "max_tokens": ask.limit, "messages": messages}
        if ask.system is not None:
            body["system"] = [{"type": "text", "text": ask.system, "cache_control": {"type": "ephemeral"}}]
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        if ask.stop is not None:
            body["stop_sequences"] = [ask.stop]
        if ask.tools:
            body["tools"] = [
                {"name": name, "description": told, "input_schema": schema} for name, told, schema in ask.tools
            ]
        if ask.must_call:
            body["tool_choice"] = {"type": "tool", "name": ask.must_call}
        if ask.one_call:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        if ask.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": ask.schema}}
        if ask.effort:
            body["output_config"] = {"effort": ask.effort}
        if ask.thinks:
            body["thinking"] = {"type": "enabled", "budget_tokens": THINKING_TOKENS}
        if stream:
            body["stream"] = True
        return body | ask.more.get(self.name, {})

    def _attachment(self, attached: Attachment) -> Json:
        if attached == "audio":
            raise Unsaid
        kind, _, at = attached.partition(" ")
        inline = {
            "image": {"type": "base64", "media_type": "image/png", "data": PIXEL},
            "document": {"type": "base64", "media_type": "application/pdf", "data": PDF},
        }
        where = {"image": PICTURE_AT, "document": PAPER_AT}
        block: Json = {"type": kind, "source": {"type": "url", "url": where[kind]} if at else inline[kind]}
        return {**block, "title": "a.pdf"} if attached == "document" else block

    def whole(self, stream: str) -> Json:
        told = [(name, json.loads(payload)) for name, payload in events(stream)]
        assert [name for name, _ in told] == [event["type"] for _, event in told]
        assert told[0][0] == "message_start"
        assert [name for name, _ in told[-2:]] == ["message_delta", "message_stop"]
        message: Json = told[0][1]["message"]
        arguments: dict[int, str] = {}
        for name, event in told[1:]:
            if name == "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                arguments[event["index"]] = ""
            elif name == "content_block_delta":
                self._add(message["content"][event["index"]], event, arguments)
            elif name == "content_block_stop":
                assert event["index"] == len(message["content"]) - 1
                if arguments[event["index"]]:
                    message["content"][-1]["input"] = json.loads(arguments[event["index"]])
            elif name == "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
        return message

    def _add(self, block: Json, event: Json, arguments: dict[int, str]) -> None:
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            arguments[event["index"]] += delta["partial_json"]
        elif delta["type"] == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        else:
            field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}[delta["type"]]
            block[field] += delta[field]

    def heard(self, answer: Json) -> Heard:
        blocks = answer["content"]
        usage = answer["usage"]
        cached = usage.get("cache_read_input_tokens") or 0
        finishes: dict[str, Finish] = {
            "end_turn": "stop",
            "stop_sequence": "stop",
            "max_tokens": "length",
            "tool_use": "tool_calls",
            "refusal": "filtered",
        }
        return Heard(
            texts=("".join(block["text"] for block in blocks if block["type"] == "text"),),
            thoughts="".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
            calls=tuple((block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"),
            finish=finishes[answer["stop_reason"]],
            tokens=Spoken(
                usage["input_tokens"] + cached + (usage.get("cache_creation_input_tokens") or 0),
                usage["output_tokens"],
                cached,
                (usage.get("output_tokens_details") or {}).get("thinking_tokens", 0),
            ),
        )

    def native(self, answer: Json) -> Any:
        unsaid = ("citations", None), ("caller", {"type": "direct"})
        blocks = [
            {name: value for name, value in block.items() if (name, value) not in unsaid} for block in answer["content"]
        ]
        return blocks, answer["stop_reason"], answer["stop_sequence"]

    def going_on(self, body: Json, answer: Json, results: Sequence[str], text: str = "") -> Json:
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        told: list[Json] = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ]
        asked = [{"type": "text", "text": text}] if text else []
        turn = {"role": "assistant", "content": answer["content"]}
        return {**body, "messages": [*body["messages"], turn, {"role": "user", "content": [*told, *asked]}]}

    def error(self, answer: Json) -> Told:
        assert answer["type"] == "error"
        return Told(answer["error"]["message"], None)

    def broken(self, stream: str) -> str:
        name, last = list(events(stream))[-1]
        assert name == "error"
        return self.error(json.loads(last)).message


class GeminiSpeaker:
    name: Dialect = "gemini"

    def path(self, model: str, *, stream: bool) -> str:
        return f"/genai/v1beta/models/{model}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"

    def body(self, ask: Ask, model: str, *, stream: bool) -> Json:
        del model, stream
        if ask.one_call:
            raise Unsaid
        contents: list[Json] = []
        for asked, said in ask.earlier:
            contents.append({"role": "user", "parts": [{"text": asked}]})
            contents.append({"role": "model", "parts": [{"text": said}]})
        parts: list[Json] = [{"text": ask.text}]
        if ask.attached is not None:
            parts.insert(0, self._attachment(ask.attached))
        contents.append({"role": "user", "parts": parts})
        config: Json = {"maxOutputTokens": ask.limit}
        body: Json = {"contents": contents, "generationConfig": config}
        if ask.system is not None:
            body["systemInstruction"] = {"parts": [{"text": ask.system}]}
        if ask.temperature is not None:
            config["temperature"] = ask.temperature
        if ask.stop is not None:
            config["stopSequences"] = [ask.stop]
        if ask.tools:
            declared = [
                {"name": name, "description": told, "parameters": _as_openapi(schema)}
                for name, told, schema in ask.tools
            ]
            body["tools"] = [{"functionDeclarations": declared}]
        if ask.must_call:
            body["toolConfig"] = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [ask.must_call]}}
        if ask.schema is not None:
            config |= {"responseMimeType": "application/json", "responseJsonSchema": ask.schema}
        if ask.any_json:
            config["responseMimeType"] = "application/json"
        if ask.effort:
            config["thinkingConfig"] = {"thinkingLevel": ask.effort.upper()}
        if ask.thinks:
            config["thinkingConfig"] = {"thinkingBudget": THINKING_TOKENS, "includeThoughts": True}
        if ask.logprobs:
            config |= {"responseLogprobs": True, "logprobs": 2}
        if ask.choices > 1:
            config["candidateCount"] = ask.choices
        return body | ask.more.get(self.name, {})

    def _attachment(self, attached: Attachment) -> Json:
        return {
            "image": {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
            "image at": {"fileData": {"mimeType": "image/png", "fileUri": PICTURE_AT}},
            "document": {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
            "document at": {"fileData": {"mimeType": "application/pdf", "fileUri": PAPER_AT}},
            "audio": {"inlineData": {"mimeType": "audio/wav", "data": SOUND}},
        }[attached]

    def whole(self, stream: str) -> Json:
        whole: Json = {}
        candidates: dict[int, Json] = {}
        for _, payload in events(stream):
            chunk = json.loads(payload)
            assert "error" not in chunk, chunk
            for piece in chunk.pop("candidates", ()):
                index = piece.get("index", 0)
                candidate = candidates.setdefault(index, {"index": index})
                assert "finishReason" not in candidate
                content = piece.pop("content", None)
                candidate |= piece
                if content is not None:
                    parts = candidate.setdefault("content", {"parts": [], "role": "model"})["parts"]
                    for part in content.get("parts", ()):
                        self._add(parts, part)
            whole |= chunk
        if candidates:
            whole["candidates"] = [candidates[index] for index in sorted(candidates)]
            assert all("finishReason" in candidate for candidate in candidates.values())
        return whole

    def _add(self, parts: list[Json], part: Json) -> None:
        last = parts[-1] if parts else {}
        together = "text" in part and "text" in last and part.get("thought") == last.get("thought")
        if together and ("thoughtSignature" not in last or not part["text"]):
            parts[-1] = {**last, **part, "text": last["text"] + part["text"]}
        elif part.get("text") != "" or "thoughtSignature" in part:
            parts.append(part)

    def heard(self, answer: Json) -> Heard:
        usage = answer["usageMetadata"]
        thought = usage.get("thoughtsTokenCount", 0)
        tokens = Spoken(
            usage["promptTokenCount"],
            usage.get("candidatesTokenCount", 0) + thought,
            usage.get("cachedContentTokenCount", 0),
            thought,
        )
        candidates = answer.get("candidates") or []
        if not candidates:
            assert answer["promptFeedback"]["blockReason"]
            return Heard(texts=("",), thoughts="", calls=(), finish="filtered", tokens=tokens)
        first = candidates[0]
        parts = [candidate.get("content", {}).get("parts", []) for candidate in candidates]
        calls = tuple(
            (part["functionCall"]["name"], part["functionCall"].get("args") or {})
            for part in parts[0]
            if "functionCall" in part
        )
        finishes: dict[str, Finish] = {"STOP": "tool_calls" if calls else "stop", "MAX_TOKENS": "length"}
        found = first.get("logprobsResult") or {}
        top = found.get("topCandidates") or [{} for _ in found.get("chosenCandidates", ())]
        return Heard(
            texts=tuple("".join(part.get("text", "") for part in said if not part.get("thought")) for said in parts),
            thoughts="".join(part["text"] for part in parts[0] if part.get("thought")),
            calls=calls,
            finish=finishes.get(first["finishReason"], "filtered"),
            tokens=tokens,
            logprobs=tuple(
                (
                    chosen["token"],
                    chosen["logProbability"],
                    tuple((other["token"], other["logProbability"]) for other in others.get("candidates") or ()),
                )
                for chosen, others in zip(found.get("chosenCandidates", ()), top, strict=True)
            ),
        )

    def native(self, answer: Json) -> Any:
        candidates = [
            {name: value for name, value in candidate.items() if name != "content" or value.get("parts")}
            for candidate in copy.deepcopy(answer.get("candidates") or [])
        ]
        for candidate in candidates:
            for part in candidate.get("content", {}).get("parts", ()):
                call = part.get("functionCall", {})
                if call.get("id", "").removeprefix("call_").isdecimal():  # given by the gateway to a call without one
                    part["functionCall"] = {name: call[name] for name in call if name != "id"}
        return without("tokenId", candidates), answer.get("promptFeedback")

    def going_on(self, body: Json, answer: Json, results: Sequence[str], text: str = "") -> Json:
        content = answer["candidates"][0]["content"]
        calls = [part["functionCall"] for part in content["parts"] if "functionCall" in part]
        told: list[Json] = [
            {"functionResponse": {**{name: call[name] for name in ("id", "name") if name in call},
                                  "response": {"result": result}}}
            for call, result in zip(calls, results, strict=True)
        ]  # fmt: skip
        asked = [{"text": text}] if text else []
        return {**body, "contents": [*body["contents"], content, {"role": "user", "parts": [*told, *asked]}]}

    def error(self, answer: Json) -> Told:
        fields = [
            violation["field"]
            for detail in answer["error"].get("details", ())
            for violation in detail.get("fieldViolations", ())
        ]
        return Told(answer["error"]["message"], fields[0] if fields else None)

    def broken(self, stream: str) -> str:
        _, last = list(events(stream))[-1]
        return self.error(json.loads(last)).message


def _as_openapi(schema: Any) -> Any:
    """As Google's SDK writes it: the types in capitals."""
    if isinstance(schema, dict):
        return {
            name: value.upper() if name == "type" and isinstance(value, str) else _as_openapi(value)
            for name, value in schema.items()
        }
    return schema


def without(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {field: without(name, inner) for field, inner in value.items() if field != name}
    return [without(name, inner) for inner in value] if isinstance(value, list | tuple) else value


def _logprob(token: Json) -> tuple[str, float, tuple[tuple[str, float], ...]]:
    return (
        token["token"],
        token["logprob"],
        tuple((other["token"], other["logprob"]) for other in token["top_logprobs"]),
    )


SPEAKERS: Mapping[Dialect, Speaker] = {
    speaker.name: speaker for speaker in (ChatSpeaker(), ResponsesSpeaker(), AnthropicSpeaker(), GeminiSpeaker())
}
