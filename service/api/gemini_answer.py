"""Canonical answers as Gemini's: whole, or as the events of a stream.

https://ai.google.dev/api/generate-content#generatecontentresponse
"""

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any, Protocol

import msgspec

from models.completion import Completion
from models.errors import GatewayError, UpstreamError
from models.request import Request
from service.api import sse
from service.api.carried import packed
from service.api.errors import provider_message, status_of
from service.api.gemini_request import SIGNATURE_FORMAT
from service.caching.assembly import usage_fields
from service.caching.replay import LAID_OUT, adds_up

JSON_MEDIA_TYPE = b"application/json"

_FINISH_REASONS = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "function_call": "STOP",
    "content_filter": "SAFETY",
}
_NATIVE_REASONS = frozenset(
    {
        "STOP",
        "MAX_TOKENS",
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "OTHER",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "MALFORMED_FUNCTION_CALL",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "IMAGE_OTHER",
        "NO_IMAGE",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE",
        "CONTINUATION",
    }
)
_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# Fields of a piece of reasoning that add up.
_ADDED_TO = frozenset({"text", "summary", "data", "signature"})
_LONGEST_NAME = 512
_NO_ARGUMENTS = "the arguments of a function call are no JSON object"


def whole(completion: Completion, request: Request) -> bytes:
    answer: dict[str, Any] = msgspec.json.decode(completion.body)
    thoughts = wants_thoughts(request)
    own = _own_fields(answer)
    candidates = []
    for number, choice in enumerate(_objects(answer.get("choices"))):
        candidate = _Candidate(thoughts=thoughts)
        said = _said(choice.get("message"))
        if _is_blocked(own):
            said.pop("refusal", None)
        parts = [part for name, run in _runs(said) for part in candidate.add({name: run})]
        candidate.close(choice)
        parts += candidate.rest()
        if candidate.spoke or not _is_blocked(own):
            candidates.append(candidate.fields(_joined(parts), _index(choice, number)))
    if not candidates and not _is_blocked(own):
        candidates.append(_Candidate(thoughts=thoughts).fields([], 0))
    fields = {
        **own,
        **({"candidates": candidates} if candidates else {}),
        "usageMetadata": _usage(answer.get("usage"), completion),
        "modelVersion": _text(answer.get("model")),
        "responseId": _text(answer.get("id")),
    }
    return msgspec.json.encode(fields)


def wants_thoughts(request: Request) -> bool:
    """Without `includeThoughts` this API keeps them to itself, and clients read the first part as the answer."""
    return bool(request.beyond.get("generationConfig.thinkingConfig.includeThoughts"))


class Framing(Protocol):
    """How the answers of a stream follow each other."""

    media_type: bytes

    def frame(self, payload: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class EventFraming:
    """`alt=sse`: one `data:` event each."""

    media_type = sse.MEDIA_TYPE

    def frame(self, payload: bytes) -> bytes:
        return sse.event(payload)

    def end(self) -> bytes:
        return b""


class ArrayFraming:
    """Without `alt=sse`: the items of one JSON array."""

    media_type = JSON_MEDIA_TYPE

    def __init__(self) -> None:
        self._begun = False

    def frame(self, payload: bytes) -> bytes:
        opening = b",\r\n" if self._begun else b"["
        self._begun = True
        return opening + payload

    def end(self) -> bytes:
        return b"]" if self._begun else b"[]"


class Stream:
    """Text goes out as it comes; calls when their arguments are complete, which is when something else follows.

    Why the answer ended and its usage are in the last event: they are kept
    until `end`.
    """

    def __init__(self, framing: Framing, *, thoughts: bool) -> None:
        self.media_type = framing.media_type
        self._framing = framing
        self._thoughts = thoughts
        self._candidates: dict[int, _Candidate] = {}
        self._frame: dict[str, Any] = {"modelVersion": "", "responseId": ""}
        self._own: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None

    def chunks(self, payloads: Sequence[bytes]) -> bytes:
        """Raises `UpstreamError` where a tool call goes on after it was sent."""
        return b"".join(map(self._event, payloads))

    def end(self, completion: Completion) -> bytes:
        candidates = []
        for index, candidate in sorted(self._candidates.items()) or [(0, _Candidate(thoughts=self._thoughts))]:
            spoke = candidate.spoke
            parts = candidate.rest()
            if not parts and spoke:
                parts = [{"text": ""}]  # without a part the SDK's chats take the turn for a failed one
            if parts or not _is_blocked(self._own):
                candidates.append(candidate.fields(parts, index))
        fields = {
            **self._own,
            **({"candidates": candidates} if candidates else {}),
            "usageMetadata": _usage(self._usage, completion),
            **self._frame,
        }
        return self._framing.frame(msgspec.json.encode(fields)) + self._framing.end()

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return self._framing.frame(error_body(error, request_id)) + self._framing.end()

    def _event(self, payload: bytes) -> bytes:
        chunk: dict[str, Any] = msgspec.json.decode(payload)
        # Every event has them.
        self._frame["modelVersion"] = _text(chunk.get("model"))[:_LONGEST_NAME] or self._frame["modelVersion"]
        self._frame["responseId"] = _text(chunk.get("id"))[:_LONGEST_NAME] or self._frame["responseId"]
        self._own |= _own_fields(chunk)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        candidates = []
        for choice in _objects(chunk.get("choices")):
            index = _index(choice, 0)
            candidate = self._candidates.get(index)
            if candidate is None:
                candidate = self._candidates[index] = _Candidate(thoughts=self._thoughts)
            delta = _object(choice.get("delta"))
            if _is_blocked(self._own):
                delta.pop("refusal", None)
            parts = candidate.add(delta)
            candidate.close(choice)
            if parts:
                candidates.append({"content": {"parts": parts, "role": "model"}, "index": index})
        if not candidates:
            return b""
        return self._framing.frame(msgspec.json.encode({"candidates": candidates, **self._frame}))


class _Candidate:
    """One choice, as its deltas come.

    A signature belongs to a call, a thought or a text. One that comes before
    its text waits for the text's end, where the API has it too.
    """

    def __init__(self, *, thoughts: bool) -> None:
        self.spoke = False  # a part was given out
        self._thoughts = thoughts
        self._texting = False  # the part before was a text
        self._signature: str | None = None  # of the text that comes next
        self._calls: dict[int, dict[str, Any]] = {}
        self._call_signatures: dict[str, str] = {}
        self._foreign: dict[int, dict[str, Any]] = {}  # reasoning that another maker signed, by its index
        self._last_call = self._calls_sent = -1  # the highest index
        self._malformed = False
        self._refused = False
        self._reason: str | None = None
        self._own: dict[str, Any] = {}
        self._logprobs: list[dict[str, Any]] = []

    def add(self, delta: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts that are complete with it."""
        parts: list[dict[str, Any]] = []
        if self._thoughts and (thought := delta.get("reasoning_content") or delta.get("reasoning")):
            self._other(parts, {"text": _text(thought), "thought": True})
        if details := delta.get("reasoning_details"):
            for detail in _objects(details):
                self._add_detail(detail, parts)
        if content := _text(delta.get("content")):
            self._say(content, parts)
        if calls := delta.get("tool_calls"):
            for call in _objects(calls):
                self._add_call(call)
        elif isinstance(delta.get("function_call"), dict):
            self._add_call({"index": 0, "function": delta["function_call"]})
        for item in _objects(delta.get("provider_content")):
            if item.get("dialect") == "gemini" and isinstance(item.get("block"), dict):
                self._other(parts, item["block"])
        if refusal := _text(delta.get("refusal")):
            self._refused = True
            self._say(refusal, parts)
        self.spoke = self.spoke or bool(parts)
        return parts

    def close(self, choice: dict[str, Any]) -> None:
        """What a choice says beside its message."""
        reason = choice.get("finish_reason")
        native = choice.get("native_finish_reason")
        if isinstance(native, str) and native in _NATIVE_REASONS:
            self._reason = native
        elif reason is not None and self._reason is None:
            self._reason = _FINISH_REASONS.get(reason, "OTHER") if isinstance(reason, str) else "OTHER"
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self._logprobs += _objects(logprobs.get("content"))
        self._own |= _own_fields(choice)

    def rest(self) -> list[dict[str, Any]]:
        """What was waiting for something to follow."""
        parts: list[dict[str, Any]] = []
        self._flush(parts)
        self.spoke = self.spoke or bool(parts)
        return parts

    def fields(self, parts: list[dict[str, Any]], index: int) -> dict[str, Any]:
        """The candidate of the last event, or of a whole answer. `rest` comes before."""
        fields: dict[str, Any] = {**self._own, "content": {"parts": parts, "role": "model"}}
        # Who does not say why it ended has said it all, or nothing.
        reason = self._reason or ("STOP" if self.spoke or self._malformed else "OTHER")
        if self._refused and reason == "STOP":
            reason = "SAFETY"
        elif self._malformed and reason == "STOP":
            reason = "MALFORMED_FUNCTION_CALL"
            fields["finishMessage"] = _NO_ARGUMENTS
        fields["finishReason"] = reason
        fields["index"] = index
        if self._logprobs and "logprobsResult" not in fields:
            fields |= _logprobs(self._logprobs)
        return fields

    def _say(self, text: str, parts: list[dict[str, Any]]) -> None:
        if self._calls:
            self._flush(parts)
        parts.append({"text": text})
        self._texting = True

    def _other(self, parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
        self._flush(parts)
        parts.append(part)
        self._texting = False

    def _flush(self, parts: list[dict[str, Any]]) -> None:
        if self._signature is not None:
            parts.append({"text": "", "thoughtSignature": self._signature})
            self._signature = None
        for index in sorted(self._calls):
            self._texting = False
            if (part := self._call_part(self._calls[index])) is not None:
                parts.append(part)
            self._calls_sent = index
        self._calls.clear()

    def _add_detail(self, detail: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        if detail.get("format") != SIGNATURE_FORMAT:
            self._keep_foreign(detail)
            return
        signature = detail.get("signature") or detail.get("data")
        if not isinstance(signature, str) or not signature:
            return
        call_id = detail.get("tool_call_id")
        if isinstance(call_id, str):
            self._call_signatures[call_id] = signature
        elif detail.get("type") == "reasoning.text":
            if self._thoughts:
                self._other(parts, {"text": "", "thought": True, "thoughtSignature": signature})
        else:
            if self._signature is not None or self._calls:
                self._flush(parts)
            if self._texting:
                parts.append({"text": "", "thoughtSignature": signature})
                self._texting = False
            else:
                self._signature = signature

    def _keep_foreign(self, piece: dict[str, Any]) -> None:
        """Pieces of one item have its index."""
        index = piece.get("index")
        if not isinstance(index, int):
            index = len(self._foreign)
        so_far = self._foreign.setdefault(index, {})
        for name, value in piece.items():
            if name not in _ADDED_TO or not isinstance(value, str):
                so_far[name] = value
                continue
            text = so_far.get(name)
            if not isinstance(text, StringIO):
                text = so_far[name] = StringIO()
            text.write(value)

    def _carried(self) -> str | None:
        """What another maker's model needs to go on from its call, for the client to bring back; once."""
        details = [
            {name: value.getvalue() if isinstance(value, StringIO) else value for name, value in detail.items()}
            for detail in self._foreign.values()
        ]
        self._foreign = {}
        signed = any(detail.get("signature") or detail.get("data") for detail in details)
        return packed(details) if signed else None

    def _add_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if not isinstance(index, int) or index < 0:
            # Servers that give no index begin each call with an id.
            index = self._last_call if self._calls else self._calls_sent + 1
            if piece.get("id") and self._calls.get(index, {}).get("id"):
                index += 1
        if index <= self._calls_sent:
            raise UpstreamError("the upstream went on with a tool call after it had said something else")
        self._last_call = max(self._last_call, index)
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": []})
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        call["id"] = _text(piece.get("id")) or call["id"]
        call["name"] = _text(function.get("name")) or call["name"]
        call["arguments"].append(_text(function.get("arguments")))

    def _call_part(self, call: dict[str, Any]) -> dict[str, Any] | None:
        """None where the arguments are cut short or broken: this API has only objects there."""
        try:
            arguments = msgspec.json.decode("".join(call["arguments"]).strip() or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            self._malformed = True
            return None
        identified = {"id": call["id"]} if call["id"] else {}
        part: dict[str, Any] = {"functionCall": {**identified, "name": call["name"], "args": arguments}}
        signature = self._call_signatures.pop(call["id"], None) or (self._carried() if self._foreign else None)
        if signature is not None:
            part["thoughtSignature"] = signature
        return part


def _said(message: Any) -> dict[str, Any]:
    """What a message says in parts, and nothing of another shape."""
    if not isinstance(message, dict):
        return {}
    said: dict[str, Any] = {name: message[name] for name in ("refusal", "function_call") if message.get(name)}
    if message.get("tool_calls"):
        said.pop("function_call", None)  # the older way to say the same
    for name in ("reasoning_content", "reasoning", "content"):
        if text := _text(message.get(name)):
            said[name] = text
    for name in ("reasoning_details", "tool_calls", "provider_content"):
        if items := message.get(name):
            said[name] = items if isinstance(items, list) else []
    layout = message.get("layout")
    if adds_up(layout, said):
        said["layout"] = layout
    return said


def _runs(said: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A whole message as the fewest deltas that have it in its order."""
    layout = said.get("layout") or [(name, len(said[name])) for name in LAID_OUT if name in said]
    thought = said.get("reasoning_content") or said.get("reasoning") or ""
    readable = [
        _text(detail.get("text") or detail.get("summary")) if isinstance(detail, dict) else ""
        for detail in said.get("reasoning_details", ())
    ]
    mirrored = bool(thought) and thought == "".join(readable)
    if thought and not mirrored:
        yield "reasoning_content", thought
    done = dict.fromkeys(LAID_OUT, 0)
    for name, count in layout:
        begin = done[name]
        done[name] = begin + count
        run = said.get(name, ())[begin : begin + count]
        if name == "reasoning_details":
            for detail, text in zip(run, readable[begin:], strict=False):
                if mirrored and text:
                    yield "reasoning_content", text
                yield name, [detail]
        elif name == "tool_calls":
            numbered = enumerate(run, begin)
            yield name, [{**call, "index": index} for index, call in numbered if isinstance(call, dict)]
        else:
            yield name, run
    for name in ("function_call", "refusal"):
        if name in said:
            yield name, said[name]


def _joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts of one kind that follow each other are one, up to its signature."""
    joined: list[dict[str, Any]] = []
    texts: list[str] = []  # of the last one
    for part in [*parts, {}]:
        text = part.get("text")
        last = joined[-1] if joined else {}
        if (
            isinstance(text, str)
            and texts
            and part.get("thought") == last.get("thought")
            and "thoughtSignature" not in last
        ):
            texts.append(text)
            last |= {**part, "text": ""}
            continue
        if texts:
            last["text"] = "".join(texts)
        texts = [text] if isinstance(text, str) else []
        joined.append({**part})
    return joined[:-1]


def _own_fields(holder: dict[str, Any]) -> dict[str, Any]:
    """Fields that only this API has, which an answer or a choice of it keeps in its `provider_fields`."""
    own = _object(holder.get("provider_fields"))
    return {name: value for name, value in own.items() if name != "dialect"} if own.get("dialect") == "gemini" else {}


def _is_blocked(own: dict[str, Any]) -> bool:
    """A prompt that Gemini refused has no candidate: the refusal that others are told stands for its word."""
    return bool(_object(own.get("promptFeedback")).get("blockReason"))


def _logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """`logprobsResult` and `avgLogprobs`. The ids of tokens are not known here."""
    chosen = [_candidate_token(token) for token in tokens]
    top = [
        {"candidates": [_candidate_token(other) for other in _objects(token.get("top_logprobs"))]} for token in tokens
    ]
    known = [token["logProbability"] for token in chosen if "logProbability" in token]
    result: dict[str, Any] = {"chosenCandidates": chosen}
    if any(step["candidates"] for step in top):
        result["topCandidates"] = top
    average = {"avgLogprobs": sum(known) / len(known)} if known else {}
    return {**average, "logprobsResult": result}


def _candidate_token(token: dict[str, Any]) -> dict[str, Any]:
    logprob = token.get("logprob")
    known = {"logProbability": logprob} if isinstance(logprob, int | float) else {}
    return {"token": _text(token.get("token")), **known}


def _usage(usage: Any, completion: Completion) -> dict[str, Any]:
    """`candidatesTokenCount` is without thoughts, and `promptTokenCount` without what tools put before the model."""
    if not isinstance(usage, dict):
        usage = usage_fields(completion.usage)
    own = usage.get("provider_usage")
    own = own if isinstance(own, dict) and own.get("dialect") == "gemini" else {}
    prompt, written = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
    thought = _count(_object(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    counts = {
        "promptTokenCount": max(0, prompt - _count(own.get("toolUsePromptTokenCount"))),
        "candidatesTokenCount": max(0, written - thought),
        "totalTokenCount": prompt + written,
    }
    if cached:
        counts["cachedContentTokenCount"] = cached
    if thought:
        counts["thoughtsTokenCount"] = thought
    return {**counts, **{name: value for name, value in own.items() if name != "dialect"}}


def error_body(error: GatewayError, request_id: str) -> bytes:
    """`{"error": {"code", "message", "status", "details"}}`, https://cloud.google.com/apis/design/errors.

    What Gemini itself said of a request is passed on as it came.
    """
    if isinstance(error, UpstreamError) and error.body is not None and error.dialect == "gemini":
        return error.body
    status = status_of(error)
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.code,
            "domain": "keepgate",
            "metadata": {"request_id": request_id},
        }
    ]
    message = provider_message(error)
    if error.param is not None:
        violation = {"field": error.param, "description": message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if error.retry_after is not None and error.retry_after.isdecimal():
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{error.retry_after}s"})
    name = _STATUS_NAMES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    return msgspec.json.encode({"error": {"code": status, "message": message, "status": name, "details": details}})


def _index(choice: dict[str, Any], otherwise: int) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else otherwise


def _text(value: Any) -> str:
    """A text, or the texts of a list of parts, which some compatible servers have for a content."""
    if isinstance(value, str):
        return value
    texts = (part.get("text") for part in _objects(value) if part.get("type") in ("text", None))
    return "".join(text for text in texts if isinstance(text, str))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
