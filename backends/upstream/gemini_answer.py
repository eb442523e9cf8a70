"""What Gemini answers, whole or streamed, in the canonical form.

https://ai.google.dev/api/generate-content#generatecontentresponse and https://ai.google.dev/api/embeddings; field by
field in docs/dialects/gemini.md.
"""

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeVar

import msgspec

from backends.upstream.base import Call
from backends.upstream.gemini_request import FORMAT, LAID_OUT
from backends.upstream.wire import Unreadable
from models.completion import Chunk

_FINISHES: Final = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
# Any other reason (MALFORMED_FUNCTION_CALL, OTHER …): the answer broke off, and no cache may take it for a whole one.
_BROKE_OFF: Final = "length"
# Where `finish_reason` says as much.
_SAID: Final = frozenset({"STOP", "MAX_TOKENS"})
_OF_ANSWER: Final = frozenset({"candidates", "usageMetadata", "modelVersion", "responseId"})
_OF_CANDIDATE: Final = frozenset({"content", "finishReason", "index", "logprobsResult"})
_OF_USAGE: Final = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount", "totalTokenCount"}
)
_OF_TEXT: Final = frozenset({"text", "thought", "thoughtSignature"})
_TEXTS: Final = frozenset({"content", "reasoning_content"})
_RANKS: Final = {name: rank for rank, name in enumerate(LAID_OUT)}
_MOST_CANDIDATES: Final = 128
# Every chunk repeats the answer's names, and some all that belongs to no part: about ten bytes come of one.
_MOST_GROWTH: Final = 50
_GROWTH_ALLOWED: Final = 1 << 20

Fields = dict[str, Any]
_T = TypeVar("_T")


def completion(body: bytes, call: Call, *, created: int) -> Fields:
    """A whole canonical answer. Raises `Unreadable`."""
    reply = _decoded(body, "answered with something that is no chat reply")
    try:
        return _Answer(call, "chat.completion", created).whole(reply)
    except _OtherShape:
        raise Unreadable("answered with something that is no chat reply") from None


def embeddings(body: bytes, call: Call) -> Fields:
    """The OpenAI API's list of embeddings. Raises `Unreadable`."""
    broken = "answered with something that is no embedding reply"
    try:
        reply = _EMBEDDINGS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unreadable(broken) from None
    texts = call.body.get("input")
    if len(reply.embeddings) != (len(texts) if isinstance(texts, list) else 1):
        raise Unreadable("answered with another number of embeddings than texts")
    vectors: list[Any] = [embedding.values for embedding in reply.embeddings]
    if call.body.get("encoding_format") == "base64":
        try:
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        except OverflowError:
            raise Unreadable(broken) from None
    fields = {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)],
        "model": call.model,
    }
    if reply.usage_metadata is None:
        return fields
    read = reply.usage_metadata.prompt_token_count
    return {**fields, "usage": {"prompt_tokens": read, "total_tokens": read}}


class Decoder:
    """Reads a streamed answer, whose end has no mark: it ends when every candidate has said why it finished."""

    finished = False

    def __init__(self, call: Call, *, created: int) -> None:
        self._answer = _Answer(call, "chat.completion.chunk", created)
        self._read = self._told = 0  # bytes

    @property
    def complete(self) -> bool:
        return self._answer.complete

    def feed(self, data: bytes) -> Sequence[Chunk]:
        broken = "had a chunk that is not the JSON it should be"
        event = _decoded(data, broken, erring="ended with an error")
        self._read += len(data)
        chunks = []
        try:
            for fields in self._answer.chunks(event):
                payload = msgspec.json.encode(fields)
                self._told += len(payload)
                if self._told > _MOST_GROWTH * self._read + _GROWTH_ALLOWED:
                    raise Unreadable("had long names in it, to be repeated with every word")
                chunks.append(Chunk(payload, fields))
        except _OtherShape:
            # No cause: it may quote the chunk.
            raise Unreadable(broken) from None
        return chunks


class _OtherShape(Exception):
    """A field of another type than the API's."""


class _Answer:
    """One answer as it is read. `created` stands in for the time it was made, which the API does not say."""

    def __init__(self, call: Call, kind: str, created: int) -> None:
        self._frame: Fields = {"id": "", "object": kind, "created": created, "model": call.model}
        self._beyond: Fields = {}
        self._news = False  # something in `_beyond` was not passed on yet
        self._candidates: dict[int, _Candidate] = {}
        self._blocked = False
        self._usage: Fields | None = None
        self._counted: Fields | None = None  # the usage that was passed on
        # Where the numbers of calls without an id go on.
        self._calls_so_far = _calls_in(call.body.get("messages"))
        self._wanted = call.body.get("n")
        # Gemini cannot be told. Who takes one call at a time gets the first, and the model asks again for the others.
        self._single = call.body.get("parallel_tool_calls") is False

    @property
    def complete(self) -> bool:
        candidates = self._candidates.values()
        return self._blocked or (bool(candidates) and all(candidate.finished for candidate in candidates))

    def whole(self, reply: Fields) -> Fields:
        self._read(reply)
        choices = [candidate.whole(fields) for candidate, fields in self._read_candidates(reply)]
        if len(choices) != len(self._candidates):
            raise Unreadable("answered with one candidate twice")
        if not choices:
            reason = _block_reason(reply)
            if reason is None:
                raise Unreadable("answered with no candidate")
            message = {"role": "assistant", "content": None, "refusal": _refusal(reply, reason)}
            choices = [{"index": 0, "message": message, "logprobs": None, **_filtered(reason)}]
        whole = self._framed(choices)
        return whole if self._usage is None else {**whole, "usage": self._usage}

    def chunks(self, event: Fields) -> Iterator[Fields]:
        self._read(event)
        for candidate, fields in self._read_candidates(event):
            for choice in candidate.choices(fields):
                yield self._framed([choice])
        reason = None if self._blocked else _block_reason(event)
        if reason is not None:
            self._blocked = True
            refusal = {"role": "assistant", "refusal": _refusal(event, reason)}
            unfinished = [index for index, candidate in self._candidates.items() if not candidate.finished]
            for index in unfinished or [0]:
                choice = {"index": index, "delta": refusal, "logprobs": None, "finish_reason": None}
                yield self._framed([choice])
                yield self._framed([{"index": index, "delta": {}, "logprobs": None, **_filtered(reason)}])
        # Every event counts what was used so far: the last count is the one.
        if self._usage is not None and self._usage != self._counted and self._all_here():
            self._counted = self._usage
            yield {**self._framed([]), "usage": self._usage}

    def _all_here(self) -> bool:
        wanted = self._wanted
        return self.complete and (self._blocked or not isinstance(wanted, int) or len(self._candidates) >= wanted)

    def _read(self, reply: Fields) -> None:
        if reply.get("responseId"):
            self._frame["id"] = _of(str, reply["responseId"])
        if reply.get("modelVersion"):
            self._frame["model"] = _of(str, reply["modelVersion"])
        if reply.get("usageMetadata") is not None:
            self._usage = _usage(_of(dict, reply["usageMetadata"])) or self._usage
        for name in reply.keys() - _OF_ANSWER:
            if reply[name] is not None and self._beyond.get(name) != reply[name]:
                self._beyond[name] = reply[name]
                self._news = True

    def _read_candidates(self, reply: Fields) -> Iterator[tuple["_Candidate", Fields]]:
        for at, fields in enumerate(_of(list, reply.get("candidates") or [])):
            index = _of(dict, fields).get("index", at)
            if type(index) is not int or not 0 <= index < _MOST_CANDIDATES:
                raise _OtherShape
            candidate = self._candidates.get(index)
            if candidate is None:
                candidate = self._candidates[index] = _Candidate(index, self._calls_so_far, single=self._single)
            yield candidate, fields

    def _framed(self, choices: list[Fields]) -> Fields:
        framed = {**self._frame, "choices": choices}
        if self._news:
            self._news = False
            framed["provider_fields"] = {"dialect": "gemini", **self._beyond}
        return framed


class _Candidate:
    """One candidate as it is read: how many calls and signatures it had, and what belongs to no part."""

    def __init__(self, index: int, calls_so_far: int, *, single: bool) -> None:
        self.finished = False
        self._index = index
        self._calls_so_far = calls_so_far
        self._single = single
        self._begun = False
        self._calls = 0
        self._details = 0
        self._thinking = False  # the last detail is a thought that may go on
        self._beyond: Fields = {}

    def whole(self, fields: Fields) -> Fields:
        said: dict[str, list[Any]] = {}
        layout: list[tuple[str, int]] = []
        for delta in self._deltas(fields):
            for name, run in delta.items():
                said.setdefault(name, []).extend(run)
                if name not in _RANKS:
                    continue
                size = sum(map(len, run)) if name in _TEXTS else len(run)
                if layout and layout[-1][0] == name:
                    layout[-1] = (name, layout[-1][1] + size)
                else:
                    layout.append((name, size))
        message: Fields = {"role": "assistant", "content": None, **_put_together(said)}
        if "tool_calls" in message:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in message["tool_calls"]]
        if not all(_RANKS[before] < _RANKS[after] for (before, _), (after, _) in pairwise(layout)):
            message["layout"] = layout
        self._note(fields)
        return {
            "index": self._index,
            "message": message,
            "logprobs": _logprobs(fields.get("logprobsResult")),
            **self._finish(fields.get("finishReason") or "STOP"),
        }

    def choices(self, fields: Fields) -> Iterator[Fields]:
        """What comes next in each of the chunks."""
        news = self._note(fields)
        logprobs = _logprobs(fields.get("logprobsResult"))
        deltas = list(map(_put_together, self._deltas(fields)))
        if not deltas and logprobs is not None:
            deltas.append({})
        for delta in deltas:
            if not self._begun:
                self._begun = True
                delta = {"role": "assistant", **delta}
            yield {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            logprobs = None
        closing: Fields = {"index": self._index, "delta": {}, "logprobs": None}
        if fields.get("finishReason"):
            self.finished = True
            yield {**closing, **self._finish(fields["finishReason"])}
        elif news and self.finished:
            yield {**closing, "finish_reason": None, "provider_fields": {"dialect": "gemini", **self._beyond}}

    def _note(self, fields: Fields) -> bool:
        """Whether there is something new that belongs to no part: sources, ratings. The last of each kind counts."""
        beyond = {name: fields[name] for name in fields.keys() - _OF_CANDIDATE if fields[name] is not None}
        if all(self._beyond.get(name) == value for name, value in beyond.items()):
            return False
        self._beyond |= beyond
        return True

    def _finish(self, reason: Any) -> Fields:
        ended = _FINISHES.get(_of(str, reason), _BROKE_OFF)
        finish: Fields = {"finish_reason": "tool_calls" if ended == "stop" and self._calls else ended}
        if reason not in _SAID:
            finish["native_finish_reason"] = reason
        if self._beyond:
            finish["provider_fields"] = {"dialect": "gemini", **self._beyond}
        return finish

    def _deltas(self, fields: Fields) -> Iterator[dict[str, list[Any]]]:
        """The parts, as few deltas as their order allows: in each reasoning, text, tool calls and other blocks, every
        field a list of pieces."""
        content = fields.get("content")
        parts = None if content is None else _of(dict, content).get("parts")
        delta: dict[str, list[Any]] = {}
        rank = 0
        for part in _of(list, parts or []):
            for name, piece in self._pieces(_of(dict, part)):
                if delta and _RANKS.get(name, 0) < rank:
                    yield delta
                    delta = {}
                rank = _RANKS.get(name, 0)
                run = delta.setdefault(name, [])
                if name == "reasoning_details" and run and run[-1]["index"] == piece["index"]:
                    run[-1]["text"] += piece.pop("text")
                    run[-1] |= piece
                else:
                    run.append(piece)
        if delta:
            yield delta

    def _pieces(self, part: Fields) -> Iterator[tuple[str, Any]]:
        """What one part comes to, by field of a delta."""
        signature = part.get("thoughtSignature")
        if signature is not None:
            signature = _of(str, signature)
        call = part.get("functionCall")
        if call is not None:
            self._thinking = False
            if not (self._single and self._calls):
                yield from self._call(_of(dict, call), signature)
        elif part.keys() - _OF_TEXT:
            self._thinking = False
            yield "provider_content", {"dialect": "gemini", "block": part}
        elif part.get("thought"):
            yield from self._thought(_of(str, part.get("text", "")), signature)
        else:
            text = _of(str, part.get("text", ""))
            if text:
                self._thinking = False
                yield "content", text
            if signature:
                self._thinking = False
                yield "reasoning_details", self._detail("reasoning.encrypted", data=signature)

    def _thought(self, text: str, signature: str | None) -> Iterator[tuple[str, Any]]:
        if not text and not signature:
            return
        if not self._thinking:
            self._details += 1
        detail: Fields = {"type": "reasoning.text", "index": self._details - 1, "format": FORMAT, "text": [text]}
        if signature:
            detail["signature"] = signature
        self._thinking = not signature
        if text:
            yield "reasoning_content", text
        yield "reasoning_details", detail

    def _call(self, call: Fields, signature: str | None) -> Iterator[tuple[str, Any]]:
        name, arguments = _of(str, call.get("name")), _of(dict, call.get("args") or {})
        index = self._calls
        self._calls += 1
        call_id = _of(str, call.get("id") or f"call_{self._calls_so_far + index}")
        if signature:
            yield "reasoning_details", self._detail("reasoning.encrypted", data=signature, tool_call_id=call_id)
        function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
        yield "tool_calls", {"index": index, "id": call_id, "type": "function", "function": function}

    def _detail(self, kind: str, **fields: str) -> Fields:
        self._details += 1
        return {"type": kind, "index": self._details - 1, "format": FORMAT, **fields}


class _EmbeddingUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: int = 0


class _Embedding(msgspec.Struct):
    values: list[float]


class _Embeddings(msgspec.Struct, rename="camel"):
    embeddings: list[_Embedding]
    usage_metadata: _EmbeddingUsage | None = None


_EMBEDDINGS: Final = msgspec.json.Decoder(_Embeddings)


def _decoded(data: bytes, broken: str, *, erring: str = "answered with an error that it called a success") -> Fields:
    try:
        reply = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # No cause: it may quote the answer.
        raise Unreadable(broken) from None
    if not isinstance(reply, dict):
        raise Unreadable(broken)
    if reply.get("error") is not None:
        raise Unreadable(erring)
    return reply


def _of(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise _OtherShape
    return value


def _put_together(said: Mapping[str, list[Any]]) -> Fields:
    """Texts of their pieces, those of thoughts too."""
    for detail in said.get("reasoning_details", ()):
        if "text" in detail:
            detail["text"] = "".join(detail["text"])
    return {name: "".join(run) if name in _TEXTS else run for name, run in said.items()}


def _calls_in(messages: Any) -> int:
    turns = [message.get("tool_calls") for message in _of(list, messages or []) if isinstance(message, dict)]
    return sum(len(calls) for calls in turns if isinstance(calls, list))


def _block_reason(reply: Fields) -> str | None:
    feedback = reply.get("promptFeedback")
    reason = None if feedback is None else _of(dict, feedback).get("blockReason")
    return None if reason is None else _of(str, reason)


def _refusal(reply: Fields, reason: str) -> str:
    message = reply["promptFeedback"].get("blockReasonMessage")
    return message if message and isinstance(message, str) else f"The provider blocked the prompt ({reason})."


def _filtered(reason: str) -> Fields:
    return {"finish_reason": "content_filter", "native_finish_reason": reason}


def _logprobs(result: Any) -> Fields | None:
    if result is None:
        return None
    chosen = _of(list, _of(dict, result).get("chosenCandidates") or [])
    top = _of(list, result.get("topCandidates") or [])
    content = []
    for at, token in enumerate(chosen):
        others = _of(dict, top[at]).get("candidates") if at < len(top) else None
        likeliest = [_token(other) for other in _of(list, others or [])]
        content.append({**_token(token), "top_logprobs": likeliest})
    return {"content": content, "refusal": None} if content else None


def _token(token: Any) -> Fields:
    logprob = _of(dict, token).get("logProbability", 0.0)
    if type(logprob) not in (int, float):
        raise _OtherShape
    # A token may be part of a character: its bytes are not known from its text.
    return {"token": _of(str, token.get("token", "")), "logprob": logprob, "bytes": None}


def _usage(counts: Fields) -> Fields | None:
    """None where it does not count what was read."""
    read = _count(counts, "promptTokenCount")
    if read is None:
        return None
    prompt = read + (_count(counts, "toolUsePromptTokenCount") or 0)
    thoughts = _count(counts, "thoughtsTokenCount")
    completion = (_count(counts, "candidatesTokenCount") or 0) + (thoughts or 0)
    usage: Fields = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    heard, spoken = _audio(counts, "promptTokensDetails"), _audio(counts, "candidatesTokensDetails")
    if prompt_details := _present(cached_tokens=_count(counts, "cachedContentTokenCount"), audio_tokens=heard):
        usage["prompt_tokens_details"] = prompt_details
    if completion_details := _present(reasoning_tokens=thoughts, audio_tokens=spoken):
        usage["completion_tokens_details"] = completion_details
    if rest := {name: value for name, value in counts.items() if name not in _OF_USAGE}:
        usage["provider_usage"] = {"dialect": "gemini", **rest}
    return usage


def _count(counts: Fields, name: str) -> int | None:
    count = counts.get(name)
    return count if type(count) is int and count >= 0 else None


def _audio(counts: Fields, name: str) -> int | None:
    modalities = counts.get(name)
    for counted in modalities if isinstance(modalities, list) else ():
        if isinstance(counted, dict) and counted.get("modality") == "AUDIO":
            return _count(counted, "tokenCount")
    return None


def _present(**counts: int | None) -> Fields:
    return {name: count for name, count in counts.items() if count is not None}
