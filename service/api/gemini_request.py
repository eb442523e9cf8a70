"""A Gemini request in the canonical form of docs/dialects.md.

https://ai.google.dev/api/generate-content and https://ai.google.dev/api/caching#Content. An upstream of this dialect
is sent what the client wrote: whatever of it the canonical form does not give back is noted as beyond it, but for the
few ways to say one thing that docs/dialects/gemini.md lists.
"""

from collections import deque
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import msgspec

from models.errors import RequestError
from models.request import Request
from service.api.body import json_object, model_name
from service.api.carried import MARK, unpacked
from service.api.dialect import Asked
from service.api.gemini_schema import json_schema
from service.api.gemini_values import (
    base64_of,
    count_of,
    fields_of,
    flag_of,
    items_of,
    mapping,
    number_of,
    text_of,
    wrong,
)
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
# The order of what a user's content holds in the canonical form; what only this API has comes last.
_RANKS = {"functionResponse": 0, "text": 1, "inlineData": 1, "fileData": 1, None: 2}
# What the audio formats of the canonical form are called, where that is not what their media type ends in.
_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "mp4": "m4a", "x-m4a": "m4a"}
# What alone in a response is the response: a call's result is an object in this API, and any value in the others.
_WRAPPERS = frozenset({"output", "result", "error"})
# What goes without saying of a file at an address that ends so.
_ENDINGS = {
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "webp": "image/webp",
}
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
        native = fields_of(inner, "generateContentRequest")
    return _request(native, raw, Asked("chat", model, stream=False))


def _request(native: dict[str, Any], raw: bytes, asked: Asked) -> Request:
    model = model_name(asked.model)
    losses = _Losses()
    try:
        body = {"model": model, **_body(native, losses)}
        if losses.carried:
            native = _without_carried(native)
            raw = msgspec.json.encode(native)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    stream = bool(asked.stream)
    if stream:
        body["stream"] = True
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
        """Without it the answer is as good, and may be another one."""
        self.beyond[path] = value

    def refuse(self, path: str, value: Any) -> None:
        self.beyond[path] = value
        self.refused.append(path)

    def drop(self, path: str, value: Any) -> None:
        self.beyond[path] = value
        self.dropped.append(path)

    def drop_others(self, fields: dict[str, Any], where: str, *known: str) -> None:
        for name in fields:
            if name not in known and fields[name] is not None:
                self.drop(_path(where, name), fields[name])


def _path(where: str, name: str) -> str:
    """The path of a field that nobody knows: a name with dots in it must not pose as a path."""
    return f"{where}.{name}" if name.isidentifier() else f"{where}[{msgspec.json.encode(name).decode()}]"


def _body(native: dict[str, Any], losses: _Losses) -> dict[str, Any]:
    fields = fields_of(native, "the body")
    if "contents" not in fields:
        raise RequestError("contents is missing", param="contents")
    conversation = _Conversation(losses)
    if (instruction := fields.get("systemInstruction")) is not None:
        conversation.add_system(instruction)
    for number, content in enumerate(items_of(fields["contents"], "contents")):
        conversation.add(content, f"contents[{number}]")
    body: dict[str, Any] = {"messages": conversation.messages()}
    if body["messages"] == [] or body["messages"][-1]["role"] == "system":
        raise RequestError("contents must be a list of at least one content", param="contents")
    for name, value in fields.items():
        if name == "generationConfig":
            _add_config(body, fields_of(value, name), losses)
        elif name == "tools":
            _add_tools(body, value, losses)
        elif name == "safetySettings":
            _keep_safety_settings(value, losses)
        elif name in _REFUSED:
            losses.refuse(name, value)
        elif name in _HARMLESS:
            losses.harmless(name, value)
        elif name not in _NEUTRAL and name not in ("contents", "systemInstruction", "toolConfig"):
            losses.drop(name if name.isidentifier() else _path("", name), value)
    if "toolConfig" in fields:
        _add_tool_config(body, fields["toolConfig"], losses)
    return body


def _keep_safety_settings(value: Any, losses: _Losses) -> None:
    settings = [fields_of(setting, "safetySettings") for setting in items_of(value, "safetySettings")]
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
        self._free = 0  # no made-up id has this number or a higher one
        # Those without a result, the oldest first; the ones that have it are left out when they are come across.
        self._by_id: dict[str, deque[_Call]] = {}
        self._by_name: dict[str, deque[_Call]] = {}

    def messages(self) -> list[dict[str, Any]]:
        self._end_turn()
        return self._messages

    def add_system(self, content: Any) -> None:
        where = "systemInstruction"
        parts = []
        if isinstance(content, dict):
            self._losses.drop_others(content, where, "role", "parts")
        for number, part in enumerate(_parts(content, where)):
            path = f"{where}.parts[{number}]"
            if "text" not in part:
                raise RequestError(f"{path} must be a text", param=path)
            parts.append({"type": "text", "text": text_of(part["text"], f"{path}.text")})
            self._note(part, path, "text")
        if parts:
            self._messages.append({"role": "system", "content": _content(parts)})

    def add(self, content: Any, where: str) -> None:
        role = None
        if isinstance(content, dict):
            role = content.get("role")
            self._losses.drop_others(content, where, "role", "parts")
        elif isinstance(content, str):
            self._end_turn()
            self._messages.append({"role": "user", "content": content})
            return
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
        order: list[int] = []
        for number, part in enumerate(asked):
            path = f"{where}.parts[{number}]"
            kind = self._kind(part, path)
            order.append(_RANKS.get(kind, 2))
            if kind is None:
                blocks.append(self._block(part, path))
                continue
            self._note(part, path, kind)
            if kind == "functionResponse":
                self._messages.append(self._tool_message(part[kind], f"{path}.{kind}"))
            elif kind == "text":
                parts.append({"type": "text", "text": text_of(part[kind], f"{path}.{kind}")})
            elif kind == "inlineData":
                parts.append(self._inline(part[kind], f"{path}.{kind}"))
            elif kind == "fileData":
                parts.append(self._file(part[kind], f"{path}.{kind}"))
            else:
                raise RequestError(f"{path}: only a model's content holds a functionCall", param=path)
        if not asked:
            raise RequestError(f"{where}.parts must be a list of at least one part", param=f"{where}.parts")
        if any(before > after for before, after in pairwise(order)):
            self._losses.harmless(f"{where}.parts", order)
        if any(order):
            message: dict[str, Any] = {"role": "user", "content": _content(parts)}
            if blocks:
                message["provider_content"] = blocks
            self._messages.append(message)

    def _add_said(self, turn: "_ModelTurn", part: dict[str, Any], path: str) -> None:
        kind = self._kind(part, path, signature_alone=True)
        if kind == "text":
            self._note(part, path, kind, "thought", "thoughtSignature")
            text = text_of(part.get("text", ""), f"{path}.text")
            signature = _signature(part, path)
            if flag_of(part.get("thought", False), f"{path}.thought"):
                turn.add_thought(text, signature)
            else:
                turn.add_text(text, signature)
        elif kind == "functionCall":
            self._note(part, path, kind, "thoughtSignature")
            signature = _signature(part, path)
            carried = None if signature is None else unpacked(signature)
            if carried is not None:
                turn.add_carried(carried)
                self._losses.carried, signature = True, None
            twice = turn.add_call(self._call(part[kind], f"{path}.{kind}"), signature)
            if twice and signature is not None:
                self._losses.harmless(f"{path}.thoughtSignature", signature)
        elif kind == "functionResponse":
            raise RequestError(f"{path}: only a user's content holds a functionResponse", param=path)
        else:
            turn.add_block(self._block(part, path))

    def _kind(self, part: dict[str, Any], path: str, *, signature_alone: bool = False) -> str | None:
        """The field that a part is about; None where only this API has it."""
        kinds = [name for name in part if name in _HELD or name in _BLOCKS]
        if len(kinds) > 1:
            raise RequestError(f"{path} must be one thing, and is {' and '.join(kinds)}", param=path)
        if kinds:
            return kinds[0] if kinds[0] in _HELD else None
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
            if name in read or name in _NEUTRAL_PART:
                continue
            if name in _REFUSED_PART:
                self._losses.refuse(f"{path}.{name}", value)
            elif name in _PART_NOTES:
                if name != "thought" or value is not False:
                    self._losses.harmless(f"{path}.{name}", value)
            else:
                self._losses.drop(_path(path, name), value)

    def _block(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        name = next(name for name in part if name not in _PART_NOTES)
        # The part itself is in the canonical body: nothing of it is beyond.
        self._losses.refused.append(f"{path}.{name}")
        return {"dialect": "gemini", "block": part}

    def _call(self, value: Any, where: str) -> dict[str, Any]:
        call = fields_of(value, where)
        name = text_of(call.get("name"), f"{where}.name")
        arguments = mapping(call.get("args", {}), f"{where}.args")
        call_id = self._call_id(call.get("id"), where)
        for field, inner in call.items():
            if field not in ("id", "name", "args"):
                self._losses.refuse(_path(where, field), inner)
        made = _Call(call_id, name)
        self._by_id.setdefault(call_id, deque()).append(made)
        self._by_name.setdefault(name, deque()).append(made)
        function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
        return {"id": call_id, "type": "function", "function": function}

    def _call_id(self, given: Any, where: str) -> str:
        """The id it has, or its number in the conversation, or the next that is free."""
        if given:
            call_id = text_of(given, f"{where}.id")
        else:
            # Every number between that of a call and the highest made up is taken.
            self._free = max(self._free, self._calls)
            while (call_id := f"call_{self._free}") in self._ids:
                self._free += 1
        self._calls += 1
        self._ids.add(call_id)
        return call_id

    def _tool_message(self, value: Any, where: str) -> dict[str, Any]:
        result = fields_of(value, where)
        name = text_of(result.get("name", ""), f"{where}.name")
        response = mapping(result.get("response", {}), f"{where}.response")
        given = text_of(result.get("id") or "", f"{where}.id")
        parts = self._result_parts(result.get("parts", []), f"{where}.parts")
        for field, inner in result.items():
            if field not in ("id", "name", "response", "parts") and (field != "willContinue" or inner is not False):
                self._losses.refuse(_path(where, field), inner)
        call = self._answered(given, name)
        if name != (call.name if call else ""):
            self._losses.harmless(f"{where}.name", name)
        # Its call may not be there, as in a conversation that was cut short.
        call_id = call.id if call else given or self._call_id(None, where)
        message: dict[str, Any] = {"role": "tool", "tool_call_id": call_id}
        wrapped = len(response) == 1 and next(iter(response)) in _WRAPPERS
        said = next(iter(response.values())) if wrapped else response
        if wrapped and not _is_written_back(response):
            self._losses.harmless(f"{where}.response", [*response, isinstance(said, str)])
        text = said if isinstance(said, str) else msgspec.json.encode(said).decode()
        message["content"] = [{"type": "text", "text": text}, *parts] if parts else text
        if wrapped and "error" in response:
            message["is_error"] = True
        return message

    def _answered(self, given: str, name: str) -> "_Call | None":
        """The call that a result belongs to: the one named, else the oldest of that function."""
        calls = self._by_id.get(given) if given else self._by_name.get(name)
        while calls:
            call = calls.popleft()
            if not call.answered:
                call.answered = True
                return call
        return None

    def _result_parts(self, value: Any, where: str) -> list[dict[str, Any]]:
        parts = []
        for number, item in enumerate(items_of(value, where)):
            path = f"{where}[{number}]"
            part = fields_of(item, path)
            if ("inlineData" in part) == ("fileData" in part):
                raise RequestError(f"{path} must have inlineData or fileData", param=path)
            kind = "inlineData" if "inlineData" in part else "fileData"
            parts.append((self._inline if kind == "inlineData" else self._file)(part[kind], f"{path}.{kind}"))
            self._note(part, path, kind)
        return parts

    def _inline(self, value: Any, where: str) -> dict[str, Any]:
        blob = fields_of(value, where)
        media_type = text_of(blob.get("mimeType"), f"{where}.mimeType")
        encoded = base64_of(blob.get("data"), f"{where}.data")
        name = text_of(blob.get("displayName", ""), f"{where}.displayName")
        if len(blob) > 2:
            self._losses.drop_others(blob, where, "mimeType", "data", "displayName")
        if "," in media_type:
            raise wrong(f"{where}.mimeType", "a media type")  # what is after it would be the data
        kind, _, subtype = media_type.partition(";")[0].strip().lower().partition("/")
        url = f"data:{media_type};base64,{encoded}"
        if kind not in ("image", "audio"):
            return {"type": "file", "file": {"file_data": url, **({"filename": name} if name else {})}}
        if name:
            self._losses.harmless(f"{where}.displayName", name)
        if kind == "image":
            return {"type": "image_url", "image_url": {"url": url}}
        if ";" in media_type:
            # Raw sound is another one at another rate.
            self._losses.refuse(f"{where}.mimeType", media_type)
        audio_format = _AUDIO_FORMATS.get(subtype, subtype)
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": audio_format}}

    def _file(self, value: Any, where: str) -> dict[str, Any]:
        field = fields_of(value, where)
        address = text_of(field.get("fileUri"), f"{where}.fileUri")
        media_type = text_of(field.get("mimeType", ""), f"{where}.mimeType")
        name = text_of(field.get("displayName", ""), f"{where}.displayName")
        self._losses.drop_others(field, where, "fileUri", "mimeType", "displayName")
        try:
            url = urlsplit(address)
        except ValueError as error:
            raise RequestError(f"{where}.fileUri must be an address", param=f"{where}.fileUri") from error
        if media_type and media_type != _ENDINGS.get(url.path.rpartition(".")[2].lower()):
            self._losses.harmless(f"{where}.mimeType", media_type)
        if url.scheme not in ("http", "https") or url.hostname in _GOOGLE_HOSTS:
            self._losses.refuse(f"{where}.fileUri", address)
        elif media_type.startswith(("audio/", "video/")):
            self._losses.refuse(f"{where}.mimeType", media_type)
        elif media_type.startswith("image/"):
            if name:
                self._losses.harmless(f"{where}.displayName", name)
            return {"type": "image_url", "image_url": {"url": address}}
        return {"type": "file", "file": {"file_url": address, **({"filename": name} if name else {})}}


class _Call:
    """A call that a result may answer."""

    __slots__ = ("answered", "id", "name")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.answered = False


class _ModelTurn:
    """What a model said, put together to one message."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._blocks: list[dict[str, Any]] = []
        self._details: list[dict[str, Any]] = []
        self._call_details: list[dict[str, Any]] = []  # they belong to calls, wherever those are
        self._ids: set[str] = set()
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

    def add_call(self, call: dict[str, Any], signature: str | None) -> bool:
        """Whether there is one with its id, so that it is not known whose signature it is."""
        twice = call["id"] in self._ids
        self._ids.add(call["id"])
        self._calls.append(call)
        self._lay("tool_calls", 1)
        if signature is not None:
            detail = {"type": "reasoning.encrypted", "format": SIGNATURE_FORMAT, "data": signature}
            self._call_details.append({**detail, "tool_call_id": call["id"]})
        return twice

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
    for number, part in enumerate(() if parts is None else items_of(parts, f"{where}.parts")):
        found.append({"text": part} if isinstance(part, str) else fields_of(part, f"{where}.parts[{number}]"))
    return found


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts or ""


def _signature(part: dict[str, Any], path: str) -> str | None:
    signature = part.get("thoughtSignature")
    return None if signature is None else base64_of(signature, f"{path}.thoughtSignature")


def _is_written_back(response: dict[str, Any]) -> bool:
    """Whether this is how a Gemini target would be told the result: a text that reads as an object would become one."""
    [(name, said)] = response.items()
    if isinstance(said, str):
        return name != "output" and not said.lstrip().startswith("{")
    return name == "error" and isinstance(said, dict)


# --- what else is asked


def _add_config(body: dict[str, Any], config: dict[str, Any], losses: _Losses) -> None:
    for name, value in config.items():
        path = f"generationConfig.{name}"
        if name in _NUMBERS:
            body[_NUMBERS[name]] = number_of(value, path)
        elif name in _INTEGERS:
            body[_INTEGERS[name]] = count_of(value, path)
        elif name == "candidateCount":
            if (count := count_of(value, path)) != 1:
                body["n"] = count
        elif name == "stopSequences":
            if stops := [text_of(stop, path) for stop in items_of(value, path)]:
                body["stop"] = stops
        elif name == "responseLogprobs":
            if flag_of(value, path):
                body["logprobs"] = True
                if config.get("logprobs") is not None:
                    body["top_logprobs"] = count_of(config["logprobs"], "generationConfig.logprobs")
        elif name == "thinkingConfig":
            _add_thinking(body, fields_of(value, path), losses)
        elif name == "responseModalities":
            modalities = items_of(value, path)
            if any(modality not in ("TEXT", "text") for modality in modalities):
                losses.refuse(path, value)
            elif modalities:
                losses.harmless(path, value)  # some models would draw if they were not told
        elif name in _HARMLESS_CONFIG:
            losses.harmless(path, value)
        elif name in _REFUSED_CONFIG:
            if value is not False:
                losses.refuse(path, value)
        elif name == "logprobs":
            if not config.get("responseLogprobs"):
                losses.harmless(path, value)  # how many of none
        elif name not in ("responseMimeType", "responseSchema", "responseJsonSchema"):
            losses.drop(_path("generationConfig", name), value)
    _add_format(body, config, losses)


def _add_thinking(body: dict[str, Any], thinking: dict[str, Any], losses: _Losses) -> None:
    for name, value in thinking.items():
        path = f"generationConfig.thinkingConfig.{name}"
        if name == "thinkingBudget":
            body["reasoning_budget"] = count_of(value, path)
        elif name == "thinkingLevel":
            level = text_of(value, path).lower()
            if level in _EFFORTS:
                body["reasoning_effort"] = level
            elif level != "thinking_level_unspecified":
                losses.refuse(path, value)
        elif name == "includeThoughts":
            # Not what is answered, but what is told of it: an answer got without them has none to show.
            if flag_of(value, path):
                losses.harmless(path, value)
        else:
            losses.drop(_path("generationConfig.thinkingConfig", name), value)


def _add_format(body: dict[str, Any], config: dict[str, Any], losses: _Losses) -> None:
    """Gemini holds an answer to its schema: `strict` goes without saying."""
    mime_path, schema_path = "generationConfig.responseMimeType", "generationConfig.responseSchema"
    media_type = text_of(config.get("responseMimeType", ""), mime_path)
    schema, exact = config.get("responseJsonSchema"), "responseSchema" not in config
    if schema is not None:
        schema = mapping(schema, "generationConfig.responseJsonSchema")
    elif not exact:
        schema, exact = json_schema(config["responseSchema"], schema_path)
    if not exact:
        losses.harmless(schema_path, config["responseSchema"])
    if media_type not in ("", "text/plain", "application/json"):
        losses.refuse(mime_path, media_type)
        if schema is not None:
            losses.harmless("generationConfig.responseJsonSchema", schema)
    elif schema is not None:
        if media_type != "application/json":
            losses.harmless(mime_path, media_type)
        wanted = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    elif media_type == "application/json":
        body["response_format"] = {"type": "json_object"}


def _add_tools(body: dict[str, Any], value: Any, losses: _Losses) -> None:
    tools = []
    for number, item in enumerate(items_of(value, "tools")):
        where = f"tools[{number}]"
        for name, inner in fields_of(item, where).items():
            if name != "functionDeclarations":
                losses.refuse(_path(where, name), inner)  # whatever it is, it is a tool
                continue
            for place, declared in enumerate(items_of(inner, f"{where}.{name}")):
                tools.append(_function(declared, f"{where}.{name}[{place}]", losses))
    if tools:
        body["tools"] = tools


def _function(value: Any, where: str, losses: _Losses) -> dict[str, Any]:
    function: dict[str, Any] = {}
    declared = fields_of(value, where)
    function["name"] = text_of(declared.get("name"), f"{where}.name")
    for name, inner in declared.items():
        path = f"{where}.{name}"
        if name == "description":
            function[name] = text_of(inner, path)
        elif name == "parametersJsonSchema":
            function["parameters"] = mapping(inner, path)
        elif name == "parameters":
            exact = False
            if declared.get("parametersJsonSchema") is None:
                function[name], exact = json_schema(inner, path)
            if not exact:
                losses.harmless(path, inner)
        elif name in ("response", "responseJsonSchema"):
            losses.harmless(path, inner)  # what will come back; the model sees it when it does
        elif name == "behavior":
            if inner not in ("UNSPECIFIED", "BLOCKING"):
                losses.refuse(path, inner)
        elif name != "name":
            losses.drop(_path(where, name), inner)
    return {"type": "function", "function": function}


def _add_tool_config(body: dict[str, Any], value: Any, losses: _Losses) -> None:
    for name, inner in fields_of(value, "toolConfig").items():
        path = f"toolConfig.{name}"
        if name == "functionCallingConfig":
            _add_choice(body, fields_of(inner, path), path, losses)
        elif name == "retrievalConfig":
            losses.refuse(path, inner)
        elif name == "includeServerSideToolInvocations":
            losses.harmless(path, inner)  # of tools that would have been refused
        else:
            losses.drop(_path("toolConfig", name), inner)


def _add_choice(body: dict[str, Any], config: dict[str, Any], path: str, losses: _Losses) -> None:
    for name, value in config.items():
        if name == "streamFunctionCallArguments":
            losses.harmless(f"{path}.{name}", value)
        elif name not in ("mode", "allowedFunctionNames"):
            losses.drop(_path(path, name), value)
    mode = text_of(config.get("mode", "AUTO"), f"{path}.mode").upper()
    names_path = f"{path}.allowedFunctionNames"
    allowed = [text_of(name, names_path) for name in items_of(config.get("allowedFunctionNames", []), names_path)]
    usual = mode in ("AUTO", "MODE_UNSPECIFIED")
    if not usual and mode not in ("ANY", "NONE", "VALIDATED"):
        losses.refuse(f"{path}.mode", mode)
    elif mode == "VALIDATED" or ("tools" not in body and not usual):
        losses.harmless(f"{path}.mode", mode)
    if mode == "ANY" and len(allowed) == 1 and "tools" in body:
        body["tool_choice"] = {"type": "function", "function": {"name": allowed[0]}}
        return
    if allowed:
        losses.harmless(names_path, allowed)
    if "tools" not in body or usual:
        return
    if mode == "NONE":
        body["tool_choice"] = "none"
        return
    if mode == "ANY":
        body["tool_choice"] = "required"
    if allowed:
        # A choice among some is a choice among all where there are no others.
        declared, names = body["tools"], frozenset(allowed)
        body["tools"] = [tool for tool in declared if tool["function"]["name"] in names]
        if not body["tools"]:
            raise RequestError(f"{names_path} names no function that is declared", param=names_path)
        if len(body["tools"]) < len(declared):
            losses.harmless("tools", declared)


# --- signatures of this gateway's own


def _without_carried(native: dict[str, Any]) -> dict[str, Any]:
    """Without the signatures that this gateway wrote. It was read before: its shape is known."""
    contents = []
    for content in items_of(native["contents"], "contents"):
        if isinstance(content, dict) and content.get("parts") is not None:
            parts = [
                {name: value for name, value in part.items() if not (name in _SIGNATURES and _is_carried(value))}
                if isinstance(part, dict)
                else part
                for part in items_of(content["parts"], "parts")
            ]
            contents.append({**content, "parts": parts})
        else:
            contents.append(content)
    return {**native, "contents": contents}


def _is_carried(signature: Any) -> bool:
    return isinstance(signature, str) and signature.startswith(MARK)
