"""Values back in the place of placeholders, in an answer on its way to whoever asked: whole or in pieces.

Only what this request issued is restored, and never in what is stored. In the
arguments of tool calls a value is written as JSON needs it; the details of
reasoning stay as their maker signed them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from guardrails.placeholders import open_prefix, restorations, restore
from guardrails.redact import Edit, applied
from guardrails.view import answer_segments

Json = dict[str, Any]

_REASONING = ("reasoning_content", "reasoning")
_TEXTS = (*_REASONING, "content", "refusal")
# What comes in pieces, and what is not to be touched.
_APART = frozenset({*_TEXTS, "reasoning_details", "tool_calls", "function_call", "content_items", "role"})


def restored_whole(body: Json, issued: Mapping[str, str], *, json_content: bool = False) -> Json:
    """`body` itself where there is nothing to restore. `json_content`: the content is JSON as well."""
    if not issued:
        return body
    body = _with_arguments(body, issued)
    view = answer_segments(body)
    texts: dict[int, str] = {}
    edits: dict[int, list[Edit]] = {}
    for segment in view.texts:
        path = segment.path
        if path[2:3] == ("message",) and (path[3] == "reasoning_details" or _is_argument(path)):
            continue
        found = restorations(segment.text, issued, json=json_content and path[2:] == ("message", "content"))
        if found:
            texts[segment.index] = applied(segment.text, found)
            edits[segment.index] = found
    return view.rewritten(texts, edits=edits) if texts else body


class Restorer:
    """One stream: takes the payload of each chunk, and gives those that go on. It holds what may be the beginning of a
    placeholder, and nothing else; `end` gives what was none after all."""

    def __init__(self, issued: Mapping[str, str], *, json_content: bool = False) -> None:
        self._issued = issued
        self._json_content = json_content
        self._choices: dict[int, _Choice] = {}
        self._frame: Json = {}
        self._idle = True  # nothing was restored or held so far

    def feed(self, payload: bytes) -> list[bytes]:
        if not self._issued or (self._idle and b"<" not in payload and b"\\" not in payload):
            return [payload]
        fields: Json = msgspec.json.decode(payload)
        rest = {name: value for name, value in fields.items() if name != "choices"}
        self._frame = {name: value for name, value in rest.items() if name != "provider_event"}
        if self._frame.get("usage") is not None:
            self._frame["usage"] = None
        before: list[Json] = []
        parts = fields.get("choices") or []
        restored = [self._restored(part, before) for part in parts]
        self._idle = all(choice.idle for choice in self._choices.values())
        new = restored_whole(rest, self._issued)
        if new is not rest or any(part is not old for part, old in zip(restored, parts, strict=True)):
            payload = msgspec.json.encode({**new, "choices": restored} if "choices" in fields else new)
        return [*map(self._chunk, before), payload]

    def end(self) -> list[bytes]:
        return [self._chunk(part) for choice in self._choices.values() for part in choice.flush()]

    def _chunk(self, part: Json) -> bytes:
        return msgspec.json.encode({**self._frame, "choices": [part]})

    def _restored(self, part: Json, before: list[Json]) -> Json:
        """`part` itself where it stays as it is. `before` takes what goes ahead of it."""
        index = part.get("index", 0)
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index, self._issued, json_content=self._json_content)
        new = choice.restored(part, before)
        others = {name: value for name, value in new.items() if name not in ("index", "delta", "text", "logprobs")}
        tree = {"choices": [others]}
        done = restored_whole(tree, self._issued)
        return new if done is tree else {**new, **done["choices"][0]}


class _Choice:
    def __init__(self, index: int, issued: Mapping[str, str], *, json_content: bool) -> None:
        self._index = index
        self._issued = issued
        self._json_content = json_content
        self._texts: dict[str, _Text] = {}
        self._calls: dict[int, _Text] = {}
        self._named: set[int] = set()  # calls that have an id
        self._completion = False  # a plain one, without deltas

    @property
    def idle(self) -> bool:
        return not any(text.held or text.grown for text in (*self._texts.values(), *self._calls.values()))

    def restored(self, part: Json, before: list[Json]) -> Json:
        ended = part.get("finish_reason") is not None
        self._completion = self._completion or ("text" in part and "delta" not in part)
        said: Json = {"text": part["text"]} if self._completion else part.get("delta") or {}
        new: Json = {
            name: self._text(name, value, before) for name, value in said.items() if self._is_text(name, value)
        }
        rewritten = any(new[name] != said[name] for name in new)
        for name in ("tool_calls", "function_call"):
            if said.get(name):
                before += self._flush(self._texts)
                parts = said[name] if name == "tool_calls" else [{"index": -1, "function": said[name]}]
                calls = [self._call(call, before) for call in parts]
                new[name] = calls if name == "tool_calls" else calls[0]["function"]
        if isinstance(items := said.get("content_items"), list) and "content" in self._texts:
            grown = self._texts["content"].grown
            new["content_items"] = [_shifted(item, grown) for item in items]
        if ended:
            for name in new.keys() & self._texts.keys():
                new[name] += self._texts[name].rest()
            before += self.flush()
        if not self._completion:
            rest = {name: value for name, value in said.items() if name not in _APART}
            tree = {"choices": [{"index": 0, "message": rest}]}
            done = restored_whole(tree, self._issued)
            new |= rest if done is tree else done["choices"][0]["message"]
        result = {**said, **new}
        if result == said and not rewritten:
            return part
        # Token by token it would be another text.
        logprobs = {"logprobs": None} if rewritten and part.get("logprobs") else {}
        return {**part, **(result if self._completion else {"delta": result}), **logprobs}

    def flush(self) -> list[Json]:
        return [*self._flush(self._texts), *self._flush_calls(range(-1, max(self._calls, default=-1) + 1))]

    def _is_text(self, name: str, value: Any) -> bool:
        return isinstance(value, str) and (self._completion or name in _TEXTS)

    def _text(self, name: str, value: str, before: list[Json]) -> str:
        if value:
            before += self._flush({other: text for other, text in self._texts.items() if _kin(other) != _kin(name)})
            before += self._flush_calls(self._free_calls())
        text = self._texts.get(name)
        if text is None:
            as_json = self._json_content and name == "content"
            text = self._texts[name] = _Text(self._issued, json=as_json)
        return text.feed(value)

    def _call(self, call: Any, before: list[Json]) -> Any:
        if not isinstance(call, dict):
            return call
        index = call.get("index")
        if not isinstance(index, int):
            # Servers that give none begin each call with an id.
            index = max(self._calls, default=0)
            index += bool(call.get("id")) and index in self._named
        if call.get("id"):
            self._named.add(index)
        for kind, field in (("function", "arguments"), ("custom", "input")):
            said = call.get(kind)
            if not isinstance(said, dict):
                continue
            if index not in self._calls:
                before += self._flush_calls(self._free_calls())
                self._calls[index] = _Text(self._issued, json=field == "arguments")
            named = {name: value for name, value in said.items() if name != field}
            tree = {"choices": [{"index": 0, "message": {"tool_calls": [{kind: named}]}}]}
            done = restored_whole(tree, self._issued)["choices"][0]["message"]["tool_calls"][0][kind]
            written = {field: self._calls[index].feed(said[field])} if isinstance(said.get(field), str) else {}
            call = {**call, kind: {**said, **done, **written}}
        return call

    def _free_calls(self) -> list[int]:
        """Those whose text has no end of its own; of JSON that is whole nothing is held."""
        return [index for index, text in self._calls.items() if not text.json]

    def _flush(self, texts: "Mapping[str, _Text]") -> list[Json]:
        return [self._part({name: rest}) for name, text in texts.items() if (rest := text.rest())]

    def _flush_calls(self, indexes: Any) -> Iterator[Json]:
        for index in indexes:
            text = self._calls.get(index)
            if text is not None and (rest := text.rest()):
                function = {"function": {"arguments": rest}} if text.json else {"custom": {"input": rest}}
                said: Json = {"tool_calls": [{"index": index, **function}]}
                yield self._part({"function_call": function["function"]} if index < 0 else said)

    def _part(self, said: Json) -> Json:
        delta = said if self._completion else {"delta": said}
        return {"index": self._index, **delta, "logprobs": None, "finish_reason": None}


class _Text:
    """One text in pieces. `held` may be the beginning of a placeholder; `grown` is what restoring has added."""

    def __init__(self, issued: Mapping[str, str], *, json: bool) -> None:
        self.json = json
        self.held = ""
        self.grown = 0
        self._issued = issued

    def feed(self, piece: str) -> str:
        if not self.held and "<" not in piece and not (self.json and "\\" in piece):
            return piece
        text = self.held + piece
        cut = open_prefix(text, self._issued, json=self.json)
        self.held = text[cut:]
        whole = text[:cut]
        restored = restore(whole, self._issued, json=self.json)
        self.grown += len(restored) - len(whole)
        return restored

    def rest(self) -> str:
        held, self.held = self.held, ""
        return restore(held, self._issued, json=self.json)


def _with_arguments(body: Json, issued: Mapping[str, str]) -> Json:
    """With the arguments of the calls restored in place: what else is in them stays as the model wrote it."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return body
    new = [_choice_with_arguments(choice, issued) for choice in choices]
    return {**body, "choices": new} if any(a is not b for a, b in zip(new, choices, strict=True)) else body


def _choice_with_arguments(choice: Any, issued: Mapping[str, str]) -> Any:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return choice
    new: Json = {}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        restored = [_function_restored(call, "function", issued) for call in calls]
        if any(a is not b for a, b in zip(restored, calls, strict=True)):
            new["tool_calls"] = restored
    done = _function_restored(message, "function_call", issued)
    if done is not message:
        new["function_call"] = done["function_call"]
    return {**choice, "message": {**message, **new}} if new else choice


def _function_restored(call: Any, name: str, issued: Mapping[str, str]) -> Any:
    function = call.get(name) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    restored = restore(function["arguments"], issued, json=True)
    return call if restored == function["arguments"] else {**call, name: {**function, "arguments": restored}}


def _is_argument(path: tuple[str | int, ...]) -> bool:
    return path[-1] == "arguments" and path[-2] in ("function", "function_call")


def _kin(name: str) -> str:
    """Texts that are said at the same time."""
    return "reasoning" if name in _REASONING else name


def _shifted(item: Any, by: int) -> Any:
    return (
        {**item, "offset": item["offset"] + by}
        if isinstance(item, dict) and isinstance(item.get("offset"), int)
        else item
    )
