"""The conversation of a Responses request, item by item, as the messages of a chat.

Items say more than messages do: in which order a turn came, where one text
ends and the next begins. A turn in the order that goes without saying, reasoning,
a message, calls, is a message and nothing else; of any other, `Beyond` has the rest.
https://platform.openai.com/docs/api-reference/responses/create#responses_create-input
"""

from typing import Any

import msgspec

from models.errors import RequestError
from service.api.openai_responses_answer import FORMAT, is_ours, unsealed
from service.api.openai_responses_fields import Beyond, optional, string
from service.api.openai_responses_tools import called, full_name, listed

_ROLES = {"user": "user", "system": "system", "developer": "system"}
_MESSAGE = frozenset({"type", "role", "content", "id", "status"})
_FUNCTION_CALL = frozenset({"type", "id", "call_id", "name", "namespace", "arguments", "status"})
_CUSTOM_CALL = frozenset({"type", "id", "call_id", "name", "namespace", "input", "status"})
_SEARCH_CALL = frozenset({"type", "id", "call_id", "execution", "arguments", "status"})
_OUTPUT = frozenset({"type", "id", "call_id", "output", "status"})
_FOUND = frozenset({"type", "id", "call_id", "execution", "tools", "status"})
_REASONING = frozenset({"type", "id", "summary", "content", "encrypted_content", "status"})
_THOUGHT = frozenset({"type", "text"})
_HARMLESS = frozenset({"phase", "caller", "async", "created_by"})
_HARMLESS_IN_OUTPUT = _HARMLESS | {"name", "namespace"}

_PART = frozenset({"type", "prompt_cache_breakpoint"})
_TEXT = _PART | {"text"}
_PLAIN_TEXT = frozenset({"type", "text"})
_TEXT_KINDS = frozenset({"input_text", "output_text", "text"})
_REFUSAL = _PART | {"refusal"}
_IMAGE = _PART | {"image_url", "detail"}
_IN_FILE = ("file_data", "file_url", "file_id", "filename")
_FILE = _PART | {*_IN_FILE}
_AUDIO = _PART | {"input_audio"}
_HARMLESS_IN_PART = frozenset({"annotations", "logprobs", "detail"})

# Items that only this dialect has, of which the rest of the conversation holds what came of them.
_HARMLESS_ITEMS = frozenset({"web_search_call", "tool_search_call", "tool_search_output"})
_OF_THE_MODEL = frozenset({"compaction", "program", "mcp_list_tools", "mcp_approval_request", "reasoning"})
# Items that the API takes without an id.
_NEED_NO_ID = frozenset(
    {"message", "reasoning", "function_call", "custom_tool_call", "tool_search_call", "compaction"},
)


class Conversation:
    """`messages` as they are read. `replaced` are the items, by their place in `input`, that a provider must be sent
    in another form than they came, None where it must not be sent them at all: what only this gateway knows."""

    def __init__(self, beyond: Beyond) -> None:
        self.messages: list[dict[str, Any]] = []
        self.replaced: dict[int, dict[str, Any] | None] = {}
        self._beyond = beyond
        self._turn: _Turn | None = None  # the assistant's, still growing
        self._custom: set[str] = set()  # the calls of custom tools

    def read(self, instructions: object, said: object) -> None:
        if isinstance(instructions, str):
            if instructions:
                self.messages.append({"role": "system", "content": instructions})
        elif isinstance(instructions, list):  # what a response echoes of a stored prompt
            for at, item in enumerate(instructions):
                self._item(item, f"instructions[{at}]", -1)
            self._end_turn()
        elif instructions is not None:
            raise RequestError("instructions must be a string", param="instructions")
        if isinstance(said, str):
            self.messages.append({"role": "user", "content": said})
        elif isinstance(said, list):
            for at, item in enumerate(said):
                self._item(item, f"input[{at}]", at)
            self._end_turn()
        elif said is not None:
            raise RequestError("input must be a string or a list of items", param="input")

    def _item(self, item: object, path: str, at: int) -> None:
        if not isinstance(item, dict):
            raise RequestError(f"{path} must be an object", param=path)
        kind = item.get("type")
        if kind is None:
            kind = "message" if "role" in item else "item_reference"
        if not isinstance(kind, str):
            raise RequestError(f"{path}.type must be a string", param=f"{path}.type")
        if "id" in item and is_ours(item["id"]) and at >= 0 and kind in _NEED_NO_ID:
            self.replaced[at] = {name: value for name, value in item.items() if name != "id"}
        match kind:
            case "message":
                self._message(item, path)
            case "function_call" | "custom_tool_call":
                self._call(item, kind, path)
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, kind, path)
            case "reasoning":
                self._reasoning(item, path, at)
            case "tool_search_call" if item.get("execution") == "client" and item.get("call_id"):
                self._searched(item, path)
            case "tool_search_output" if item.get("execution") == "client" and item.get("call_id"):
                self._found(item, path)
            case "additional_tools":
                self._beyond.left(item, frozenset({"type", "id", "role", "tools"}), path)
                # The tools themselves are among those of the request.
                tools = optional(item, "tools", list, "a list of tools", path)
                self._beyond.keep(path, [kind, item.get("role"), len(tools or ())])
            case "item_reference":
                self._refer(string(item, "id", path), f"{path}.id")
                self._opaque(item, kind, path)
            case _:
                self._opaque(item, kind, path)

    # --- messages and their parts

    def _message(self, item: dict[str, Any], path: str) -> None:
        self._beyond.left(item, _MESSAGE, path, harmless=_HARMLESS)
        role = item.get("role")
        if role == "assistant":
            self._break()
            refusals: list[str] = []
            said = self._content(item.get("content"), f"{path}.content", "output_text", refusals=refusals)
            self._assistant(path).say(said, refusals)
            return
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{path}.role must be user, assistant, system or developer", param=f"{path}.role")
        self._end_turn()
        message: dict[str, Any] = {"role": _ROLES[role]}
        blocks: list[dict[str, Any]] = []
        message["content"] = self._content(item.get("content"), f"{path}.content", "input_text", blocks=blocks)
        if blocks:
            message["provider_content"] = blocks
        self.messages.append(message)

    def _content(
        self,
        content: object,
        path: str,
        usual: str,
        *,
        refusals: list[str] | None = None,
        blocks: list[dict[str, Any]] | None = None,
    ) -> Any:
        """A string for text alone in one part, else parts. `usual` is what text is called there; `blocks` takes the
        parts that only this dialect has."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise RequestError(f"{path} must be a string or a list of parts", param=path)
        parts: list[dict[str, Any]] = []
        for at, part in enumerate(content):
            where = f"{path}[{at}]"
            if not isinstance(part, dict):
                raise RequestError(f"{where} must be an object", param=where)
            kind = part.get("type")
            if not isinstance(kind, str):
                raise RequestError(f"{where}.type must be a string", param=f"{where}.type")
            if kind == "refusal" and refusals is not None:
                refusals.append(string(part, "refusal", where))
                self._beyond.left(part, _REFUSAL, where)
                if len(content) > 1:
                    self._beyond.keep(where, refusals[-1])  # its place among the texts
            elif not self._part(part, kind, where, parts, usual):
                # A picture by the id of a file, and what there may be next year.
                self._beyond.refuse(where, part if blocks is None else kind)
                if blocks is not None:
                    blocks.append({"dialect": "responses", "block": part})
        said = _plain(parts)
        if not said and len(content) > 1:
            self._beyond.keep(path, len(content))  # an empty text beside other parts
        return said

    def _part(self, part: dict[str, Any], kind: str, path: str, parts: list[dict[str, Any]], usual: str) -> bool:
        """Whether there is one for it in the canonical form."""
        if kind in _TEXT_KINDS:
            parts.append({"type": "text", "text": string(part, "text", path)})
            if kind != usual:
                self._beyond.keep(f"{path}.type", kind)
            if part.keys() == _PLAIN_TEXT:
                return True  # most are
            known = _TEXT.union(name for name in ("annotations", "logprobs") if part.get(name) == [])
        elif kind == "input_image" and part.get("image_url") is not None:
            image = {"url": string(part, "image_url", path)}
            if part.get("detail") not in (None, "auto"):
                image["detail"] = string(part, "detail", path)
            parts.append({"type": "image_url", "image_url": image})
            known = _IMAGE
        elif kind == "input_file":
            file = {name: string(part, name, path) for name in _IN_FILE if part.get(name) is not None}
            parts.append({"type": "file", "file": file})
            known = _FILE | {"detail"} if part.get("detail") == "auto" else _FILE
        elif kind == "input_audio":
            where = f"{path}.input_audio"
            audio = part.get("input_audio")
            if not isinstance(audio, dict):
                raise RequestError(f"{where} must be an object", param=where)
            sound = {"data": string(audio, "data", where), "format": string(audio, "format", where)}
            parts.append({"type": "input_audio", "input_audio": sound})
            self._beyond.left(audio, frozenset({"data", "format"}), where)
            known = _AUDIO
        else:
            return False
        self._beyond.left(part, known, path, harmless=_HARMLESS_IN_PART)
        return True

    # --- calls and what came of them

    def _call(self, item: dict[str, Any], kind: str, path: str) -> None:
        custom = kind == "custom_tool_call"
        self._beyond.left(item, _CUSTOM_CALL if custom else _FUNCTION_CALL, path, harmless=_HARMLESS)
        namespace = optional(item, "namespace", str, "a string", path)
        given, call_id = string(item, "name", path), string(item, "call_id", path)
        name = called(namespace, given)
        if namespace is not None:
            self._beyond.keep(f"{path}.namespace", namespace)
        if name != full_name(namespace, given):
            self._beyond.keep(f"{path}.name", given)
        if custom:
            self._custom.add(call_id)
            told = {"type": "custom", "custom": {"name": name, "input": string(item, "input", path)}}
        else:
            self._custom.discard(call_id)
            told = {"type": "function", "function": {"name": name, "arguments": string(item, "arguments", path)}}
        self._assistant(path).call({"id": call_id, **told})

    def _searched(self, item: dict[str, Any], path: str) -> None:
        """The client runs the search: a function by another name."""
        self._beyond.left(item, _SEARCH_CALL, path, harmless=_HARMLESS)
        self._beyond.keep(f"{path}.type", "tool_search_call")
        arguments = msgspec.json.encode(item.get("arguments")).decode()
        function = {"name": "tool_search", "arguments": arguments}
        self._assistant(path).call({"id": string(item, "call_id", path), "type": "function", "function": function})

    def _output(self, item: dict[str, Any], kind: str, path: str) -> None:
        self._beyond.left(item, _OUTPUT, path, harmless=_HARMLESS_IN_OUTPUT)
        call_id = string(item, "call_id", path)
        if (kind == "custom_tool_call_output") != (call_id in self._custom):
            self._beyond.keep(f"{path}.type", kind)  # another than that of the call it belongs to
        self._result(call_id, self._content(item.get("output"), f"{path}.output", "input_text"))

    def _found(self, item: dict[str, Any], path: str) -> None:
        self._beyond.left(item, _FOUND, path, harmless=_HARMLESS_IN_OUTPUT)
        tools = item.get("tools")
        found = [tool.called for tool in listed(tools, f"{path}.tools") if tool.called]
        self._beyond.keep(path, ["tool_search_output", len(tools or ())])
        self._result(string(item, "call_id", path), msgspec.json.encode(found).decode())

    def _result(self, call_id: str, content: Any) -> None:
        self._end_turn()
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    # --- reasoning

    def _reasoning(self, item: dict[str, Any], path: str, at: int) -> None:
        self._beyond.left(item, _REASONING, path, harmless=_HARMLESS)
        given = None if item.get("id") is None else string(item, "id", path)
        ours = is_ours(given)
        summaries = self._thoughts(item, "summary", "summary_text", path)
        thoughts = self._thoughts(item, "content", "reasoning_text", path)
        opaque = None if item.get("encrypted_content") is None else string(item, "encrypted_content", path)
        sealed = None if opaque is None else unsealed(opaque)
        if at >= 0 and (sealed is not None or (ours and not opaque)):
            self.replaced[at] = None
        if not opaque and not summaries and not thoughts:
            if given is not None and not ours:
                # The provider has the thoughts themselves, under this id.
                self._refer(given, f"{path}.id")
                self._break()
                self._opaque(item, "reasoning", path)
            elif not ours:
                self._beyond.keep(path, ["reasoning", opaque])
            return
        frame = {"format": FORMAT}
        if given is not None and not ours:
            frame["id"] = given
        own = sealed is None and (opaque is not None or bool(summaries))
        if own:
            details = [{"type": "reasoning.summary", **frame, "summary": text} for text in summaries]
            details += [{"type": "reasoning.text", **frame, "text": text} for text in thoughts]
            if opaque is not None:
                details.append({"type": "reasoning.encrypted", **frame, "data": opaque})
        else:
            details = sealed or []
            if "id" in frame:
                self._beyond.keep(f"{path}.id", given)
            if sealed == []:
                self._beyond.keep(f"{path}.encrypted_content", opaque)
        self._break()
        self._assistant(path).think(summaries, thoughts, details, frame.get("id") if own else "", opaque is not None)

    def _thoughts(self, item: dict[str, Any], name: str, kind: str, path: str) -> list[str]:
        """The texts of its summary or content."""
        parts = item.get(name)
        if parts is None:
            return []
        where = f"{path}.{name}"
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise RequestError(f"{where} must be a list of parts", param=where)
        texts = []
        for at, part in enumerate(parts):
            place = f"{where}[{at}]"
            texts.append(string(part, "text", place))
            if part.get("type") == kind and len(part) == len(_THOUGHT):
                continue  # most are
            self._beyond.left(part, _THOUGHT, place)
            if part.get("type") not in (None, kind):
                self._beyond.keep(f"{place}.type", part["type"])
        return texts

    def _refer(self, given: str, path: str) -> None:
        """`given` is an id under which a provider keeps what is meant."""
        if is_ours(given):
            raise RequestError(
                "this id was made by the gateway, and no provider keeps anything under it: send the item itself",
                param=path,
            )
        self._beyond.fields.setdefault("item_reference", []).append(given)

    # --- what only this dialect has

    def _opaque(self, item: dict[str, Any], kind: str, path: str) -> None:
        if kind.endswith("_call") or kind in _OF_THE_MODEL:
            others = self._assistant(path).others
        else:
            self._end_turn()
            others = []
            self.messages.append({"role": "user", "content": "", "provider_content": others})
        if kind in _HARMLESS_ITEMS:
            if is_ours(item.get("id")):
                item = {name: value for name, value in item.items() if name != "id"}  # it is another each time
            self._beyond.keep(path, kind)
        else:
            self._beyond.refuse(path, kind)
        others.append({"dialect": "responses", "block": item})

    # --- turns

    def _assistant(self, path: str) -> "_Turn":
        if self._turn is None:
            self._turn = _Turn(path)
            self.messages.append(self._turn.message)
        return self._turn

    def _break(self) -> None:
        """After a message that called nothing, the next one and what was thought before it are a turn of their own."""
        if self._turn is not None and self._turn.said and not self._turn.calls:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.close(self._beyond)
            self._turn = None


class _Turn:
    """The assistant's: items in a row that come to one message."""

    def __init__(self, path: str) -> None:
        self.message: dict[str, Any] = {"role": "assistant", "content": None}
        self.said: list[Any] = []  # the contents of its messages
        self.calls: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        self._path = path
        self._refusals: list[str] = []
        self._thoughts: list[str] = []
        self._details: list[dict[str, Any]] = []
        # The items but for `others`, each with how much of the message it is.
        self._order: list[tuple[Any, ...]] = []
        self._in_order = True
        self._thought: list[str | None] = []  # the ids of reasoning that the API reads, "" of any other

    def say(self, content: Any, refusals: list[str]) -> None:
        self.said.append(content)
        self._refusals += refusals
        self._in_order = self._in_order and not self.calls and len(self.said) == 1
        self._order.append(("message", len(_parts(content)), [len(text) for text in refusals]))

    def call(self, call: dict[str, Any]) -> None:
        self.calls.append(call)
        self._order.append(("call",))

    def think(
        self, summaries: list[str], thoughts: list[str], details: list[dict[str, Any]], key: str | None, sealed: bool
    ) -> None:
        self._thoughts += summaries
        self._thoughts += thoughts
        self._details += details
        self._thought.append(key)
        self._in_order = self._in_order and not self.calls and not self.said
        self._order.append(("reasoning", [len(text) for text in summaries], [len(text) for text in thoughts], sealed))

    def close(self, beyond: Beyond) -> None:
        message = self.message
        content: Any = None
        if len(self.said) == 1:
            content = self.said[0]
        elif self.said:
            content = _plain([part for said in self.said for part in _parts(said)])
        if not content and (self._refusals or (self.calls and not self.said)):
            message["content"] = None
        else:
            message["content"] = content or ""
        if self._refusals:
            message["refusal"] = "".join(self._refusals)
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._details:
            for index, detail in enumerate(self._details):
                detail["index"] = index
            message["reasoning_details"] = self._details
        if self.calls:
            message["tool_calls"] = self.calls
        if self.others:
            message["provider_content"] = self.others
        if not self._goes_without_saying():
            # No name of a field has a colon in it: nothing a client writes can look like this.
            beyond.keep(f"{self._path}:turn", self._order)

    def _goes_without_saying(self) -> bool:
        """Whether the message alone tells which items there were."""
        if not self._in_order or not (self.said or self.calls):
            return False
        if not self._thought:
            return True
        if len(self._thought) == 1:
            _, summaries, thoughts, _ = self._order[0]
            return self._thought[0] != "" or (not summaries and len(thoughts) <= 1)
        # The details of one item have its id.
        known = {key for key in self._thought if key}
        return len(known) == len(self._thought)


def _plain(parts: list[dict[str, Any]]) -> Any:
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or ""


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
