"""The OpenAI Responses dialect: what `POST /v1/responses` asks, in the canonical form.

https://platform.openai.com/docs/api-reference/responses/create
"""

from typing import Any

import msgspec

from models.errors import RequestError
from models.request import Request
from service.api.body import json_object, model_name
from service.api.dialect import Asked, Dialect
from service.api.errors import openai_body
from service.api.openai_responses_answer import FORMAT, stream, unsealed, whole
from service.api.openai_responses_tools import Tool, called, offered

# What a field says when it says what would be so without it; null says so of every field.
_DEFAULTS: dict[str, Any] = {
    "background": False,
    "generate": True,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "tool_choice": "auto",
    "truncation": "disabled",
}
# How the answer travels, where it is kept and who is noted as asking: nothing of what it says.
_NEUTRAL = frozenset(
    {
        "client_metadata",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
# Without these the answer is still one to this question.
_HARMLESS = frozenset({"access_programs", "context_management", "image", "include", "max_tool_calls", "truncation"})
_STATEFUL = frozenset({"background", "conversation", "previous_response_id", "prompt"})
_READ_APART = frozenset(
    {
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
_CHAT_TIERS = frozenset({"default", "flex", "scale", "priority", "fast"})
_LOGPROBS = "message.output_text.logprobs"

# Tools that agents offer with every request. A model that lacks one of them can say so, or do without.
_OPTIONAL_TOOLS = frozenset(
    {
        "image_generation",
        "programmatic_tool_calling",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
_TOOL_FIELDS = frozenset({"type", "name", "description", "parameters", "strict", "format", "execution"})
_HARMLESS_TOOL_FIELDS = frozenset({"allowed_callers", "defer_loading", "output_schema"})

_MESSAGE_FIELDS = frozenset({"type", "role", "content", "id", "status"})
_CALL_FIELDS = frozenset(
    {"type", "id", "call_id", "name", "namespace", "arguments", "input", "status", "execution", "created_by"}
)
_OUTPUT_FIELDS = frozenset({"type", "id", "call_id", "name", "namespace", "output", "status", "execution", "tools"})
_REASONING_FIELDS = frozenset({"type", "id", "summary", "content", "encrypted_content", "status"})
_HARMLESS_ITEM_FIELDS = frozenset({"phase", "caller", "async", "created_by"})
_PART_FIELDS = frozenset(
    {
        "type",
        "text",
        "refusal",
        "logprobs",
        "image_url",
        "file_id",
        "file_url",
        "file_data",
        "filename",
        "input_audio",
        "prompt_cache_breakpoint",
    }
)
# Items that only this dialect has, of which the rest of the conversation holds what came of them.
_HARMLESS_ITEMS = frozenset({"web_search_call", "tool_search_call", "tool_search_output"})
_OF_THE_MODEL = frozenset({"compaction", "program", "mcp_list_tools", "mcp_approval_request"})

_ROLES = {"user": "user", "system": "system", "developer": "system"}


def decode(raw: bytes, asked: Asked) -> Request:
    """Raises `RequestError` that says which field cannot be used."""
    native = json_object(raw)
    if asked.model is not None:
        native["model"] = asked.model
    model = model_name(native.get("model"))
    streamed = _optional(native, "stream", bool, "true or false")
    _optional(native, "stream_options", dict, "an object")
    reading = _Reading()
    body: dict[str, Any] = {"model": model, "messages": reading.messages}
    reading.conversation(native)
    reading.tools(native, body)
    reading.settings(native, body)
    if reading.sealed:
        # What this gateway sealed for the client to bring back is nothing the API knows.
        native["input"] = [item for number, item in enumerate(native["input"]) if number not in reading.sealed]
        raw = msgspec.json.encode(native)
    return Request(
        "chat",
        model,
        body,
        raw,
        stream=streamed or False,
        include_usage=True,
        dialect="responses",
        native=native,
        beyond=reading.beyond,
        refused=tuple(dict.fromkeys(reading.refused)),
        dropped=tuple(dict.fromkeys(reading.dropped)),
    )


RESPONSES = Dialect("responses", decode, whole, stream, openai_body)


class _Reading:
    """One request, as it is read: its messages, and what they have no words for."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.beyond: dict[str, Any] = {}
        self.refused: list[str] = []
        self.dropped: list[str] = []
        self.sealed: set[int] = set()  # places in `input` of what only this gateway reads
        self._turn: dict[str, Any] | None = None  # the assistant's, still growing
        self._details: list[dict[str, Any]] = []  # reasoning that belongs to what comes next
        self._thoughts: list[str] = []

    # --- what is said

    def conversation(self, native: dict[str, Any]) -> None:
        instructions = native.get("instructions")
        if isinstance(instructions, str):
            if instructions:
                self.messages.append({"role": "system", "content": instructions})
        elif isinstance(instructions, list):  # what a response echoes of a stored prompt
            for number, item in enumerate(instructions):
                self._item(item, f"instructions[{number}]", -1)
        elif instructions is not None:
            raise RequestError("instructions must be a string", param="instructions")
        said = native.get("input")
        if isinstance(said, str):
            self.messages.append({"role": "user", "content": said})
        elif isinstance(said, list):
            for number, item in enumerate(said):
                self._item(item, f"input[{number}]", number)
            self._end_turn()
        elif said is not None:
            raise RequestError("input must be a string or a list of items", param="input")
        if not self.messages and not any(native.get(name) for name in _STATEFUL):
            raise RequestError("input is missing or empty", param="input")

    def _item(self, item: object, path: str, number: int) -> None:
        if not isinstance(item, dict):
            raise RequestError(f"{path} must be an object", param=path)
        kind = item.get("type")
        if kind is None:
            kind = "message" if "role" in item else "item_reference"
        match kind:
            case "message":
                self._message(item, path)
            case "function_call" | "custom_tool_call":
                self._call(item, kind, path)
            case "function_call_output" | "custom_tool_call_output":
                self._left(item, _OUTPUT_FIELDS, path)
                self._result(_string(item, "call_id", path), self._content(item.get("output"), f"{path}.output"))
            case "reasoning":
                self._reasoning(item, path, number)
            case "tool_search_call" if item.get("execution") == "client" and item.get("call_id"):
                self._searched(item, path)
            case "tool_search_output" if item.get("execution") == "client" and item.get("call_id"):
                self._left(item, _OUTPUT_FIELDS, path)
                found = [tool.called for tool in offered({"tools": item.get("tools")}) if tool.called]
                self._result(_string(item, "call_id", path), msgspec.json.encode(found).decode())
            case "additional_tools":
                self._left(item, frozenset({"type", "id", "role", "tools"}), path)
            case "item_reference":
                self.beyond.setdefault("item_reference", []).append(_string(item, "id", path))
                self._opaque(item, kind, path)
            case str():
                self._opaque(item, kind, path)
            case _:
                raise RequestError(f"{path}.type must be a string", param=f"{path}.type")

    def _message(self, item: dict[str, Any], path: str) -> None:
        self._left(item, _MESSAGE_FIELDS, path)
        role = item.get("role")
        if role == "assistant":
            if self._turn is not None and (self._turn["content"] is not None and "tool_calls" not in self._turn):
                self._turn = None
            refusals: list[str] = []
            said = self._content(item.get("content"), f"{path}.content", refusals)
            turn = self._assistant()
            turn["content"] = said if turn["content"] is None else [*_parts(turn["content"]), *_parts(said)]
            if refusals:
                turn["refusal"] = turn.get("refusal", "") + "".join(refusals)
                turn["content"] = turn["content"] or None
            return
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{path}.role must be user, assistant, system or developer", param=f"{path}.role")
        self._end_turn()
        message: dict[str, Any] = {"role": _ROLES[role]}
        blocks: list[dict[str, Any]] = []
        message["content"] = self._content(item.get("content"), f"{path}.content", blocks=blocks)
        if blocks:
            message["provider_content"] = blocks
        self.messages.append(message)

    def _content(
        self,
        content: object,
        path: str,
        refusals: list[str] | None = None,
        blocks: list[dict[str, Any]] | None = None,
    ) -> Any:
        """A string for text alone in one part, else parts. `blocks` takes those that only this dialect has."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise RequestError(f"{path} must be a string or a list of parts", param=path)
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(content):
            where = f"{path}[{number}]"
            if not isinstance(part, dict):
                raise RequestError(f"{where} must be an object", param=where)
            self._part(part, where, parts, refusals, blocks)
        if len(parts) == 1 and parts[0]["type"] == "text":
            return parts[0]["text"]
        return parts or ""

    def _part(
        self,
        part: dict[str, Any],
        path: str,
        parts: list[dict[str, Any]],
        refusals: list[str] | None,
        blocks: list[dict[str, Any]] | None,
    ) -> None:
        kind = part.get("type")
        if not isinstance(kind, str):
            raise RequestError(f"{path}.type must be a string", param=f"{path}.type")
        known = _PART_FIELDS
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": _string(part, "text", path)})
            known = known if part.get("annotations") else known | {"annotations"}
        elif kind == "refusal" and refusals is not None:
            refusals.append(_string(part, "refusal", path))
        elif kind == "input_image" and part.get("image_url") is not None:
            image = {"url": _string(part, "image_url", path)}
            if part.get("detail") not in (None, "auto"):
                image["detail"] = _string(part, "detail", path)
            parts.append({"type": "image_url", "image_url": image})
            known = known | {"detail"}
        elif kind == "input_file":
            names = ("file_data", "file_url", "file_id", "filename")
            file = {name: _string(part, name, path) for name in names if part.get(name) is not None}
            parts.append({"type": "file", "file": file})
            known = known if part.get("detail") not in (None, "auto") else known | {"detail"}
        elif kind == "input_audio":
            audio = part.get("input_audio")
            where = f"{path}.input_audio"
            if not isinstance(audio, dict):
                raise RequestError(f"{where} must be an object", param=where)
            sound = {"data": _string(audio, "data", where), "format": _string(audio, "format", where)}
            parts.append({"type": "input_audio", "input_audio": sound})
        else:
            # A picture by the id of a file, and what there may be next year.
            self.refused.append(path)
            if blocks is None:
                self.beyond[path] = part
            else:
                blocks.append({"dialect": "responses", "block": part})
            return
        self._left(part, known, path, harmless=frozenset({"annotations", "detail"}))

    def _call(self, item: dict[str, Any], kind: str, path: str) -> None:
        self._left(item, _CALL_FIELDS, path)
        namespace = item.get("namespace")
        if namespace is not None and not isinstance(namespace, str):
            raise RequestError(f"{path}.namespace must be a string", param=f"{path}.namespace")
        name = called(namespace, _string(item, "name", path))
        call: dict[str, Any] = {"id": _string(item, "call_id", path)}
        if kind == "function_call":
            call |= {"type": "function", "function": {"name": name, "arguments": _string(item, "arguments", path)}}
        else:
            call |= {"type": "custom", "custom": {"name": name, "input": _string(item, "input", path)}}
        self._assistant().setdefault("tool_calls", []).append(call)

    def _searched(self, item: dict[str, Any], path: str) -> None:
        self._left(item, _CALL_FIELDS, path)
        arguments = msgspec.json.encode(item.get("arguments")).decode()
        function = {"name": "tool_search", "arguments": arguments}
        call = {"id": _string(item, "call_id", path), "type": "function", "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)

    def _result(self, call_id: str, content: Any) -> None:
        self._end_turn()
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _reasoning(self, item: dict[str, Any], path: str, number: int) -> None:
        self._left(item, _REASONING_FIELDS, path)
        if self._turn is not None and self._turn["content"] is not None and "tool_calls" not in self._turn:
            self._turn = None
        frame = {"format": FORMAT}
        if item.get("id") is not None:
            frame["id"] = _string(item, "id", path)
        summaries = _texts(item, "summary", path)
        thoughts = _texts(item, "content", path)
        opaque = item.get("encrypted_content")
        self._thoughts += summaries + thoughts
        if opaque is not None:
            details = unsealed(_string(item, "encrypted_content", path))
            if details is not None:
                self._details += details
                if number >= 0:
                    self.sealed.add(number)
                return
        self._details += [{"type": "reasoning.summary", **frame, "summary": text} for text in summaries]
        if opaque is not None or summaries:
            self._details += [{"type": "reasoning.text", **frame, "text": text} for text in thoughts]
        if opaque is not None:
            self._details.append({"type": "reasoning.encrypted", **frame, "data": opaque})

    def _opaque(self, item: dict[str, Any], kind: str, path: str) -> None:
        if kind.endswith("_call") or kind in _OF_THE_MODEL:
            message = self._assistant()
        else:
            self._end_turn()
            message = {"role": "user", "content": ""}
            self.messages.append(message)
        message.setdefault("provider_content", []).append({"dialect": "responses", "block": item})
        if kind not in _HARMLESS_ITEMS:
            self.refused.append(path)

    def _assistant(self) -> dict[str, Any]:
        """The turn that grows, with the reasoning that led to what comes next."""
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
            self.messages.append(self._turn)
        turn = self._turn
        if self._thoughts:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + "".join(self._thoughts)
            self._thoughts = []
        if self._details:
            so_far = turn.setdefault("reasoning_details", [])
            so_far += [{**detail, "index": index} for index, detail in enumerate(self._details, len(so_far))]
            self._details = []
        return turn

    def _end_turn(self) -> None:
        if self._details or self._thoughts:
            self._assistant()
        turn, self._turn = self._turn, None
        if turn is not None and turn["content"] is None and not turn.keys() & {"tool_calls", "refusal"}:
            turn["content"] = ""

    # --- tools

    def tools(self, native: dict[str, Any], body: dict[str, Any]) -> None:
        choice = native.get("tool_choice")
        listed: dict[str, dict[str, Any]] = {}
        lacking: list[Tool] = []
        for tool in offered(native):
            if tool.called is not None:
                listed.setdefault(tool.called, self._tool(tool))
            else:
                lacking.append(tool)
        if lacking:
            self.beyond["tools"] = [tool.fields for tool in lacking]
        for tool in lacking:
            if tool.kind in _OPTIONAL_TOOLS and (listed or choice in (None, "auto", "none")):
                self.dropped.append(f"tools.{tool.kind}")
            elif tool.kind != "namespace" and choice != "none":
                self.refused.append(tool.path)
        wanted = self._choice(choice, listed)
        if listed:
            body["tools"] = list(listed.values())
            if wanted not in (None, "auto"):
                body["tool_choice"] = wanted
            if _optional(native, "parallel_tool_calls", bool, "true or false") is False:
                body["parallel_tool_calls"] = False
        elif wanted not in (None, "auto", "none"):
            body["tool_choice"] = wanted

    def _tool(self, tool: Tool) -> dict[str, Any]:
        self._left(tool.fields, _TOOL_FIELDS, tool.path, harmless=_HARMLESS_TOOL_FIELDS)
        kept: dict[str, Any] = {"name": tool.called}
        if tool.fields.get("description") is not None:
            kept["description"] = _string(tool.fields, "description", tool.path)
        if tool.kind == "custom":
            form = self._form(tool)
            return {"type": "custom", "custom": {**kept, "format": form} if form else kept}
        if (parameters := _optional(tool.fields, "parameters", dict, "an object", tool.path)) is not None:
            kept["parameters"] = parameters
        if _optional(tool.fields, "strict", bool, "true or false", tool.path):
            kept["strict"] = True
        return {"type": "function", "function": kept}

    def _form(self, tool: Tool) -> dict[str, Any] | None:
        form = _optional(tool.fields, "format", dict, "an object", tool.path)
        if form is None or form.get("type") == "text":
            return None
        path = f"{tool.path}.format"
        if form.get("type") != "grammar":
            self.beyond[path] = form
            self.refused.append(path)
            return None
        self._left(form, frozenset({"type", "syntax", "definition"}), path)
        grammar = {"definition": _string(form, "definition", path), "syntax": _string(form, "syntax", path)}
        return {"type": "grammar", "grammar": grammar}

    def _choice(self, choice: object, listed: dict[str, dict[str, Any]]) -> Any:
        if choice is None or choice in ("auto", "none", "required"):
            return choice
        if not isinstance(choice, dict) or not isinstance(kind := choice.get("type"), str):
            raise RequestError("tool_choice must be auto, none, required or an object with a type", param="tool_choice")
        if kind in ("function", "custom"):
            namespace = _optional(choice, "namespace", str, "a string", "tool_choice")
            name = called(namespace, _string(choice, "name", "tool_choice"))
            return {"type": kind, kind: {"name": name}}
        self.beyond["tool_choice"] = choice
        if kind == "allowed_tools":
            return self._allowed(choice, listed)
        self.refused.append("tool_choice")
        return None

    def _allowed(self, choice: dict[str, Any], listed: dict[str, dict[str, Any]]) -> Any:
        """Leaves in `listed` what may be called: offering no other tools is how every dialect can say it."""
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise RequestError("tool_choice.tools must be a list of objects", param="tool_choice.tools")
        names = {
            called(_optional(tool, "namespace", str, "a string", "tool_choice.tools[]"), tool["name"])
            for tool in allowed
            if isinstance(tool.get("name"), str)
        }
        for name in [name for name in listed if name not in names]:
            del listed[name]
        mode = choice.get("mode")
        if mode not in (None, "auto", "required"):
            raise RequestError("tool_choice.mode must be auto or required", param="tool_choice.mode")
        if mode == "required" and not listed:
            self.refused.append("tool_choice")
        return mode

    # --- how to answer

    def settings(self, native: dict[str, Any], body: dict[str, Any]) -> None:
        for name, value in native.items():
            if value is None or name in _NEUTRAL or name in _READ_APART:
                continue
            if name in _DEFAULTS and type(value) is type(_DEFAULTS[name]) and value == _DEFAULTS[name]:
                continue
            if name in ("temperature", "top_p"):
                body[name] = _number(native, name)
            elif name == "max_output_tokens":
                body["max_completion_tokens"] = _integer(native, name)
            elif name == "moderation" or (name == "service_tier" and isinstance(value, str) and value in _CHAT_TIERS):
                body[name] = value
            elif name == "include":
                self._include(native, body)
            elif name in _HARMLESS or name == "service_tier":
                self.beyond[name] = value
            elif name in _STATEFUL or name == "generate":
                self.beyond[name] = value
                self.refused.append(name)
            else:
                self.beyond[name] = value
                self.dropped.append(name)
        self._warming(native)
        self._text(native, body)
        self._effort(native, body)

    def _warming(self, native: dict[str, Any]) -> None:
        options = _optional(native, "prompt_cache_options", dict, "an object")
        if options and options.get("prewarm"):  # asks for no answer at all
            self.beyond["prompt_cache_options"] = options
            self.refused.append("prompt_cache_options.prewarm")

    def _include(self, native: dict[str, Any], body: dict[str, Any]) -> None:
        include = native["include"]
        if not isinstance(include, list) or not all(isinstance(word, str) for word in include):
            raise RequestError("include must be a list of strings", param="include")
        if _LOGPROBS in include:
            body["logprobs"] = True
            if native.get("top_logprobs") is not None and (count := _integer(native, "top_logprobs")):
                body["top_logprobs"] = count
        rest = sorted({*include} - {_LOGPROBS})
        if rest:
            self.beyond["include"] = rest

    def _text(self, native: dict[str, Any], body: dict[str, Any]) -> None:
        text = _optional(native, "text", dict, "an object")
        if text is None:
            return
        self._left(text, frozenset({"format", "verbosity"}), "text")
        verbosity = _optional(text, "verbosity", str, "a string", "text")
        if verbosity not in (None, "medium"):
            body["verbosity"] = verbosity
        form = _optional(text, "format", dict, "an object", "text")
        if form is None or form.get("type") == "text":
            return
        if form.get("type") == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif form.get("type") == "json_schema":
            self._left(form, frozenset({"type", "name", "schema", "strict", "description"}), "text.format")
            schema: dict[str, Any] = {"name": _string(form, "name", "text.format")}
            schema["schema"] = _optional(form, "schema", dict, "an object", "text.format")
            if form.get("description") is not None:
                schema["description"] = _string(form, "description", "text.format")
            if _optional(form, "strict", bool, "true or false", "text.format"):
                schema["strict"] = True
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            self.beyond["text.format"] = form
            self.refused.append("text.format")

    def _effort(self, native: dict[str, Any], body: dict[str, Any]) -> None:
        reasoning = _optional(native, "reasoning", dict, "an object")
        if reasoning is None:
            return
        effort = _optional(reasoning, "effort", str, "a string", "reasoning")
        if effort is not None:
            body["reasoning_effort"] = effort
        self._left(
            reasoning,
            frozenset({"effort"}),
            "reasoning",
            harmless=frozenset({"context", "generate_summary", "mode", "summary"}),
        )
        if reasoning.get("mode") not in (None, "standard"):
            self.refused.append("reasoning.mode")

    def _left(
        self,
        fields: dict[str, Any],
        known: frozenset[str],
        path: str,
        *,
        harmless: frozenset[str] = _HARMLESS_ITEM_FIELDS,
    ) -> None:
        """Keeps what no rule above reads: it is part of what makes two requests the same."""
        if fields.keys() <= known:
            return
        for name in fields.keys() - known:
            if fields[name] is not None:
                self.beyond[f"{path}.{name}"] = fields[name]
                if name not in harmless:
                    self.dropped.append(f"{path}.{name}")


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []


def _texts(item: dict[str, Any], name: str, path: str) -> list[str]:
    """The texts of a reasoning item's summary or content."""
    parts = item.get(name)
    if parts is None:
        return []
    where = f"{path}.{name}"
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(f"{where} must be a list of parts", param=where)
    return [_string(part, "text", f"{where}[{number}]") for number, part in enumerate(parts)]


def _string(fields: dict[str, Any], name: str, path: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{path}.{name} must be a string", param=f"{path}.{name}")
    return value


def _optional(fields: dict[str, Any], name: str, kind: type, words: str, path: str = "") -> Any:
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        where = f"{path}.{name}" if path else name
        raise RequestError(f"{where} must be {words}", param=where)
    return value


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number", param=name)
    return value


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number", param=name)
    return value
