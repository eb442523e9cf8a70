"""A canonical request as the body of Gemini's `generateContent` and `batchEmbedContents`.

https://ai.google.dev/api/generate-content and https://ai.google.dev/api/embeddings; what has no words there is in
docs/dialects/gemini.md.
"""

import base64
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from models.errors import RequestError, Untranslatable

FORMAT: Final = "google-gemini-v1"  # of reasoning that Gemini can read
# The order of an assistant's message where its `layout` says none.
LAID_OUT: Final = ("reasoning_details", "content", "tool_calls", "provider_content")

_NUMBERS: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_COUNTS: Final = {
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "n": "candidateCount",
    "seed": "seed",
    "top_logprobs": "logprobs",
}
_FUNCTION: Final = (None, "function")  # the type of a call may go without saying
_GO_WITHOUT_SAYING: Final = {"presence_penalty": 0, "frequency_penalty": 0, "n": 1}
_TIERS: Final = {"default": "standard", "flex": "flex", "priority": "priority"}
_HARMLESS: Final = frozenset(
    {
        "metadata",
        "prediction",
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
_REFUSED: Final = (
    "audio",
    "function_call",
    "functions",
    "logit_bias",
    "moderation",
    "web_search_options",
)
_READ: Final = frozenset(
    {
        "logprobs",
        "messages",
        "modalities",
        "model",
        "parallel_tool_calls",  # kept where the answer is read
        "reasoning_budget",
        "reasoning_effort",
        "response_format",
        "service_tier",
        "stop",
        "tool_choice",
        "tools",
        "verbosity",
    }
)
KNOWN: Final = frozenset(_NUMBERS) | frozenset(_COUNTS) | _HARMLESS | frozenset(_REFUSED) | _READ

_OF_EVERY_MESSAGE: Final = frozenset({"role", "content", "name", "provider_content", "cache_control"})
_OF_ASSISTANT: Final = {
    *("refusal", "audio", "function_call", "layout", "annotations", "content_items", "reasoning", "reasoning_content"),
}
_OF_ROLE: Final = {
    "system": _OF_EVERY_MESSAGE,
    "developer": _OF_EVERY_MESSAGE,
    "user": _OF_EVERY_MESSAGE,
    "assistant": _OF_EVERY_MESSAGE | _OF_ASSISTANT | frozenset(LAID_OUT),
    "tool": _OF_EVERY_MESSAGE | {"tool_call_id", "is_error"},
}

# What Google's own OpenAI-compatible API takes the efforts for: https://ai.google.dev/gemini-api/docs/openai
_BUDGETS: Final = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}
_LEVELS: Final = {
    "none": "MINIMAL",
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "HIGH",
    "max": "HIGH",
}
# Tokens up to which an effort stands for them, where a model takes no number.
_EFFORTS: Final = ((0, "none"), (2048, "low"), (16_384, "medium"))
_BUDGETED: Final = ("gemini-1", "gemini-2", "gemma-3")
# The others refuse it: https://ai.google.dev/gemini-api/docs/thinking
_MINIMAL: Final = ("gemini-3-flash", "gemini-3.1-flash", "gemini-3.5-flash", "gemini-3.6-flash")
# 2.5 Pro always thinks, and this is the least it takes.
_LEAST_BUDGET_OF_PRO: Final = 128
# Since Gemini 3 the first call of a turn must be signed. Google's word for one that another model, or a client that
# keeps no signatures, brought along: https://ai.google.dev/gemini-api/docs/thought-signatures
_UNSIGNED: Final = "skip_thought_signature_validator"

_CALLS: Final = frozenset({"functionCall", "function_call"})
_RESULTS: Final = frozenset({"functionResponse", "function_response"})
_SIGNATURES: Final = frozenset({"thoughtSignature", "thought_signature"})

_MEDIA_TYPES: Final = {
    "aac": "audio/aac",
    "csv": "text/csv",
    "flac": "audio/flac",
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "md": "text/markdown",
    "mov": "video/quicktime",
    "mp3": "audio/mp3",
    "mp4": "video/mp4",
    "ogg": "audio/ogg",
    "pdf": "application/pdf",
    "png": "image/png",
    "txt": "text/plain",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
}

Part = dict[str, Any]


def chat(body: Mapping[str, Any], model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body of `generateContent`, and the fields that nobody knows.

    Raises `Untranslatable` for what has no words in it, `RequestError` for what is no chat request.
    """
    translation = _Translation(model)
    sent = translation.request(body)
    if translation.refused:
        raise Untranslatable(list(dict.fromkeys(translation.refused)), dialect="gemini")
    return sent, tuple(dict.fromkeys(translation.dropped))


def as_asked(native: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """What a client of this dialect wrote: the same object where nothing needs to change.

    A model in the body may contradict the path. Calls that another provider's
    model made are not signed; in the turn that goes on they would be refused.
    """
    if "model" in native:
        native = {name: native[name] for name in native if name != "model"}
    contents = native.get("contents")
    if not isinstance(contents, list) or model.rpartition("/")[2].startswith(_BUDGETED):
        return native
    begun = next((at for at in range(len(contents) - 1, -1, -1) if _asks(contents[at])), -1) + 1
    signed = dict(_signed(contents, begun))
    if not signed:
        return native
    return {**native, "contents": [signed.get(at, content) for at, content in enumerate(contents)]}


def _asks(content: Any) -> bool:
    """Whether a turn begins with it: what a user says, and not only what tools came to."""
    match content:
        case {"parts": list(parts)} if content.get("role") != "model":
            return any(not isinstance(part, dict) or not part.keys() & _RESULTS for part in parts)
    return isinstance(content, str)


def _signed(contents: list[Any], begun: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The contents from `begun` on whose first call lacks a signature, with Google's word for that. Contents of the
    model that follow each other are one step, which is signed once."""
    called = False
    for at in range(begun, len(contents)):
        match contents[at]:
            case {"role": "model", "parts": list(parts)} as content:
                calls = [n for n, part in enumerate(parts) if isinstance(part, dict) and part.keys() & _CALLS]
                if calls and not called and not any(parts[calls[0]].get(name) for name in _SIGNATURES):
                    part = {**parts[calls[0]], "thoughtSignature": _UNSIGNED}
                    yield at, {**content, "parts": [*parts[: calls[0]], part, *parts[calls[0] + 1 :]]}
                called = called or bool(calls)
            case _:
                called = False


def embedding(body: Mapping[str, Any], model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body of `batchEmbedContents`, and the fields that nobody knows. Raises as `chat`."""
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts:
        raise _wrong("input", "a text or a list of texts")
    if any(isinstance(text, int | list) for text in texts):
        raise Untranslatable(["input (tokens)"], dialect="gemini")
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("input", "a text or a list of texts")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise _wrong("encoding_format", "float or base64")
    name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    more = {}
    if body.get("dimensions") is not None:
        more["outputDimensionality"] = _count(body["dimensions"], "dimensions")
    requests = [{"model": name, "content": {"parts": [{"text": text}]}, **more} for text in texts]
    unknown = body.keys() - {"input", "model", "dimensions", "encoding_format", "user"}
    return {"requests": requests}, tuple(sorted(unknown))


class _Translation:
    """One request on its way; names what it could not say."""

    def __init__(self, model: str) -> None:
        name = model.rpartition("/")[2]
        self._budgeted = name.startswith(_BUDGETED)
        self._minimal = name.startswith(_MINIMAL)
        self._least_budget = _LEAST_BUDGET_OF_PRO if name.startswith("gemini-2.5-pro") else 0
        self._calls: dict[str, str] = {}  # id → name of the function
        self.refused: list[str] = []
        self.dropped: list[str] = []

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.dropped.extend(sorted(body.keys() - KNOWN))
        # No options are still a search.
        self.refused.extend(
            name for name in _REFUSED if body.get(name) or (body.get(name) == {} and name == "web_search_options")
        )
        if body.get("verbosity") not in (None, "medium"):
            self.refused.append("verbosity")
        if body.get("modalities") not in (None, [], ["text"]):
            self.refused.append("modalities")
        system, contents = self._conversation(body.get("messages"))
        if system and not contents:
            # A request must have a turn.
            system, contents = [], [{"role": "user", "parts": system}]
        if not contents and not self.refused:
            raise _wrong("messages", "a list of messages that say something")
        sent: dict[str, Any] = {"contents": contents}
        if system:
            sent["systemInstruction"] = {"parts": system}
        sent |= self._tools(body)
        if config := self._config(body):
            sent["generationConfig"] = config
        tier = body.get("service_tier")
        if isinstance(tier, str) and tier in _TIERS:
            sent["serviceTier"] = _TIERS[tier]
        return sent

    def _config(self, body: Mapping[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for names, typed in _TYPED:
            for name, theirs in names.items():
                if body.get(name) is not None:
                    value = typed(body[name], name)
                    # Some models refuse to be told even what is so anyway.
                    if value != _GO_WITHOUT_SAYING.get(name):
                        config[theirs] = value
        stop = body.get("stop")
        if isinstance(stop, str):
            config["stopSequences"] = [stop]
        elif stop:
            if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
                raise _wrong("stop", "a text or a list of texts")
            config["stopSequences"] = stop
        if body.get("logprobs") is not None:
            if not isinstance(body["logprobs"], bool):
                raise _wrong("logprobs", "true or false")
            if body["logprobs"]:
                config["responseLogprobs"] = True
        if not config.get("responseLogprobs") or not config.get("logprobs"):
            config.pop("logprobs", None)
        return config | self._response_format(body.get("response_format")) | self._thinking(body)

    def _response_format(self, value: Any) -> dict[str, Any]:
        match value:
            case None | {"type": "text"}:
                return {}
            case {"type": "json_object"}:
                return {"responseMimeType": "application/json"}
            case {"type": "json_schema", "json_schema": dict(wanted)}:
                schema = wanted.get("schema")
                if schema is not None and not isinstance(schema, dict):
                    raise _wrong("response_format.json_schema.schema", "an object")
                kind = {"responseMimeType": "application/json"}
                return kind if schema is None else {**kind, "responseJsonSchema": schema}
            case {"type": str(kind)} if kind != "json_schema":
                self.refused.append(f"response_format (type {kind[:40]!r})")
                return {}
        raise _wrong("response_format", "an object with a type, and a json_schema where the type says so")

    def _thinking(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A number of tokens for models up to 2.5, a level for later ones; never both, which is an error there.

        Who says how much to think wants to read it, too.
        """
        effort, budget = body.get("reasoning_effort"), body.get("reasoning_budget")
        if effort is not None and (not isinstance(effort, str) or effort not in _LEVELS):
            raise _wrong("reasoning_effort", f"one of {', '.join(_LEVELS)}")
        if budget is not None:
            tokens = _count(budget, "reasoning_budget")
        elif effort is not None:
            tokens = _BUDGETS[effort]
        else:
            return {}
        config: dict[str, Any] = {}
        if self._budgeted:
            config["thinkingBudget"] = tokens if tokens < 0 else max(tokens, self._least_budget)
            quiet = tokens == 0
        else:
            if effort is None and tokens >= 0:
                effort = next((name for most, name in _EFFORTS if tokens <= most), "high")
            if effort is not None:
                level = _LEVELS[effort]
                config["thinkingLevel"] = "LOW" if level == "MINIMAL" and not self._minimal else level
            quiet = effort == "none"
        if not quiet:
            config["includeThoughts"] = True
        return {"thinkingConfig": config}

    def _tools(self, body: Mapping[str, Any]) -> dict[str, Any]:
        tools, choice = body.get("tools"), body.get("tool_choice")
        if not tools:
            return {}
        declared = {}
        strict = False
        for at, tool in enumerate(_list(tools, "tools")):
            match tool:
                case {"type": "function", "function": {"name": str(name)} as function}:
                    declared[name] = self._declaration(name, function, f"tools[{at}].function")
                    strict = strict or function.get("strict") is True
                    self._note(tool, f"tools[{at}]", "type", "function", "cache_control")
                case {"type": str(kind)} if kind != "function":
                    self.refused.append(f"tools[{at}] (type {kind[:40]!r})")
                case _:
                    raise _wrong(f"tools[{at}]", "an object with a function and its name")
        config: dict[str, Any] = {"mode": "VALIDATED"} if strict else {}
        match choice:
            case None | "auto":
                pass
            case "none":
                config = {"mode": "NONE"}
            case "required":
                config = {"mode": "ANY"}
            case {"type": "function", "function": {"name": str(name)}}:
                config = {"mode": "ANY", "allowedFunctionNames": [name]}
            case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": allowed}}:
                names = {_name_of(tool) for tool in _list(allowed, "tool_choice.allowed_tools.tools")}
                # A list of names is only allowed where a call must be made: what is not offered is not called.
                declared = {name: tool for name, tool in declared.items() if name in names}
                config = {"mode": "ANY"} if mode == "required" else config
            case {"type": "custom"}:
                self.refused.append("tool_choice (type 'custom')")
            case _:
                raise _wrong("tool_choice", "auto, none, required, or an object that names a function")
        sent: dict[str, Any] = {}
        if declared:
            sent["tools"] = [{"functionDeclarations": list(declared.values())}]
            if config:
                sent["toolConfig"] = {"functionCallingConfig": config}
        return sent

    def _declaration(self, name: str, function: Mapping[str, Any], path: str) -> dict[str, Any]:
        declaration: dict[str, Any] = {"name": name}
        if function.get("description") is not None:
            declaration["description"] = _text(function["description"], f"{path}.description")
        if function.get("parameters"):
            if not isinstance(function["parameters"], dict):
                raise _wrong(f"{path}.parameters", "an object")
            declaration["parametersJsonSchema"] = function["parameters"]
        self._note(function, path, "name", "description", "parameters", "strict")
        return declaration

    def _conversation(self, messages: Any) -> tuple[list[Part], list[dict[str, Any]]]:
        system: list[Part] = []
        contents: list[dict[str, Any]] = []
        for at, message in enumerate(_list(messages, "messages")):
            path = f"messages[{at}]"
            role = message.get("role") if isinstance(message, dict) else None
            if role == "function":
                self.refused.append(f"{path} (role 'function')")
                continue
            if not isinstance(role, str) or role not in _OF_ROLE:
                raise _wrong(path, f"an object with a role: {', '.join(_OF_ROLE)}")
            if unknown := message.keys() - _OF_ROLE[role]:
                self.dropped.extend(f"{path}.{name}" for name in sorted(unknown))
            if role in ("system", "developer"):
                system.extend(self._system(message, path))
                continue
            parts = list(self._parts(role, message, path))
            if not parts:
                continue
            theirs = "model" if role == "assistant" else "user"
            if contents and contents[-1]["role"] == theirs:
                contents[-1]["parts"].extend(parts)
                continue
            if not contents and theirs == "model":
                # A conversation must begin with the user.
                contents.append({"role": "user", "parts": [{"text": " "}]})
            contents.append({"role": theirs, "parts": parts})
        return system, contents

    def _system(self, message: dict[str, Any], path: str) -> Iterator[Part]:
        if message.get("content") is None:
            return
        for part in self._content(message["content"], f"{path}.content"):
            if "text" in part:
                yield part
            else:
                self.refused.append(f"{path}.content (a system prompt that is not text)")

    def _parts(self, role: str, message: dict[str, Any], path: str) -> Iterable[Part]:
        if role == "assistant":
            return self._assistant(message, path)
        content = message.get("content")
        if role == "tool":
            own = [self._result(message, path)]
        elif content is None:
            raise _wrong(f"{path}.content", "a text or a list of parts")
        else:
            own = list(self._content(content, f"{path}.content"))
        return own + self._blocks(message, path)

    def _assistant(self, message: dict[str, Any], path: str) -> list[Part]:
        for name in ("audio", "function_call"):
            if message.get(name) is not None:
                self.refused.append(f"{path}.{name}")
        details = _list(message.get("reasoning_details") or [], f"{path}.reasoning_details")
        signatures = {}
        for detail in details:
            match detail:
                case {"format": str(maker), "tool_call_id": str(call_id)} if maker == FORMAT:
                    signatures[call_id] = _signature(detail)
        said: dict[str, Any] = {
            "reasoning_details": details,
            "content": [],
            "tool_calls": self._function_calls(message, signatures, path),
            "provider_content": self._blocks(message, path),
        }
        content = message.get("content")
        if isinstance(content, str):
            said["content"] = content
        elif content is not None:
            said["content"] = list(self._content(content, f"{path}.content"))
        parts = _in_order(said, message.get("layout"))
        if message.get("refusal"):
            parts.append({"text": _text(message["refusal"], f"{path}.refusal")})
        return parts

    def _function_calls(self, message: dict[str, Any], signatures: dict[str, str | None], path: str) -> list[Part]:
        parts: list[Part] = []
        for at, call in enumerate(_list(message.get("tool_calls") or [], f"{path}.tool_calls")):
            here = f"{path}.tool_calls[{at}]"
            match call:
                case {"id": str(call_id), "function": {"name": str(name)} as function} if call.get("type") in _FUNCTION:
                    self._calls[call_id] = name
                    written = _text(function.get("arguments") or "{}", f"{here}.function.arguments")
                    arguments = _object(written)
                    if arguments is None:
                        # A model's mistake, which the conversation has to go on from.
                        arguments = {"INVALID_JSON": written}
                    part: Part = {"functionCall": {"id": call_id, "name": name, "args": arguments}}
                    if signature := signatures.get(call_id):
                        part["thoughtSignature"] = signature
                    parts.append(part)
                case {"type": str(kind)} if kind != "function":
                    self.refused.append(f"{here} (type {kind[:40]!r})")
                case _:
                    raise _wrong(here, "an object with an id and a function with its name")
        if parts and not self._budgeted and not any("thoughtSignature" in part for part in parts):
            parts[0]["thoughtSignature"] = _UNSIGNED
        return parts

    def _result(self, message: dict[str, Any], path: str) -> Part:
        call_id = message.get("tool_call_id")
        name = self._calls.get(call_id) if isinstance(call_id, str) else None
        if name is None:
            raise _wrong(f"{path}.tool_call_id", "the id of an earlier tool call")
        content = message.get("content")
        texts, media = [], []
        for part in () if content is None else self._content(content, f"{path}.content"):
            if "text" in part:
                texts.append(part["text"])
            else:
                media.append(part)
        text = "".join(texts)
        response = _object(text)
        if message.get("is_error"):
            response = {"error": text if response is None else response}
        elif response is None:
            response = {"result": text}
        result: dict[str, Any] = {"id": call_id, "name": name, "response": response}
        if media:
            result["parts"] = media
        return {"functionResponse": result}

    def _blocks(self, message: dict[str, Any], path: str) -> list[Part]:
        blocks: list[Part] = []
        for at, item in enumerate(_list(message.get("provider_content") or [], f"{path}.provider_content")):
            match item:
                case {"dialect": "gemini", "block": dict(block)}:
                    blocks.append(block)
                case {"dialect": str(dialect)} if dialect != "gemini":
                    self.refused.append(f"{path}.provider_content[{at}] (of the dialect {dialect[:40]!r})")
                case _:
                    raise _wrong(f"{path}.provider_content[{at}]", "an object with a dialect and a block")
        return blocks

    def _content(self, content: Any, path: str) -> Iterator[Part]:
        if isinstance(content, str):
            yield {"text": content}
            return
        for at, part in enumerate(_list(content, path)):
            here = f"{path}[{at}]"
            known: tuple[str, ...]
            match part:
                case {"type": "text" | "refusal" as kind}:
                    yield {"text": _text(part.get(kind), f"{here}.{kind}")}
                    known = (kind,)
                case {"type": "image_url", "image_url": {"url": str(url)}}:
                    yield _media(url, f"{here}.image_url.url")
                    known = ("image_url",)
                case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(encoding)}}:
                    if not encoding.isalnum():
                        raise _wrong(f"{here}.input_audio.format", "a format such as wav or mp3")
                    yield _inline(f"audio/{encoding}", data)
                    known = ("input_audio",)
                case {"type": "file", "file": dict(file)}:
                    yield from self._file(file, f"{here}.file")
                    known = ("file",)
                case {"type": "image_url" | "input_audio" | "file" as kind}:
                    raise _wrong(f"{here}.{kind}", "an object with what its type needs")
                case {"type": str(kind)}:
                    self.refused.append(f"{here} (type {kind[:40]!r})")
                    known = tuple(part)
                case _:
                    raise _wrong(here, "an object with a type")
            self._note(part, here, "type", "cache_control", "prompt_cache_breakpoint", *known)

    def _file(self, file: Mapping[str, Any], path: str) -> Iterator[Part]:
        match file:
            case {"file_data": str(written)} if written.startswith("data:"):
                yield _media(written, f"{path}.file_data")
            case {"file_data": str(written)}:
                # The SDKs' own examples send the base64 alone.
                name = file.get("filename")
                media_type = _media_type(name) if isinstance(name, str) else None
                yield _inline(media_type or "application/pdf", written)
            case {"file_url": str(url)}:
                yield _media(url, f"{path}.file_url")
            case {"file_id": str()}:
                self.refused.append(f"{path}.file_id")
            case _:
                raise _wrong(path, "an object with file_data, file_url or file_id")

    def _note(self, given: Mapping[str, Any], path: str, *known: str) -> None:
        if unknown := given.keys() - set(known):
            self.dropped.extend(f"{path}.{name}" for name in sorted(unknown))


def _in_order(said: dict[str, Any], layout: Any) -> list[Part]:
    """The parts of an assistant's turn in the order of `layout`, where that adds up.

    A signature that names no call is that of the text before it, or, with none before it, of the text after it.
    """
    parts: list[Part] = []
    waiting: deque[str] = deque()
    at = dict.fromkeys(LAID_OUT, 0)
    for name, count in _runs(said, layout):
        run = said[name][at[name] : at[name] + count]
        at[name] += count
        if name == "reasoning_details":
            for thought in _thoughts(run):
                if "text" in thought:
                    parts.append(thought)
                elif parts and "text" in parts[-1] and "thoughtSignature" not in parts[-1]:
                    parts[-1]["thoughtSignature"] = thought["thoughtSignature"]
                else:
                    waiting.append(thought["thoughtSignature"])
        elif name == "content" and isinstance(run, str):
            if run:
                parts.append({"text": run, **({"thoughtSignature": waiting.popleft()} if waiting else {})})
        else:
            parts.extend(run)
    parts.extend({"text": "", "thoughtSignature": signature} for signature in waiting)
    return parts


def _runs(said: dict[str, Any], layout: Any) -> list[tuple[str, int]]:
    if isinstance(layout, list):
        runs: list[tuple[str, int]] = []
        counts = dict.fromkeys(LAID_OUT, 0)
        for run in layout:
            match run:
                case [str(name), int(count)] if name in counts and count > 0:
                    runs.append((name, count))
                    counts[name] += count
        if all(count == len(said[name]) for name, count in counts.items()):
            return runs
    return [(name, len(said[name])) for name in LAID_OUT]


def _thoughts(details: Iterable[Any]) -> Iterator[Part]:
    """What of reasoning goes back to its maker: what it signed."""
    for detail in details:
        if not isinstance(detail, dict) or detail.get("format") != FORMAT or "tool_call_id" in detail:
            continue
        if signature := _signature(detail):
            text = detail.get("text") or detail.get("summary")
            spoken = {"thought": True, "text": text} if isinstance(text, str) else {}
            yield {**spoken, "thoughtSignature": signature}


def _signature(detail: Mapping[str, Any]) -> str | None:
    signature = detail.get("signature") or detail.get("data")
    return signature if isinstance(signature, str) else None


def _media(url: str, path: str) -> Part:
    if url.startswith("data:"):
        head, comma, written = url[len("data:") :].partition(",")
        if not comma:
            raise _wrong(path, "a data: URL with a comma before the content")
        media_type, *settings = head.split(";")
        if "base64" not in settings:
            written = base64.b64encode(unquote_to_bytes(written)).decode()
        return _inline(media_type or "text/plain", written)
    if not url.startswith(("https://", "http://", "gs://")):
        raise _wrong(path, "a data: URL or an address")
    data = {"fileUri": url}
    if guessed := _media_type(url):
        data["mimeType"] = guessed
    return {"fileData": data}


def _inline(media_type: str, written: str) -> Part:
    return {"inlineData": {"mimeType": media_type, "data": written}}


def _media_type(name: str) -> str | None:
    """By the ending of a file's name or of an address; None where that says nothing."""
    return _MEDIA_TYPES.get(name.partition("?")[0].partition("#")[0].rpartition(".")[2].lower())


def _object(text: Any) -> dict[str, Any] | None:
    """A JSON object written as a text; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _name_of(tool: Any) -> str:
    match tool:
        case {"function": {"name": str(name)}}:
            return name
    raise _wrong("tool_choice.allowed_tools.tools", "functions with their names")


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(path, "a list")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "a text")
    return value


def _count(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(path, "a whole number")
    return value


def _number(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(path, "a number")
    return value


def _wrong(path: str, wanted: str) -> RequestError:
    return RequestError(f"{path} must be {wanted}", param=path)


_TYPED: Final[tuple[tuple[dict[str, str], Callable[[Any, str], float]], ...]] = (
    (_NUMBERS, _number),
    (_COUNTS, _count),
)
