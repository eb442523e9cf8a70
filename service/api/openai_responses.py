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
from service.api.openai_responses_answer import is_ours, stream, whole
from service.api.openai_responses_fields import Beyond, integer, number, optional, string, within
from service.api.openai_responses_input import Conversation
from service.api.openai_responses_tools import Tool, called, full_name, offered

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
_HARMLESS = frozenset({"access_programs", "context_management", "image", "max_tool_calls", "truncation"})
_STATEFUL = frozenset({"background", "conversation", "previous_response_id", "prompt"})
_READ_APART = frozenset(
    {
        "include",
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
_TOOL_FIELDS = {
    "function": frozenset({"type", "name", "description", "parameters", "strict"}),
    "custom": frozenset({"type", "name", "description", "format"}),
    "tool_search": frozenset({"type", "execution", "description", "parameters"}),
}
_HARMLESS_TOOL_FIELDS = frozenset({"allowed_callers", "defer_loading", "output_schema"})


def decode(raw: bytes, asked: Asked) -> Request:
    """Raises `RequestError` that says which field cannot be used."""
    native = json_object(raw)
    if asked.model is not None:
        native["model"] = asked.model
    model = model_name(native.get("model"))
    streamed = optional(native, "stream", bool, "true or false")
    optional(native, "stream_options", dict, "an object")
    beyond = Beyond()
    conversation = Conversation(beyond)
    conversation.read(native.get("instructions"), native.get("input"))
    if not conversation.messages and not any(native.get(name) for name in _STATEFUL):
        raise RequestError("input is missing or empty", param="input")
    body: dict[str, Any] = {"model": model, "messages": conversation.messages}
    settings = _Settings(native, body, beyond)
    settings.tools()
    settings.rest()
    if conversation.replaced:
        native["input"] = [
            item for at, came in enumerate(native["input"]) if (item := conversation.replaced.get(at, came)) is not None
        ]
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
        beyond=beyond.fields,
        refused=tuple(dict.fromkeys(beyond.refused)),
        dropped=tuple(dict.fromkeys(beyond.dropped)),
    )


RESPONSES = Dialect("responses", decode, whole, stream, openai_body)


class _Settings:
    """Everything but what is said."""

    def __init__(self, native: dict[str, Any], body: dict[str, Any], beyond: Beyond) -> None:
        self._native = native
        self._body = body
        self._beyond = beyond

    # --- tools

    def tools(self) -> None:
        choice = self._native.get("tool_choice")
        listed: dict[str, tuple[Tool, dict[str, Any]]] = {}
        lacking: list[Tool] = []
        for tool in offered(self._native):
            if tool.called is None:
                lacking.append(tool)
                self._lack(tool)
                continue
            told = self._tool(tool)
            if tool.called in listed:  # told once more, and perhaps in another way
                self._beyond.keep(tool.path, tool.fields)
            else:
                listed[tool.called] = (tool, told)
        for tool in lacking:
            if tool.kind in _OPTIONAL_TOOLS and (listed or choice in (None, "auto", "none")):
                self._beyond.dropped.append(f"tools.{tool.kind}")
            elif tool.kind != "namespace" and choice != "none":
                self._beyond.refused.append(tool.path)
        wanted = self._choice(choice, listed)
        alone = optional(self._native, "parallel_tool_calls", bool, "true or false") is False
        if listed:
            self._body["tools"] = [told for _, told in listed.values()]
            if wanted not in (None, "auto"):
                self._body["tool_choice"] = wanted
            if alone:
                self._body["parallel_tool_calls"] = False
            return
        # Of tools that no other dialect has it says something nonetheless.
        if wanted == "none":
            self._beyond.keep("tool_choice", wanted)
        elif wanted not in (None, "auto"):
            self._body["tool_choice"] = wanted
        if alone:
            self._beyond.keep("parallel_tool_calls", False)

    def _lack(self, tool: Tool) -> None:
        fields = tool.fields
        if tool.kind == "namespace" and tool.namespace is None:
            # Its tools come next, each by itself.
            tools = optional(fields, "tools", list, "a list of tools", tool.path)
            fields = {**fields, "tools": len(tools or ())}
        self._beyond.keep(tool.path, fields)
        match fields:
            case {"container": str()} | {"environment": {"container_id": str()}}:
                self._beyond.keep("container", True)  # files that are kept elsewhere

    def _tool(self, tool: Tool) -> dict[str, Any]:
        fields, path = tool.fields, tool.path
        self._beyond.left(fields, _TOOL_FIELDS[tool.kind], path, harmless=_HARMLESS_TOOL_FIELDS)
        kept: dict[str, Any] = {"name": tool.called}
        if tool.called != full_name(tool.namespace, tool.name):
            self._beyond.keep(f"{path}.name", tool.name)
        if fields.get("description") is not None:
            kept["description"] = string(fields, "description", path)
        if tool.kind == "custom":
            form = self._form(tool)
            return {"type": "custom", "custom": {**kept, "format": form} if form else kept}
        if (parameters := optional(fields, "parameters", dict, "an object", path)) is not None:
            kept["parameters"] = parameters
        if tool.kind == "tool_search":
            self._beyond.keep(f"{path}.type", tool.kind)
        elif (strict := optional(fields, "strict", bool, "true or false", path)) is None:
            # Where it is not said this API tries, as no other does.
            self._beyond.keep(f"{path}.strict", None)
        elif strict:
            kept["strict"] = True
        return {"type": "function", "function": kept}

    def _form(self, tool: Tool) -> dict[str, Any] | None:
        form = optional(tool.fields, "format", dict, "an object", tool.path)
        path = f"{tool.path}.format"
        if form is None:
            return None
        if form.get("type") == "text":
            self._beyond.left(form, frozenset({"type"}), path)
            return None
        if form.get("type") != "grammar":
            self._beyond.refuse(path, form)
            return None
        self._beyond.left(form, frozenset({"type", "syntax", "definition"}), path)
        grammar = {"definition": string(form, "definition", path), "syntax": string(form, "syntax", path)}
        return {"type": "grammar", "grammar": grammar}

    def _choice(self, choice: object, listed: dict[str, tuple[Tool, dict[str, Any]]]) -> Any:
        if choice is None or choice in ("auto", "none", "required"):
            return choice
        if not isinstance(choice, dict) or not isinstance(kind := choice.get("type"), str):
            raise RequestError("tool_choice must be auto, none, required or an object with a type", param="tool_choice")
        if kind in ("function", "custom"):
            self._beyond.left(choice, frozenset({"type", "name", "namespace"}), "tool_choice")
            namespace = optional(choice, "namespace", str, "a string", "tool_choice")
            name = string(choice, "name", "tool_choice")
            if namespace is not None or called(None, name) != name:
                self._beyond.keep("tool_choice", choice)
            return {"type": kind, kind: {"name": called(namespace, name)}}
        self._beyond.keep("tool_choice", choice)
        if kind == "allowed_tools":
            return self._allowed(choice, listed)
        self._beyond.refused.append("tool_choice")
        return None

    def _allowed(self, choice: dict[str, Any], listed: dict[str, tuple[Tool, dict[str, Any]]]) -> Any:
        """Leaves in `listed` what may be called: offering no other tools is how every dialect can say it."""
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise RequestError("tool_choice.tools must be a list of objects", param="tool_choice.tools")
        names = {
            called(optional(tool, "namespace", str, "a string", "tool_choice.tools[]"), tool["name"])
            for tool in allowed
            if isinstance(tool.get("name"), str)
        }
        for name in [name for name in listed if name not in names]:
            tool, _ = listed.pop(name)
            self._beyond.keep(tool.path, tool.fields)  # the model reads of it all the same
        mode = choice.get("mode")
        if mode not in (None, "auto", "required"):
            raise RequestError("tool_choice.mode must be auto or required", param="tool_choice.mode")
        if mode == "required" and not listed:
            self._beyond.refused.append("tool_choice")
        return mode

    # --- how to answer

    def rest(self) -> None:
        native, body, beyond = self._native, self._body, self._beyond
        for name, value in native.items():
            if value is None or name in _NEUTRAL or name in _READ_APART:
                continue
            if name in _DEFAULTS and type(value) is type(_DEFAULTS[name]) and value == _DEFAULTS[name]:
                continue
            if name in ("temperature", "top_p"):
                body[name] = number(native, name)
            elif name == "max_output_tokens":
                body["max_completion_tokens"] = integer(native, name)
            elif name == "moderation" or (name == "service_tier" and isinstance(value, str) and value in _CHAT_TIERS):
                body[name] = value
            elif name in _HARMLESS or name == "service_tier":
                beyond.keep(name, value)
            elif name in _STATEFUL or name == "generate":
                beyond.refuse(name, value)
            else:
                place = within("", name)
                beyond.keep(place, value)
                beyond.dropped.append(place)
        if is_ours(native.get("previous_response_id")):
            raise RequestError(
                "previous_response_id is of an answer that no provider keeps: send the conversation as input",
                param="previous_response_id",
            )
        self._warming()
        self._logprobs()
        self._text()
        self._effort()

    def _warming(self) -> None:
        options = optional(self._native, "prompt_cache_options", dict, "an object")
        if options and options.get("prewarm"):  # asks for no answer at all
            self._beyond.keep("prompt_cache_options", options)
            self._beyond.refused.append("prompt_cache_options.prewarm")

    def _logprobs(self) -> None:
        include = optional(self._native, "include", list, "a list of strings")
        if include is not None and not all(isinstance(word, str) for word in include):
            raise RequestError("include must be a list of strings", param="include")
        count = 0 if self._native.get("top_logprobs") is None else integer(self._native, "top_logprobs")
        words = {*(include or ())}
        if _LOGPROBS in words:
            self._body["logprobs"] = True
            if count:
                self._body["top_logprobs"] = count
        elif count:
            self._beyond.keep("top_logprobs", count)
        if rest := sorted(words - {_LOGPROBS}):
            self._beyond.keep("include", rest)

    def _text(self) -> None:
        text = optional(self._native, "text", dict, "an object")
        if text is None:
            return
        self._beyond.left(text, frozenset({"format", "verbosity"}), "text")
        verbosity = optional(text, "verbosity", str, "a string", "text")
        if verbosity not in (None, "medium"):
            self._body["verbosity"] = verbosity
        form = optional(text, "format", dict, "an object", "text")
        if form is None:
            return
        kind = form.get("type")
        if kind == "text" or kind == "json_object":
            self._beyond.left(form, frozenset({"type"}), "text.format")
            if kind == "json_object":
                self._body["response_format"] = {"type": "json_object"}
        elif kind == "json_schema":
            self._beyond.left(form, frozenset({"type", "name", "schema", "strict", "description"}), "text.format")
            schema: dict[str, Any] = {"name": string(form, "name", "text.format")}
            schema["schema"] = optional(form, "schema", dict, "an object", "text.format")
            if form.get("description") is not None:
                schema["description"] = string(form, "description", "text.format")
            if optional(form, "strict", bool, "true or false", "text.format"):
                schema["strict"] = True
            self._body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            self._beyond.refuse("text.format", form)

    def _effort(self) -> None:
        reasoning = optional(self._native, "reasoning", dict, "an object")
        if reasoning is None:
            return
        effort = optional(reasoning, "effort", str, "a string", "reasoning")
        if effort is not None:
            self._body["reasoning_effort"] = effort
        self._beyond.left(
            reasoning,
            frozenset({"effort"}),
            "reasoning",
            harmless=frozenset({"context", "generate_summary", "mode", "summary"}),
        )
        if reasoning.get("mode") not in (None, "standard"):
            self._beyond.refused.append("reasoning.mode")
