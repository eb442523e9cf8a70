"""The OpenAI Responses dialect: a canonical answer as a Response, whole or as the events that tell it.

One account of the answer serves both: a whole one is told in a few large
pieces, and its events are not sent.
https://platform.openai.com/docs/api-reference/responses/object
https://platform.openai.com/docs/api-reference/responses-streaming
"""

import base64
import binascii
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import msgspec

from models.completion import Completion
from models.errors import GatewayError, LimitError, RequestError
from models.request import Request
from service.api import sse
from service.api.openai_responses_tools import offered
from service.caching import assembly, replay

FORMAT = "openai-responses-v1"  # of reasoning that this API reads
# What stands in `encrypted_content` for reasoning that another API signed, so that the client brings it back.
_SEAL = "keepgate-1."
# How ids that were made here go on after `resp_`, `msg_` and the like. No provider keeps anything under them.
_OURS = "kg_"
# Fields of items, events and annotations whose value is the id of something that a provider keeps.
_KEPT_BY_ID = frozenset({"id", "item_id", "container_id"})

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# Fields of a Response that repeat the request, and what they are where it has none.
_ECHO: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_BESIDE_CALLS = ("item_id", "namespace", "caller", "async")
_ECHO_IF_SAID = ("prompt", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store")


def unsealed(opaque: str) -> list[dict[str, Any]] | None:
    """The reasoning details in an `encrypted_content`; None where another than this gateway wrote it."""
    if not opaque.startswith(_SEAL):
        return None
    try:
        details = msgspec.json.decode(base64.urlsafe_b64decode(opaque[len(_SEAL) :]), type=list[dict[str, Any]])
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RequestError("encrypted_content is cut off or changed", param="input") from error
    return details


def is_ours(given: object) -> bool:
    return isinstance(given, str) and _OURS in given and given.partition("_")[2].startswith(_OURS)


def _sealed(details: list[dict[str, Any]]) -> str:
    return _SEAL + base64.urlsafe_b64encode(msgspec.json.encode(details)).decode()


def whole(completion: Completion, request: Request) -> bytes:
    """The body of a 200."""
    reply: dict[str, Any] = msgspec.json.decode(completion.body)
    answer = _Answer(request.native or {}, replayed=request.replayed)
    answer.open(reply)
    choice = _first(reply)
    message = choice.get("message")
    answer.count(choice.get("logprobs"))
    for delta in _deltas(message if isinstance(message, dict) else {}):
        answer.add(delta)
    usage = reply.get("usage")
    if assembly.usage_of(usage) is None:
        usage = assembly.usage_fields(completion.usage)
    return msgspec.json.encode(answer.finish(choice, usage))


def stream(request: Request) -> "_Stream":
    return _Stream(request)


class _Stream:
    """Server-sent events, each named as its `type`, numbered from 0."""

    media_type = sse.MEDIA_TYPE

    def __init__(self, request: Request) -> None:
        native = request.native or {}
        # The two large ones go out three times, and are encoded once.
        once = {
            name: msgspec.Raw(msgspec.json.encode(native[name]))
            for name in ("tools", "instructions")
            if native.get(name) is not None
        }
        self._answer = _Answer(native, echo=once, replayed=request.replayed)
        self._usage: Any = None
        self._ending: dict[str, Any] = {}

    def chunks(self, payloads: Sequence[bytes]) -> bytes:
        answer = self._answer
        for payload in payloads:
            chunk: dict[str, Any] = msgspec.json.decode(payload)
            if assembly.usage_of(chunk.get("usage")) is not None:
                self._usage = chunk["usage"]
            event = chunk.get("provider_event")
            choice = _first(chunk)
            if not answer.opened:
                # Azure's first chunk has neither an id nor a choice.
                if not choice and not chunk.get("id"):
                    continue
                answer.open(chunk)
            if isinstance(event, dict) and event.get("dialect") == "responses" and isinstance(event.get("data"), dict):
                answer.pass_on(event["data"])
            answer.note(chunk)
            if choice.get("finish_reason"):
                self._ending = choice
            answer.count(choice.get("logprobs"))
            delta = choice.get("delta")
            if isinstance(delta, dict):
                answer.add(delta)
        return self._written()

    def end(self, completion: Completion) -> bytes:
        answer = self._answer
        if not answer.opened:
            answer.open(msgspec.json.decode(completion.body))
        usage = self._usage or assembly.usage_fields(completion.usage)
        response = answer.finish(self._ending, usage)
        answer.emit(f"response.{response['status']}", response=response)
        return self._written()

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Both events of a failure: SDKs raise on `error`, where it has an object of that name, and the codex command
        line reads `response.failed` alone."""
        answer = self._answer
        if not answer.opened:
            answer.open({"id": request_id})
        told = {"message": error.message, "code": error.code, "param": error.param}
        answer.emit("error", **told, error={"type": "server_error", **told, "request_id": request_id})
        code = (
            "rate_limit_exceeded" if isinstance(error, LimitError) and error.code == "rate_limited" else "server_error"
        )
        failed = answer.response("failed") | {"error": {"code": code, "message": error.message}}
        answer.emit("response.failed", response=failed)
        return self._written()

    def _written(self) -> bytes:
        events, self._answer.events = self._answer.events, []
        return b"".join([sse.named_event(event["type"], msgspec.json.encode(event)) for event in events])


class _Kind(NamedTuple):
    """How the parts of one type are told: names of events, and of the fields in them."""

    part: str  # events when it begins and ends
    text: str  # events for each piece and at its end
    place: str  # the field of an event that says which part
    field: str  # the field that holds the text
    among: str  # the item's field that the part stands in


_KINDS = {
    "output_text": _Kind("response.content_part", "response.output_text", "content_index", "text", "content"),
    "refusal": _Kind("response.content_part", "response.refusal", "content_index", "refusal", "content"),
    "reasoning_text": _Kind("response.content_part", "response.reasoning_text", "content_index", "text", "content"),
    "summary_text": _Kind(
        "response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index", "text", "summary"
    ),
}


class _Part:
    def __init__(self, kind: str, place: int, key: object) -> None:
        self.kind = kind
        self.place = place
        self.key = key
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []


class _Item:
    """A message, or reasoning, that grows part by part."""

    def __init__(self, place: int, fields: dict[str, Any]) -> None:
        self.place = place
        self.fields = fields
        self.given: str | None = None  # the provider's id for it
        self.part: _Part | None = None
        self.own = True  # reasoning that this API signed, or a message
        self.opaque: list[str] = []
        self.details: dict[object, dict[str, Any]] = {}  # what another API signed


class _Call:
    def __init__(self) -> None:
        self.place = -1  # not begun
        self.fields: dict[str, Any] = {}
        self.id = ""
        self.name = ""
        self.beside: dict[str, Any] = {}  # what only this dialect says of a call
        self.custom = False
        self.at_once = False  # its arguments are not the text they are told as
        self.pieces: list[str] = []


class _Answer:
    """Takes the deltas of the one choice there is. `events` are those not yet sent.

    Of an answer that is `replayed` all ids are new. Under its own ones the provider keeps what was asked by the
    client it was first given to.
    """

    def __init__(self, native: dict[str, Any], *, replayed: bool, echo: dict[str, Any] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.opened = False
        self._replayed = replayed
        self._renamed: dict[str, str] = {}  # ids that a replay has others for
        self._native = native
        self._echo = echo or {}
        self._tools = {tool.called: tool for tool in offered(native) if tool.called is not None}
        self._sequence = 0
        self._frame: dict[str, Any] = {}
        self._base = ""
        self._output: list[dict[str, Any] | None] = []
        self._item: _Item | None = None
        self._calls: dict[int, _Call] = {}
        self._passed: dict[str, int] = {}  # places of the items that only the provider's own events tell of
        self._annotations: list[dict[str, Any]] = []
        self._logprobs: list[Any] = []
        self._messages: deque[tuple[int, dict[str, Any]]] = deque()  # where in the content each message to come begins
        self._said = 0  # characters of content

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1

    def open(self, frame: dict[str, Any]) -> None:
        """`frame` is the answer, or its first chunk."""
        self.opened = True
        given = secrets.token_hex(12) if self._replayed else frame.get("id")
        kept = "".join(c for c in given if c.isascii() and (c.isalnum() or c in "-_")) if isinstance(given, str) else ""
        self._base = kept.removeprefix("chatcmpl-").removeprefix("resp_")[:48] or "0"
        created, model = frame.get("created"), frame.get("model")
        self._frame = {
            "id": kept if kept.startswith("resp_") else f"resp_{_OURS}{self._base}",
            "object": "response",
            "created_at": created if isinstance(created, int | float) else 0,
            "model": model if isinstance(model, str) else str(self._native.get("model", "")),
            "service_tier": "default",
        }
        self.note(frame)
        echo = {name: self._native.get(name) for name in _ECHO}
        echo = {name: _ECHO[name] if value is None else value for name, value in echo.items()}
        for name in ("text", "reasoning"):
            echo[name] = {**_ECHO[name], **(self._native.get(name) or {})}
        said = {name: self._native[name] for name in _ECHO_IF_SAID if self._native.get(name) is not None}
        conversation = self._native.get("conversation")
        if conversation is not None:
            said["conversation"] = {"id": conversation} if isinstance(conversation, str) else conversation
        if self._replayed and "store" in said:
            said["store"] = False
        self._frame |= echo | said | self._echo
        self.emit("response.created", response=self.response("in_progress"))
        self.emit("response.in_progress", response=self.response("in_progress"))

    def note(self, frame: dict[str, Any]) -> None:
        """What an answer says of itself, which on streams comes with the last chunk."""
        if isinstance(tier := frame.get("service_tier"), str):
            self._frame["service_tier"] = tier
        if isinstance(moderation := frame.get("moderation"), dict):
            self._frame["moderation"] = {side: _moderated(result) for side, result in moderation.items()}

    def response(self, status: str) -> dict[str, Any]:
        output = [item for item in self._output if item is not None] if self._output else []
        fields = {"status": status, "error": None, "incomplete_details": None, "output": output, "usage": None}
        return self._frame | fields

    def count(self, logprobs: Any) -> None:
        """Takes the choice's `logprobs`; they go with the text that comes next."""
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if isinstance(content, list):
            self._logprobs += [_logprob(token) for token in content if isinstance(token, dict)]

    def add(self, delta: dict[str, Any]) -> None:
        if isinstance(annotations := delta.get("annotations"), list):
            self._annotations += [self._own(_annotation(one)) for one in filter(_is_object, annotations)]
        if isinstance(begun := delta.get("content_items"), list):
            self._messages += [(_count(item.get("offset")), item) for item in filter(_is_object, begun)]
        details = delta.get("reasoning_details")
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(details, list):
            for detail in filter(_is_object, details):
                if self._reason(detail):
                    thought = None  # it is in the details as well
        if isinstance(thought, str) and thought:
            item = self._reasoning(None)
            # Without its details where a guardrail acted on it: then it goes on with what was said before.
            kind, key = ("reasoning_text", "") if item.part is None else (item.part.kind, item.part.key)
            self._say(item, kind, thought, key=key)
        if isinstance(text := delta.get("content"), str) and text:
            self._speak(text)
        if isinstance(text := delta.get("refusal"), str) and text:
            self._say(self._message(), "refusal", text, key="")
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for call in filter(_is_object, calls):
                self._call(call)
        blocks = delta.get("provider_content")
        if isinstance(blocks, list):
            for block in filter(_is_object, blocks):
                if block.get("dialect") == "responses" and isinstance(block.get("block"), dict):
                    self._block(block["block"])

    def pass_on(self, data: dict[str, Any]) -> None:
        """An event of the provider's, under this stream's numbers."""
        kind = data.get("type")
        if not isinstance(kind, str):
            return
        self._close_item("completed")
        data = self._own(data)
        item = data.get("item")
        item_id = item.get("id") if isinstance(item, dict) else data.get("item_id")
        fields = {name: value for name, value in data.items() if name not in ("type", "sequence_number")}
        # An event without an item's id says which one by its place in the provider's own list.
        key = item_id if isinstance(item_id, str) else f"#{data.get('output_index')}"
        place = fields["output_index"] = self._place_of(key)
        if kind == "response.output_item.added" and isinstance(item, dict):
            self._output[place] = item
        self.emit(kind, **fields)

    def finish(self, choice: dict[str, Any], usage: Any) -> dict[str, Any]:
        """The response: completed, or incomplete for what cut it off. `choice` says why it ended."""
        reason, own = choice.get("finish_reason"), choice.get("native_finish_reason")
        cut_off = _INCOMPLETE.get(reason) if isinstance(reason, str) else None
        if reason == "length" and own in ("max_messages", "steered"):
            cut_off = own
        if reason is None and own in ("queued", "in_progress", "cancelled"):
            ending = own
        else:
            ending = "incomplete" if cut_off else "completed"
        self._close_item(ending)
        for index in sorted(self._calls, key=lambda index: self._calls[index].place):
            self._close_call(index, ending)
        response = self.response(ending)
        if cut_off:
            response["incomplete_details"] = {"reason": cut_off}
        response["usage"] = _usage(usage)
        tool_usage = _own_usage(_object(usage)).get("tool_usage")
        if tool_usage is not None:
            response["tool_usage"] = tool_usage
        return response

    # --- items

    def _begin(self, fields: dict[str, Any]) -> int:
        place = len(self._output)
        self._output.append(fields)
        self.emit("response.output_item.added", output_index=place, item=fields)
        return place

    def _end(self, place: int, fields: dict[str, Any]) -> None:
        self._output[place] = fields
        self.emit("response.output_item.done", output_index=place, item=fields)

    def _name(self, prefix: str, given: Any = None) -> str:
        """The provider's id for an item, or one made here."""
        if isinstance(given, str) and given and not self._replayed:
            return given
        return f"{prefix}_{_OURS}{self._base}_{len(self._output)}"

    def _own(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What came from the provider; of a replay with ids of ours, the same ones wherever they stand."""
        return _with(fields, self._rename) if self._replayed else fields

    def _rename(self, given: str) -> str:
        renamed = self._renamed.get(given)
        if renamed is None:
            kind = given.partition("_")[0]
            kind = kind if kind.isascii() and kind.isalnum() and len(kind) < 9 else "item"
            renamed = self._renamed[given] = f"{kind}_{_OURS}{self._base}_r{len(self._renamed)}"
        return renamed

    def _speak(self, text: str) -> None:
        """Adds to the content, which goes on in another message where one is known to begin."""
        at = 0
        while at < len(text):
            item = self._message()
            end = at + self._messages[0][0] - self._said if self._messages else len(text)
            piece = text[at:end]
            self._say(item, "output_text", piece, key="")
            self._said += len(piece)
            at = end

    def _message(self) -> _Item:
        due = bool(self._messages) and self._messages[0][0] <= self._said
        if due or self._item is None or self._item.fields["type"] != "message":
            self._close_item("completed")
            named: dict[str, Any] = {}
            while self._messages and self._messages[0][0] <= self._said:
                named = self._messages.popleft()[1]
            given, phase = named.get("id"), named.get("phase")
            fields = {"id": self._name("msg", given), "type": "message"}
            fields |= {"status": "in_progress", "role": "assistant"}
            if isinstance(phase, str):
                fields["phase"] = phase
            self._item = _Item(self._begin({**fields, "content": []}), fields)
        return self._item

    def _reasoning(self, given: str | None, *, own: bool | None = None) -> _Item:
        """The item that grows, or a new one where what comes is another's or has another id. `own` None: either."""
        item = self._item
        if (
            item is None
            or item.fields["type"] != "reasoning"
            or (own is not None and own != item.own)
            or (given is not None and given != item.given)
        ):
            self._close_item("completed")
            fields: dict[str, Any] = {"id": self._name("rs", given), "type": "reasoning", "summary": []}
            item = self._item = _Item(self._begin({**fields, "summary": []}), fields)
            item.given = given
            item.own = own is not False
        return item

    def _reason(self, detail: dict[str, Any]) -> bool:
        """Whether all there is to read of it has been told."""
        own = detail.get("format") == FORMAT
        given = detail.get("id")
        item = self._reasoning(given if own and isinstance(given, str) and given else None, own=own)
        key = detail.get("index")
        if isinstance(data := detail.get("data"), str) and own:
            item.opaque.append(data)
        if not own:
            _merge(item.details, key, detail)
        for name, kind in (("summary", "summary_text"), ("text", "reasoning_text")):
            if isinstance(text := detail.get(name), str) and text:
                self._say(item, kind, text, key=key)
                return True
        return own

    def _say(self, item: _Item, kind: str, text: str, *, key: object) -> None:
        """`key` None: a part of its own."""
        names = _KINDS[kind]
        part = item.part
        if part is None or part.kind != kind or key is None or part.key != key:
            self._close_part(item)
            said = item.fields.setdefault(names.among, [])
            part = item.part = _Part(kind, len(said), key)
            said.append({})
            self._tell(f"{names.part}.added", item, part, part=_part(part, ""))
        part.pieces.append(text)
        more: dict[str, Any] = {}
        if kind == "output_text":
            more["logprobs"] = [_told_logprob(token) for token in self._logprobs]
            part.logprobs += self._logprobs
            self._logprobs = []
        self._tell(f"{names.text}.delta", item, part, delta=text, **more)

    def _tell(self, kind: str, item: _Item, of: _Part, **fields: Any) -> None:
        place = {_KINDS[of.kind].place: of.place}
        self.emit(kind, item_id=item.fields["id"], output_index=item.place, **place, **fields)

    def _close_part(self, item: _Item) -> None:
        part = item.part
        if part is None:
            return
        names = _KINDS[part.kind]
        text = "".join(part.pieces)
        done = _part(part, text)
        more: dict[str, Any] = {}
        if part.kind == "output_text":
            part.logprobs += self._logprobs  # those that came last
            self._logprobs = []
            more["logprobs"] = [_told_logprob(token) for token in part.logprobs]
            done["annotations"] = self._cited(self._said - len(text))
            for index, annotation in enumerate(done["annotations"]):
                self._tell(
                    "response.output_text.annotation.added", item, part, annotation_index=index, annotation=annotation
                )
        self._tell(f"{names.text}.done", item, part, **{names.field: text}, **more)
        self._tell(f"{names.part}.done", item, part, part=done)
        item.fields[names.among][part.place] = done
        item.part = None

    def _cited(self, begin: int) -> list[dict[str, Any]]:
        """The annotations of the text that ends here, with places counted from its `begin`."""
        taken, later = [], []
        for annotation in self._annotations:
            start = annotation.get("start_index")
            if self._messages and isinstance(start, int) and start >= self._said:
                later.append(annotation)
                continue
            places = {
                name: annotation[name] - begin
                for name in ("start_index", "end_index")
                if begin and isinstance(annotation.get(name), int)
            }
            taken.append(annotation | places)
        self._annotations = later
        return taken

    def _close_item(self, status: str) -> None:
        item = self._item
        if item is None:
            return
        self._close_part(item)
        if item.fields["type"] == "message":
            item.fields["status"] = status
        elif item.opaque:
            item.fields["encrypted_content"] = "".join(item.opaque)
        elif any(detail.keys() & {"signature", "data"} for detail in item.details.values()):
            item.fields["encrypted_content"] = _sealed(_joined(item.details))
        self._end(item.place, item.fields)
        self._item = None

    # --- calls: they may come in pieces that take turns, so each stays open to the end

    def _call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if not isinstance(index, int):
            # Servers that give no index begin each call with an id.
            last = max(self._calls, default=-1)
            index = last + 1 if last < 0 or (piece.get("id") and self._calls[last].id) else last
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call()
        if isinstance(given := piece.get("id"), str) and given:
            call.id = given
        call.beside |= {name: piece[name] for name in _BESIDE_CALLS if piece.get(name) is not None}
        custom = piece.get("custom")
        call.custom = call.custom or _is_object(custom)
        spoken, said = (custom, "input") if _is_object(custom) else (piece.get("function"), "arguments")
        if not isinstance(spoken, dict):
            return
        if isinstance(name := spoken.get("name"), str) and name and call.place < 0:
            call.name = name
            self._begin_call(call, index)
        if isinstance(text := spoken.get(said), str) and text:
            call.pieces.append(text)
            if call.place >= 0 and not call.at_once:
                self._tell_call(call, "delta", delta=text)

    def _begin_call(self, call: _Call, index: int) -> None:
        self._close_item("completed")
        tool = None if "namespace" in call.beside else self._tools.get(call.name)
        kind = tool.kind if tool is not None else "custom" if call.custom else "function"
        named: dict[str, Any] = {"name": tool.name if tool is not None else call.name}
        if tool is not None and tool.namespace is not None:
            named["namespace"] = tool.namespace
        given = call.beside.pop("item_id", None)
        frame = {"call_id": call.id or f"call_{self._base}_{index}", **call.beside}
        if kind != "custom":
            frame["status"] = "in_progress"
        if kind == "custom":
            # Where a provider knows functions alone, a custom tool was told to it as one.
            call.at_once = not call.custom
            call.custom = True
            call.fields = {"id": self._name("ctc", given), "type": "custom_tool_call", **frame, **named, "input": ""}
        elif kind == "tool_search":
            call.at_once = True
            call.fields = {"id": self._name("tsc", given), "type": "tool_search_call", **frame}
            call.fields |= {"execution": "client", "arguments": {}}
        else:
            call.custom = False
            call.fields = {"id": self._name("fc", given), "type": "function_call", **frame, **named, "arguments": ""}
        call.place = self._begin({**call.fields})
        if call.pieces and not call.at_once:
            self._tell_call(call, "delta", delta="".join(call.pieces))

    def _tell_call(self, call: _Call, step: str, **fields: Any) -> None:
        custom = call.fields["type"] == "custom_tool_call"
        name = "response.custom_tool_call_input" if custom else "response.function_call_arguments"
        self.emit(f"{name}.{step}", item_id=call.fields["id"], output_index=call.place, **fields)

    def _close_call(self, index: int, status: str) -> None:
        call = self._calls[index]
        if call.place < 0:
            self._begin_call(call, index)  # its name never came
        text = "".join(call.pieces)
        fields = call.fields
        match fields["type"]:
            case "function_call":
                fields["arguments"] = text
                self._tell_call(call, "done", arguments=text)
            case "custom_tool_call":
                if call.at_once:
                    text = _input_of(text)
                    self._tell_call(call, "delta", delta=text)
                fields["input"] = text
                self._tell_call(call, "done", input=text)
            case _:
                fields["arguments"] = _json_or_text(text)
        if "status" in fields:
            fields["status"] = status
        self._end(call.place, fields)

    # --- what only this dialect has

    def _block(self, block: dict[str, Any]) -> None:
        self._close_item("completed")
        block = self._own(block)
        item_id = block.get("id")
        place = self._passed.pop(item_id, None) if isinstance(item_id, str) else None
        if place is None:
            place = self._begin(block)
        elif self._output[place] is None:
            self.emit("response.output_item.added", output_index=place, item=block)
        self._end(place, block)

    def _place_of(self, item_id: str) -> int:
        place = self._passed.get(item_id)
        if place is None:
            place = self._passed[item_id] = len(self._output)
            self._output.append(None)
        return place


def _with(fields: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """A copy with other ids. What a tool was called with or said itself is text, and stays."""
    copy = dict(fields)
    for name, value in fields.items():
        if isinstance(value, str):
            if name in _KEPT_BY_ID or (name == "file_id" and fields.get("type") == "container_file_citation"):
                copy[name] = rename(value)
        elif name in ("item", "environment") and isinstance(value, dict):
            copy[name] = _with(value, rename)
    return copy


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole message in the order in which `service.caching.replay` streams it, in as few pieces as there are runs."""
    yield {name: message.get(name) for name in ("annotations", "content_items")}
    said: dict[str, Any] = {
        name: message[name] for name in replay.LAID_OUT if isinstance(message.get(name), str | list)
    }
    texts: list[str | None] = []
    if said.get("reasoning_details"):
        texts = replay.mirrored({**said, "reasoning_content": message.get("reasoning_content")})
    else:
        yield {"reasoning_content": message.get("reasoning_content")}
    yield {"reasoning": message.get("reasoning")}
    layout: Any = message.get("layout")
    if not replay.adds_up(layout, said):
        layout = [(name, len(said[name])) for name in replay.LAID_OUT if name in said]
    done = dict.fromkeys(said, 0)
    for name, length in layout:
        begin = done.get(name, 0)
        done[name] = begin + length
        run = said.get(name, "")[begin : begin + length]
        if name == "reasoning_details":
            for detail, text in zip(run, texts[begin:], strict=False):
                yield {name: [detail], "reasoning_content": text}
        elif name == "tool_calls":
            yield {name: [{**call, "index": index} for index, call in enumerate(run, begin) if isinstance(call, dict)]}
        else:
            yield {name: run}
    yield {"refusal": message.get("refusal")}


def _first(reply: dict[str, Any]) -> dict[str, Any]:
    """The choice of index 0: there is no other in this dialect."""
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return {}
    return next((choice for choice in choices if isinstance(choice, dict) and not choice.get("index")), {})


def _part(part: _Part, text: str) -> dict[str, Any]:
    if part.kind == "output_text":
        return {"type": part.kind, "annotations": [], "logprobs": part.logprobs if text else [], "text": text}
    return {"type": part.kind, _KINDS[part.kind].field: text}


def _logprob(token: dict[str, Any]) -> dict[str, Any]:
    """The API's lists of bytes and of other tokens are never null here."""
    told: dict[str, Any] = {name: token.get(name) for name in ("token", "logprob")}
    top = token.get("top_logprobs")
    others = [{**_logprob(other)} for other in top if isinstance(other, dict)] if isinstance(top, list) else []
    told["bytes"] = token.get("bytes") or []
    if "top_logprobs" in token:
        told["top_logprobs"] = others
    return told


def _told_logprob(token: dict[str, Any]) -> dict[str, Any]:
    """As events have it, without the bytes."""
    top = [{name: other[name] for name in ("token", "logprob")} for other in token.get("top_logprobs", ())]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": top}


def _moderated(result: Any) -> Any:
    """In this API's shape, where there is one result."""
    match result:
        case {"type": "moderation_results", "results": [one, *_]}:
            return one
        case _:
            return result


def _annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """`{"type": "url_citation", "url_citation": {…}}` as one flat object."""
    kind = annotation.get("type")
    inner = annotation.get(kind) if isinstance(kind, str) else None
    return {"type": kind, **inner} if isinstance(inner, dict) else annotation


_IN_PIECES = frozenset({"text", "summary", "data", "signature"})


def _merge(details: dict[object, dict[str, Any]], key: object, piece: dict[str, Any]) -> None:
    """Pieces of one item have its index (docs/dialects.md)."""
    same = details.get(key) if isinstance(key, int) else None
    if same is None:
        details[key if isinstance(key, int) else f"#{len(details)}"] = {
            name: [value] if name in _IN_PIECES and isinstance(value, str) else value for name, value in piece.items()
        }
        return
    for name, value in piece.items():
        before = same.get(name)
        if name in _IN_PIECES and isinstance(value, str) and isinstance(before, list):
            before.append(value)
        elif name in _IN_PIECES and isinstance(value, str):
            same[name] = [value]
        elif value is not None:
            same[name] = value


def _joined(details: dict[object, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: "".join(value) if name in _IN_PIECES and isinstance(value, list) else value
            for name, value in detail.items()
        }
        for detail in details.values()
    ]


def _usage(usage: Any) -> dict[str, Any]:
    fields = _object(usage)
    own = _own_usage(fields)
    read, written = _count(fields.get("prompt_tokens")), _count(fields.get("completion_tokens"))
    of_read = _counts(fields.get("prompt_tokens_details"), "cached_tokens", "cache_write_tokens")
    of_written = _counts(fields.get("completion_tokens_details"), "reasoning_tokens")
    return {
        "input_tokens": read,
        "input_tokens_details": of_read | _object(own.get("input_tokens_details")),
        "output_tokens": written,
        "output_tokens_details": of_written | _object(own.get("output_tokens_details")),
        "total_tokens": read + written,
    }


def _own_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """What only this dialect counts."""
    beside = _object(usage.get("provider_usage"))
    return beside if beside.get("dialect") == "responses" else {}


def _counts(details: Any, *names: str) -> dict[str, int]:
    return {name: _count(_object(details).get(name)) for name in names}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.MsgspecError, RecursionError):
        return text


def _input_of(arguments: str) -> str:
    """What a custom tool is given, from the arguments of a function that has one string: `{"input": "…"}`."""
    match _json_or_text(arguments):
        case {"input": str(text)}:
            return text
        case _:
            return arguments
