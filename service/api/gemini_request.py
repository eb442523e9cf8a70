"""A Gemini request in the canonical form of docs/dialects.md.

https://ai.google.dev/api/generate-content and https://ai.google.dev/api/caching#Content. The API reads protobuf's
JSON: a field may be written in camelCase or snake_case, null is the same as absent, and a list of one may come
without its brackets.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import msgspec

from models.errors import RequestError
from models.request import Request
from service.api.body import json_object, model_name
from service.api.carried import MARK, unpacked
from service.api.dialect import Asked
from service.caching.replay import LAID_OUT

SIGNATURE_FORMAT = "google-gemini-v1"

_NUMBERS = {
    "temperature": "temperature",
    "topP": "top_p",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
}
_INTEGERS = {"topK": "top_k", "maxOutputTokens": "max_completion_tokens", "seed": "seed"}

# What another dialect does not have, by what it loses without it. Nothing: no word of the answer depends on it.
_HARMLESS = frozenset({"serviceTier", "store"})
_HARMLESS_CONFIG = frozenset({"mediaResolution"})
_HARMLESS_PART = frozenset({"mediaResolution", "mediaProcessing", "audioTranscription"})
# Notes that never reach the model: no part of what is asked.
_NEUTRAL = frozenset({"labels", "model"})
_NEUTRAL_PART = frozenset({"partMetadata"})
# Another answer, or none.
_REFUSED = frozenset({"cachedContent", "continuationToken", "modelArmorConfig"})
_REFUSED_CONFIG = frozenset(
    {
        "audioTimestamp",
        "audioTranscriptionConfig",
        "enableAffectiveDialog",
        "enableEnhancedCivicAnswers",
        "generationOutputConfig",
        "imageConfig",
        "modelSelectionConfig",
        "responseFormat",
        "routingConfig",
        "speechConfig",
        "translationConfig",
    }
)
_REFUSED_PART = frozenset({"videoMetadata", "speechMetadata"})
# Thresholds that ask for no more than a model without these filters does.
_LENIENT = frozenset({None, "OFF", "BLOCK_NONE", "BLOCK_ONLY_HIGH", "HARM_BLOCK_THRESHOLD_UNSPECIFIED"})
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
_HELD = ("text", "inlineData", "fileData", "functionCall", "functionResponse")
_SIGNATURES = frozenset({"thoughtSignature", "thought_signature"})
_BLOCKS = frozenset({"executableCode", "codeExecutionResult", "toolCall", "toolResponse"})
_PART_NOTES = _HARMLESS_PART | _NEUTRAL_PART | _REFUSED_PART | {"thought", "thoughtSignature"}
# What the audio formats of the canonical form are called, where that is not what their media type ends in.
_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "mp4": "m4a", "x-m4a": "m4a"}
# What alone in a response is the response: a call's result is an object in this API, and any value in the others.
_WRAPPERS = frozenset({"output", "result", "error"})
_URL_SAFE = str.maketrans("-_", "+/")
# Addresses that only Google can read, or reads as what is behind them.
_GOOGLE_HOSTS = ("generativelanguage.googleapis.com", "youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be")


def decode(raw: bytes, asked: Asked) -> Request:
    """The body of `:generateContent` or `:streamGenerateContent`. Raises `RequestError` that says which field cannot
    be used."""
    return _request(json_object(raw), raw, asked)


def decode_count(raw: bytes, model: str) -> Request:
    """The body of `:countTokens`: `{"contents"}`, or a whole request as `{"generateContentRequest"}`."""
    native = json_object(raw)
    inner = native.get("generateContentRequest", native.get("generate_content_request"))
    if inner is not None:
        native = _object(inner, "generateContentRequest")
    return _request(native, raw, Asked("chat", model, stream=False))


def _request(native: dict[str, Any], raw: bytes, asked: Asked) -> Request:
    model = model_name(asked.model)
    losses = _Losses()
    try:
        body = {"model": model, **_body(native, losses)}
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    stream = bool(asked.stream)
    if stream:
        body["stream"] = True
    if losses.carried:
        native = _without_carried(native)
        raw = msgspec.json.encode(native)
    return Request(
        operation="chat",
        model=model,
        body=body,
        raw=raw,
        stream=stream,
        include_usage=True,
        dialect="gemini",
        native=native,
        beyond=losses.beyond,
        refused=tuple(losses.refused),
        dropped=tuple(losses.dropped),
    )


class _Losses:
    """What the canonical form has no words for, by its path. `carried`: signatures that this gateway wrote, which no
    API knows, are in the contents."""

    def __init__(self) -> None:
        self.carried = False
        self.beyond: dict[str, Any] = {}
        self.refused: list[str] = []
        self.dropped: list[str] = []

    def harmless(self, path: str, value: Any) -> None:
        self.beyond[path] = value

    def refuse(self, path: str, value: Any) -> None:
        self.beyond[path] = value
        self.refused.append(path)

    def drop(self, path: str, value: Any) -> None:
        self.beyond[path] = value
        self.dropped.append(path)


def _body(native: dict[str, Any], losses: _Losses) -> dict[str, Any]:
    fields = _object(native, "the body")
    if "contents" not in fields:
        raise RequestError("contents is missing", param="contents")
    conversation = _Conversation(losses)
    if (instruction := fields.get("systemInstruction")) is not None:
        conversation.add_system(instruction)
    for number, content in enumerate(_list(fields["contents"], "contents")):
        conversation.add(content, f"contents[{number}]")
    body: dict[str, Any] = {"messages": conversation.messages()}
    if body["messages"] == [] or body["messages"][-1]["role"] == "system":
        raise RequestError("contents must be a list of at least one content", param="contents")
    for name, value in fields.items():
        if name == "generationConfig":
            _add_config(body, _object(value, name), losses)
        elif name == "tools":
            _add_tools(body, value, losses)
        elif name == "safetySettings":
            _keep_safety_settings(value, losses)
        elif name in _REFUSED:
            losses.refuse(name, value)
        elif name in _HARMLESS:
            losses.harmless(name, value)
        elif name not in _NEUTRAL and name not in ("contents", "systemInstruction", "toolConfig"):
            losses.drop(name, value)
    if "toolConfig" in fields:
        _add_tool_config(body, fields["toolConfig"], losses)
    return body


def _keep_safety_settings(value: Any, losses: _Losses) -> None:
    settings = [_object(setting, "safetySettings") for setting in _list(value, "safetySettings")]
    thresholds = [setting.get("threshold") for setting in settings]
    lenient = all(isinstance(threshold, str | None) and threshold in _LENIENT for threshold in thresholds)
    if settings:
        (losses.harmless if lenient else losses.refuse)("safetySettings", settings)


# --- the conversation


class _Conversation:
    """Contents as messages. What models say in contents that follow each other is one turn: a stream that a client
    keeps piece by piece is the answer it was."""

    def __init__(self, losses: _Losses) -> None:
        self._losses = losses
        self._messages: list[dict[str, Any]] = []
        self._turn: _ModelTurn | None = None
        self._ids: set[str] = set()
        self._calls = 0
        self._unanswered: list[tuple[str, str]] = []  # the name and id of calls, the oldest first

    def messages(self) -> list[dict[str, Any]]:
        self._end_turn()
        return self._messages

    def add_system(self, content: Any) -> None:
        where = "systemInstruction"
        parts = []
        for number, part in enumerate(_parts(content, where)):
            path = f"{where}.parts[{number}]"
            if "text" not in part:
                raise RequestError(f"{path} must be a text", param=path)
            parts.append({"type": "text", "text": _string(part["text"], f"{path}.text")})
            self._note(part, path, "text")
        if parts:
            self._messages.append({"role": "system", "content": _content(parts)})

    def add(self, content: Any, where: str) -> None:
        role = None
        if isinstance(content, dict):
            role = content.get("role")
            for name, value in content.items():
                if name not in ("role", "parts") and value is not None:
                    self._losses.drop(f"{where}.{name}", value)
        if role == "model":
            self._turn = self._turn or _ModelTurn()
            for number, part in enumerate(_parts(content, where)):
                self._add_said(self._turn, part, f"{where}.parts[{number}]")
        elif role in (None, "", "user", "function"):
            self._end_turn()
            self._add_asked(_parts(content, where), where)
        else:
            raise RequestError(f"{where}.role must be user or model", param=f"{where}.role")

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None

    def _add_asked(self, asked: list[dict[str, Any]], where: str) -> None:
        """Results of calls come first: they answer the turn before."""
        parts: list[dict[str, Any]] = []
        blocks: list[dict[str, Any]] = []
        answers = False
        for number, part in enumerate(asked):
            path = f"{where}.parts[{number}]"
            kind = self._kind(part, path)
            if kind == "functionResponse":
                answers = True
                self._messages.append(self._tool_message(part[kind], f"{path}.{kind}"))
            elif kind == "text":
                parts.append({"type": "text", "text": _string(part[kind], f"{path}.{kind}")})
            elif kind == "inlineData":
                parts.append(_inline(part[kind], f"{path}.{kind}"))
            elif kind == "fileData":
                parts.append(self._file(part[kind], f"{path}.{kind}"))
            elif kind == "functionCall":
                raise RequestError(f"{path}: only a model's content holds a functionCall", param=path)
            else:
                blocks.append(self._block(part, path))
        if not asked:
            raise RequestError(f"{where}.parts must be a list of at least one part", param=f"{where}.parts")
        if parts or blocks or not answers:
            message: dict[str, Any] = {"role": "user", "content": _content(parts)}
            if blocks:
                message["provider_content"] = blocks
            self._messages.append(message)

    def _add_said(self, turn: "_ModelTurn", part: dict[str, Any], path: str) -> None:
        kind = self._kind(part, path, signature_alone=True)
        signature = part.get("thoughtSignature")
        if signature is not None:
            signature = _base64(signature, f"{path}.thoughtSignature")
        if kind == "text":
            text = _string(part.get("text", ""), f"{path}.text")
            if _boolean(part.get("thought", False), f"{path}.thought"):
                turn.add_thought(text, signature)
            else:
                turn.add_text(text, signature)
        elif kind == "functionCall":
            carried = None if signature is None else unpacked(signature)
            if carried is not None:
                turn.add_carried(carried)
                self._losses.carried, signature = True, None
            turn.add_call(self._call(part[kind], f"{path}.{kind}"), signature)
        elif kind == "functionResponse":
            raise RequestError(f"{path}: only a user's content holds a functionResponse", param=path)
        else:
            turn.add_block(self._block(part, path))

    def _kind(self, part: dict[str, Any], path: str, *, signature_alone: bool = False) -> str | None:
        """The field that a part is about; None where only this API has it."""
        kinds = [name for name in _HELD if name in part]
        others = [name for name in part if name in _BLOCKS]
        if len(kinds) + len(others) > 1:
            both = " and ".join([*kinds, *others])
            raise RequestError(f"{path} must be one thing, and is {both}", param=path)
        if kinds or others:
            self._note(part, path, *kinds, *others)
            return kinds[0] if kinds else None
        if signature_alone and "thoughtSignature" in part and part.keys() <= _PART_NOTES:
            return "text"
        if part.keys() <= _PART_NOTES:
            raise RequestError(f"{path} holds nothing", param=path)
        return None

    def _note(self, part: dict[str, Any], path: str, *read: str) -> None:
        """Everything about a part but what it is."""
        if len(part) == 1:
            return  # most are
        for name, value in part.items():
            if name in _REFUSED_PART:
                self._losses.refuse(f"{path}.{name}", value)
            elif name in _HARMLESS_PART:
                self._losses.harmless(f"{path}.{name}", value)
            elif name not in _PART_NOTES and name not in read:
                self._losses.drop(f"{path}.{name}", value)

    def _block(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        name = next(name for name in part if name not in _PART_NOTES)
        # The part itself is in the canonical body: nothing of it is beyond.
        self._losses.refused.append(f"{path}.{name}")
        return {"dialect": "gemini", "block": part}

    def _call(self, value: Any, where: str) -> dict[str, Any]:
        call = _object(value, where)
        name = _string(call.get("name"), f"{where}.name")
        arguments = _object(call.get("args", {}), f"{where}.args", renamed=False)
        call_id = self._call_id(call.get("id"), where)
        for field, inner in call.items():
            if field not in ("id", "name", "args"):
                self._losses.refuse(f"{where}.{field}", inner)
        self._unanswered.append((name, call_id))
        function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
        return {"id": call_id, "type": "function", "function": function}

    def _call_id(self, given: Any, where: str) -> str:
        """The id it has, or its number in the conversation."""
        call_id = _string(given, f"{where}.id") if given else f"call_{self._calls}"
        self._calls += 1
        taken = self._calls
        while not given and call_id in self._ids:
            call_id, taken = f"call_{taken}", taken + 1
        self._ids.add(call_id)
        return call_id

    def _tool_message(self, value: Any, where: str) -> dict[str, Any]:
        result = _object(value, where)
        name = _string(result.get("name", ""), f"{where}.name")
        response = _object(result.get("response", {}), f"{where}.response", renamed=False)
        given = _string(result.get("id") or "", f"{where}.id")
        parts = self._result_parts(result.get("parts", []), f"{where}.parts")
        for field, inner in result.items():
            if field not in ("id", "name", "response", "parts") and inner is not False:
                self._losses.refuse(f"{where}.{field}", inner)
        message: dict[str, Any] = {"role": "tool", "tool_call_id": self._answered(given, name, where)}
        wrapped = len(response) == 1 and next(iter(response)) in _WRAPPERS
        said = next(iter(response.values())) if wrapped else response
        text = said if isinstance(said, str) else msgspec.json.encode(said).decode()
        message["content"] = [{"type": "text", "text": text}, *parts] if parts else text
        if wrapped and "error" in response:
            message["is_error"] = True
        return message

    def _answered(self, given: str, name: str, where: str) -> str:
        """The id of the call that a result belongs to: the one named, else the oldest of that function."""
        for call in self._unanswered:
            if call[1] == given or (not given and call[0] == name):
                self._unanswered.remove(call)
                return call[1]
        # A result of a call that is not there, as in a conversation that was cut short.
        return given or self._call_id(None, where)

    def _result_parts(self, value: Any, where: str) -> list[dict[str, Any]]:
        parts = []
        for number, item in enumerate(_list(value, where)):
            path = f"{where}[{number}]"
            part = _object(item, path)
            if "inlineData" in part:
                parts.append(_inline(part["inlineData"], f"{path}.inlineData"))
            elif "fileData" in part:
                parts.append(self._file(part["fileData"], f"{path}.fileData"))
            else:
                raise RequestError(f"{path} must have inlineData or fileData", param=path)
        return parts

    def _file(self, value: Any, where: str) -> dict[str, Any]:
        field = _object(value, where)
        address = _string(field.get("fileUri"), f"{where}.fileUri")
        media_type = _string(field.get("mimeType", ""), f"{where}.mimeType")
        try:
            url = urlsplit(address)
        except ValueError as error:
            raise RequestError(f"{where}.fileUri must be an address", param=f"{where}.fileUri") from error
        if url.scheme not in ("http", "https") or url.hostname in _GOOGLE_HOSTS:
            self._losses.refuse(f"{where}.fileUri", address)
        elif media_type.startswith(("audio/", "video/")):
            self._losses.refuse(f"{where}.mimeType", media_type)
        elif media_type.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": address}}
        if media_type not in ("", "application/pdf"):
            self._losses.harmless(f"{where}.mimeType", media_type)
        name = field.get("displayName")
        named = {"filename": _string(name, f"{where}.displayName")} if name else {}
        return {"type": "file", "file": {"file_url": address, **named}}


class _ModelTurn:
    """What a model said, put together to one message."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._blocks: list[dict[str, Any]] = []
        self._details: list[dict[str, Any]] = []
        self._call_details: list[dict[str, Any]] = []  # they belong to calls, wherever those are
        self._layout: list[list[Any]] = []

    def add_text(self, text: str, signature: str | None) -> None:
        self._text.append(text)
        self._lay("content", len(text))
        if signature is not None:
            self._details.append({"type": "reasoning.encrypted", "format": SIGNATURE_FORMAT, "data": signature})
            self._lay("reasoning_details", 1)

    def add_thought(self, text: str, signature: str | None) -> None:
        self._thoughts.append(text)
        signed = {} if signature is None else {"signature": signature}
        self._details.append({"type": "reasoning.text", "format": SIGNATURE_FORMAT, "text": text, **signed})
        self._lay("reasoning_details", 1)

    def add_call(self, call: dict[str, Any], signature: str | None) -> None:
        self._calls.append(call)
        self._lay("tool_calls", 1)
        if signature is not None:
            detail = {"type": "reasoning.encrypted", "format": SIGNATURE_FORMAT, "data": signature}
            self._call_details.append({**detail, "tool_call_id": call["id"]})

    def add_carried(self, details: list[dict[str, Any]]) -> None:
        """What led another maker's model to the call that comes next. It comes before all else."""
        self._call_details += [{name: detail[name] for name in detail if name != "index"} for detail in details]

    def add_block(self, block: dict[str, Any]) -> None:
        self._blocks.append(block)
        self._lay("provider_content", 1)

    def message(self) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not self._calls else None}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        details = [*self._call_details, *self._details]
        if details:
            message["reasoning_details"] = [{"index": index, **detail} for index, detail in enumerate(details)]
        if self._calls:
            message["tool_calls"] = self._calls
        if self._blocks:
            message["provider_content"] = self._blocks
        if self._call_details:
            self._layout.insert(0, ["reasoning_details", len(self._call_details)])
            if len(self._layout) > 1 and self._layout[1][0] == "reasoning_details":
                self._layout[0][1] += self._layout.pop(1)[1]
        places = [LAID_OUT.index(name) for name, _ in self._layout]
        if any(before > after for before, after in pairwise(places)):
            message["layout"] = self._layout
        return message

    def _lay(self, name: str, count: int) -> None:
        if self._layout and self._layout[-1][0] == name:
            self._layout[-1][1] += count
        elif count:
            self._layout.append([name, count])


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    """A content's parts with their fields in camelCase. A string is a text."""
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, dict):
        raise RequestError(f"{where} must be a content: an object with parts", param=where)
    parts = content.get("parts")
    found = []
    for number, part in enumerate(() if parts is None else _list(parts, f"{where}.parts")):
        found.append({"text": part} if isinstance(part, str) else _object(part, f"{where}.parts[{number}]"))
    return found


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts or ""


def _inline(value: Any, where: str) -> dict[str, Any]:
    blob = _object(value, where)
    media_type = _string(blob.get("mimeType"), f"{where}.mimeType")
    encoded = _base64(blob.get("data"), f"{where}.data")
    kind, _, subtype = media_type.partition(";")[0].strip().lower().partition("/")
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{encoded}"}}
    if kind == "audio":
        audio_format = _AUDIO_FORMATS.get(subtype, subtype)
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": audio_format}}
    name = blob.get("displayName")
    named = {"filename": _string(name, f"{where}.displayName")} if name else {}
    return {"type": "file", "file": {"file_data": f"data:{media_type};base64,{encoded}", **named}}


# --- what else is asked


def _add_config(body: dict[str, Any], config: dict[str, Any], losses: _Losses) -> None:
    for name, value in config.items():
        path = f"generationConfig.{name}"
        if name in _NUMBERS:
            body[_NUMBERS[name]] = _number(value, path)
        elif name in _INTEGERS:
            body[_INTEGERS[name]] = _integer(value, path)
        elif name == "candidateCount":
            if (count := _integer(value, path)) != 1:
                body["n"] = count
        elif name == "stopSequences":
            if stops := [_string(stop, path) for stop in _list(value, path)]:
                body["stop"] = stops
        elif name == "responseLogprobs":
            if _boolean(value, path):
                body["logprobs"] = True
                if config.get("logprobs") is not None:
                    body["top_logprobs"] = _integer(config["logprobs"], "generationConfig.logprobs")
        elif name == "thinkingConfig":
            _add_thinking(body, _object(value, path), losses)
        elif name == "responseModalities":
            if any(modality not in ("TEXT", "text") for modality in _list(value, path)):
                losses.refuse(path, value)
        elif name in _HARMLESS_CONFIG:
            losses.harmless(path, value)
        elif name in _REFUSED_CONFIG:
            if value is not False:
                losses.refuse(path, value)
        elif name not in ("logprobs", "responseMimeType", "responseSchema", "responseJsonSchema"):
            losses.drop(path, value)
    _add_format(body, config, losses)


def _add_thinking(body: dict[str, Any], thinking: dict[str, Any], losses: _Losses) -> None:
    for name, value in thinking.items():
        path = f"generationConfig.thinkingConfig.{name}"
        if name == "thinkingBudget":
            body["reasoning_budget"] = _integer(value, path)
        elif name == "thinkingLevel":
            level = _string(value, path).lower()
            if level in _EFFORTS:
                body["reasoning_effort"] = level
            elif level != "thinking_level_unspecified":
                losses.refuse(path, value)
        elif name == "includeThoughts":
            # Not what is answered, but what is told of it: an answer got without them has none to show.
            if _boolean(value, path):
                losses.harmless(path, value)
        else:
            losses.drop(path, value)


def _add_format(body: dict[str, Any], config: dict[str, Any], losses: _Losses) -> None:
    media_type = _string(config.get("responseMimeType", ""), "generationConfig.responseMimeType")
    schema = config.get("responseJsonSchema")
    if schema is not None:
        schema = _object(schema, "generationConfig.responseJsonSchema", renamed=False)
    elif config.get("responseSchema") is not None:
        schema = json_schema(config["responseSchema"], "generationConfig.responseSchema")
    if media_type not in ("", "text/plain", "application/json"):
        losses.refuse("generationConfig.responseMimeType", media_type)
        if schema is not None:
            losses.harmless("generationConfig.responseSchema", schema)
    elif schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    elif media_type == "application/json":
        body["response_format"] = {"type": "json_object"}


def _add_tools(body: dict[str, Any], value: Any, losses: _Losses) -> None:
    tools = []
    for number, item in enumerate(_list(value, "tools")):
        where = f"tools[{number}]"
        for name, inner in _object(item, where).items():
            if name != "functionDeclarations":
                losses.refuse(f"{where}.{name}", inner)  # whatever it is, it is a tool
                continue
            for place, declared in enumerate(_list(inner, f"{where}.{name}")):
                tools.append(_function(declared, f"{where}.{name}[{place}]", losses))
    if tools:
        body["tools"] = tools


def _function(value: Any, where: str, losses: _Losses) -> dict[str, Any]:
    function: dict[str, Any] = {}
    declared = _object(value, where)
    function["name"] = _string(declared.get("name"), f"{where}.name")
    for name, inner in declared.items():
        path = f"{where}.{name}"
        if name == "description":
            function[name] = _string(inner, path)
        elif name == "parametersJsonSchema":
            function["parameters"] = _object(inner, path, renamed=False)
        elif name == "parameters":
            if declared.get("parametersJsonSchema") is None:
                function[name] = json_schema(inner, path)
        elif name in ("response", "responseJsonSchema"):
            losses.harmless(path, inner)  # what will come back; the model sees it when it does
        elif name == "behavior":
            if inner not in ("UNSPECIFIED", "BLOCKING"):
                losses.refuse(path, inner)
        elif name != "name":
            losses.drop(path, inner)
    return {"type": "function", "function": function}


def _add_tool_config(body: dict[str, Any], value: Any, losses: _Losses) -> None:
    for name, inner in _object(value, "toolConfig").items():
        path = f"toolConfig.{name}"
        if name == "functionCallingConfig":
            _add_choice(body, _object(inner, path), path, losses)
        elif name == "retrievalConfig":
            losses.refuse(path, inner)
        elif name == "includeServerSideToolInvocations":
            losses.harmless(path, inner)  # of tools that would have been refused
        else:
            losses.drop(path, inner)


def _add_choice(body: dict[str, Any], config: dict[str, Any], path: str, losses: _Losses) -> None:
    for name, value in config.items():
        if name == "streamFunctionCallArguments":
            losses.harmless(f"{path}.{name}", value)
        elif name not in ("mode", "allowedFunctionNames"):
            losses.drop(f"{path}.{name}", value)
    mode = _string(config.get("mode", "AUTO"), f"{path}.mode").upper()
    listed = _list(config.get("allowedFunctionNames", []), f"{path}.allowedFunctionNames")
    allowed = [_string(name, f"{path}.allowedFunctionNames") for name in listed]
    if mode not in ("AUTO", "ANY", "NONE", "VALIDATED", "MODE_UNSPECIFIED"):
        losses.refuse(f"{path}.mode", mode)
    if mode == "VALIDATED":
        losses.harmless(f"{path}.mode", mode)
    if "tools" not in body or mode in ("AUTO", "MODE_UNSPECIFIED"):
        return
    if mode == "NONE":
        body["tool_choice"] = "none"
    elif mode == "ANY" and len(allowed) == 1:
        body["tool_choice"] = {"type": "function", "function": {"name": allowed[0]}}
    else:
        if mode == "ANY":
            body["tool_choice"] = "required"
        if allowed:
            # A choice among some is a choice among all where there are no others.
            body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] in allowed]
            if not body["tools"]:
                where = f"{path}.allowedFunctionNames"
                raise RequestError(f"{where} names no function that is declared", param=where)


# --- schemas

_SCHEMA_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})


def json_schema(value: Any, where: str) -> dict[str, Any]:
    """The API's own kind of schema, OpenAPI 3.0 with types in capitals, as JSON Schema.

    https://ai.google.dev/api/caching#Schema
    """
    fields = _object(value, where)
    schema: dict[str, Any] = {}
    for name, inner in fields.items():
        path = f"{where}.{name}"
        if name == "type":
            kinds = [_string(kind, path).lower() for kind in _list(inner, path)]
            if "type_unspecified" not in kinds:
                schema[name] = kinds if isinstance(inner, list) else kinds[0]
        elif name == "properties":
            properties = _object(inner, path, renamed=False)
            schema[name] = {
                key: json_schema(properties[key], f"{path}.{key}")
                for key in _ordered(properties, fields.get("propertyOrdering"), where)
            }
        elif name == "items" or (name == "additionalProperties" and not isinstance(inner, bool)):
            schema[name] = json_schema(inner, path)
        elif name == "anyOf":
            schema[name] = [json_schema(item, f"{path}[{i}]") for i, item in enumerate(_list(inner, path))]
        elif name in ("defs", "$defs"):
            definitions = _object(inner, path, renamed=False)
            schema["$defs"] = {key: json_schema(item, f"{path}.{key}") for key, item in definitions.items()}
        elif name in ("ref", "$ref"):
            schema["$ref"] = _string(inner, path).replace("#/defs/", "#/$defs/")
        elif name in _SCHEMA_COUNTS:
            schema[name] = _integer(inner, path)
        elif name in ("minimum", "maximum"):
            schema[name] = _number(inner, path)
        elif name == "example":
            schema["examples"] = [inner]
        elif name not in ("nullable", "propertyOrdering") and (name, inner) != ("format", "enum"):
            schema[name] = inner
    if "nullable" in fields and _boolean(fields["nullable"], f"{where}.nullable"):
        _allow_null(schema)
    return schema


def _ordered(properties: dict[str, Any], ordering: Any, where: str) -> Iterator[str]:
    """Where order matters to a model, it is that of the properties themselves."""
    if ordering is None:
        return iter(properties)
    path = f"{where}.propertyOrdering"
    named = dict.fromkeys(_string(name, path) for name in _list(ordering, path))
    return iter([*(name for name in named if name in properties), *(name for name in properties if name not in named)])


def _allow_null(schema: dict[str, Any]) -> None:
    kinds = schema.get("type")
    if isinstance(kinds, str):
        schema["type"] = [kinds, "null"]
    elif isinstance(schema.get("anyOf"), list):
        schema["anyOf"].append({"type": "null"})
    if isinstance(schema.get("enum"), list):
        schema["enum"] = [*schema["enum"], None]


# --- values


def _object(value: Any, where: str, *, renamed: bool = True) -> dict[str, Any]:
    """A message's fields in camelCase, without those that are null. `renamed=False`: the names are the caller's own."""
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object", param=where)
    if not renamed or not any(inner is None or "_" in name for name, inner in value.items()):
        return value
    fields: dict[str, Any] = {}
    for name, inner in value.items():
        if inner is None:
            continue
        known = _camel(name) if "_" in name else name
        if known in fields:
            raise RequestError(f"{where} has {known} twice", param=where)
        fields[known] = inner
    return fields


def _camel(name: str) -> str:
    first, *rest = name.strip("_").split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def _list(value: Any, where: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict | str):
        return [value]
    raise RequestError(f"{where} must be a list", param=where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string", param=where)
    return value


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{where} must be true or false", param=where)
    return value


def _number(value: Any, where: str) -> int | float:
    """A whole number is an integer: the SDKs of this API make 0 to 0.0, and those of others do not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{where} must be a number", param=where)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(value: Any, where: str) -> int:
    """Protobuf's JSON writes 64-bit integers as strings, and reads 40.0 as 40."""
    if isinstance(value, str) and len(value) < 20 and value.removeprefix("-").isdecimal() and value.isascii():
        return int(value)
    number = None if isinstance(value, str) else _number(value, where)
    if not isinstance(number, int):
        raise RequestError(f"{where} must be a whole number", param=where)
    return number


def _without_carried(native: dict[str, Any]) -> dict[str, Any]:
    """Without the signatures that this gateway wrote. It was read before: its shape is known."""
    contents = []
    for content in _list(native["contents"], "contents"):
        if isinstance(content, dict) and content.get("parts") is not None:
            parts = [
                {name: value for name, value in part.items() if not (name in _SIGNATURES and _is_carried(value))}
                if isinstance(part, dict)
                else part
                for part in _list(content["parts"], "parts")
            ]
            contents.append({**content, "parts": parts})
        else:
            contents.append(content)
    return {**native, "contents": contents}


def _is_carried(signature: Any) -> bool:
    return isinstance(signature, str) and signature.startswith(MARK)


def _base64(value: Any, where: str) -> str:
    """In the alphabet of `data:` URLs, and padded; the SDK writes the URL-safe one."""
    encoded = _string(value, where)
    if "-" in encoded or "_" in encoded:
        encoded = encoded.translate(_URL_SAFE)
    return encoded + "=" * (-len(encoded) % 4)
