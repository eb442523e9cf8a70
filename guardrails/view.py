"""Every string of a request or an answer that somebody will read, as segments, and the same JSON with other texts.

All strings are segments but those in `PLAIN`, `OPAQUE` and `DERIVED`, where
they have the shape of what such a field is for. So are the names of fields
that the gateway does not know or that callers choose. What is in a field
nobody knows is looked at to the last string, whatever its name.

Not looked at: numbers; what is inside pictures, sounds and documents that are
no text; the names of the files the gateway passes through.
"""

import base64
import binascii
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgspec

from guardrails.redact import Edit, difference, moved
from models.finding import Role, Segment
from models.request import Dialect, Request

_LET_GO = 500

Json = dict[str, Any]

# Names, numbers and choices of the API: passed over where they are one word of up to 256 characters as such words are.
PLAIN = frozenset(
    {
        *("role", "type", "id", "object", "model", "status", "dialect", "phase", "ttl", "scope"),
        *("tool_call_id", "call_id", "item_id", "tool_use_id", "tool_id", "file_id", "container_id", "response_id"),
        *("container", "conversation", "previous_response_id", "previous_message_id"),
        *("prompt_cache_retention", "vector_store_ids", "approval_request_id", "call_ids"),
        *("finish_reason", "native_finish_reason", "stop_reason", "system_fingerprint", "service_tier", "effort"),
        *("reasoning_effort", "verbosity", "detail", "format", "encoding_format", "mode", "modalities", "voice"),
        *("media_type", "include", "truncation", "syntax", "display", "betas", "anthropic_beta", "anthropic_version"),
        *("speed", "inference_geo", "allowed_callers", "search_context_size", "quality", "size", "background"),
        *("require_approval", "ranker", "execution", "order"),
        *("mimeType", "responseMimeType", "responseModalities", "thinkingLevel", "mediaResolution", "serviceTier"),
        *("threshold", "category", "behavior", "scheduling", "outcome", "language", "responseId", "modelVersion"),
        *("finishReason", "taskType", "cachedContent"),
    }
)
# What only its maker can read, or what is no text: passed over where it looks like base64.
OPAQUE = frozenset(
    {
        *("signature", "thoughtSignature", "encrypted_content", "encrypted_index", "encrypted_stdout", "obfuscation"),
        *("data", "b64_json", "fallback_credit_token", "continuationToken"),
    }
)
# In an answer: a text once more, token by token. It goes when the text becomes another.
DERIVED = frozenset({"logprobs", "logprobsResult"})
# An address that holds what it points at (`data:`): what is no text in it is passed over.
_URLS = frozenset({"url", "image_url", "file_url", "file_data", "fileUri", "uri"})

_SYSTEM = ("system", "systemInstruction", "instructions")
_DEFINITIONS = (
    *("tools", "functions", "functionDeclarations", "tool_choice", "toolConfig", "allowedFunctionNames"),
    *("mcp_servers", "allowed_tools", "toolChoice"),
)
_NAMED = ("name", "namespace", "filename", "displayName", "server_label", "toolset_name", "server_name")
_ROLE_OF_FIELD: dict[str, Role] = {
    **dict.fromkeys(_SYSTEM, "system"),
    **dict.fromkeys(_DEFINITIONS, "tool_definition"),
    **dict.fromkeys(_NAMED, "name"),
    **dict.fromkeys(("messages", "contents", "prompt", "suffix"), "user"),
    **dict.fromkeys(("arguments", "args", "executableCode", "toolCall", "action"), "tool_args"),
    **dict.fromkeys(
        ("functionResponse", "codeExecutionResult", "toolResponse", "output", "outputs", "results"), "tool_result"
    ),
    **dict.fromkeys(("file", "inlineData", "fileData"), "document"),
    **dict.fromkeys(("choices", "prediction"), "assistant"),
}
_ROLE_OF_MESSAGE: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool_result",
    "function": "tool_result",
}
_DOCUMENTS = frozenset({"document", "search_result", "file", "input_file"})
_HOLD_PROSE = frozenset({"content", "parts", "system", "output"})
# A role that what is inside never changes, but for names.
_KEPT = frozenset({"tool_definition", "tool_args", "tool_result"})

# Whatever is in these is the callers' own, to the last name.
_FREE = frozenset({"args", "metadata", "labels", "client_metadata", "partMetadata", "variables", "action", "env"})
_SCHEMAS = frozenset(
    {
        *("parameters", "schema", "input_schema", "output_schema", "parametersJsonSchema", "responseSchema"),
        *("responseJsonSchema", "response_schema", "response_json_schema", "parameters_json_schema"),
    }
)
# Fields of the API with text in them, or with more fields: their names are the API's and need no look.
_KNOWN = frozenset(
    {
        *_ROLE_OF_FIELD,
        *("message", "content", "text", "parts", "part", "input", "tool_calls", "function", "custom", "functionCall"),
        *("function_call", "refusal", "reasoning", "reasoning_content", "reasoning_details", "provider_content"),
        *("provider_fields", "provider_usage", "block", "content_items", "layout", "annotations", "citations"),
        *("audio", "transcript", "title", "context", "source", "input_audio", "stop", "stop_sequences"),
        *("stop_sequence", "stopSequences", "response_format", "json_schema", "generationConfig", "thinkingConfig"),
        *("functionCallingConfig", "grammar", "definition", "description", "user", "safety_identifier", "user_id"),
        *("prompt_cache_key",),
        *("cache_control", "output_config", "output_format", "thinking", "summary", "context_management", "edits"),
        *(
            "stream_options",
            "logprobs",
            "usage",
            "prompt_tokens_details",
            "completion_tokens_details",
            "safetySettings",
        ),
        *("web_search_options", "user_location", "approximate", "queries", "query", "code", "logs", "thread"),
        *("url_citation", "file_citation", "cited_text", "document_title", "caller", "tool_resources", "stop_details"),
        *("stream", "temperature", "top_p", "top_k", "n", "max_tokens", "max_completion_tokens", "max_output_tokens"),
        *("seed", "presence_penalty", "frequency_penalty", "top_logprobs", "parallel_tool_calls", "store", "strict"),
        *("index", "created", "logit_bias", "is_error", "offset", "length", "start_index", "end_index"),
        *("budget_tokens", "topP", "topK", "maxOutputTokens", "candidateCount", "thought", "delta"),
    }
)

# In a JSON Schema: words of the standard, names that callers choose, and examples of their data.
_SCHEMA_WORDS = frozenset({"type", "format", "$schema", "contentEncoding", "contentMediaType"})
_SCHEMA_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "defs"})
_SCHEMA_DATA = frozenset({"enum", "const", "default", "examples", "example", "dependentRequired"})
_SCHEMA_KNOWN = frozenset(
    {
        *("items", "prefixItems", "anyOf", "allOf", "oneOf", "not", "if", "then", "else", "additionalProperties"),
        *("additionalItems", "unevaluatedProperties", "unevaluatedItems", "propertyNames", "contains"),
        *("description", "title", "pattern", "required", "propertyOrdering", "$ref", "$id", "$anchor", "$comment"),
        *("ref", "nullable", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "uniqueItems"),
        *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minProperties", "maxProperties", "deprecated"),
    }
)

_A_WORD = re.compile(r"[\w.:/+=|~#$%-]{0,256}", re.ASCII)
_BASE64_LIKE = re.compile(r"[A-Za-z0-9+/=_.:-]*")
_TEXT_TYPE = re.compile(r"text/|application/(?:.*\+)?(?:json|xml|yaml|x-yaml|javascript|x-ndjson|csv|sql|toml)\b", re.I)
_LITERAL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_URL_SAFE = str.maketrans("-_", "+/")
_DEEPEST_PATH = 16
_SNAKE = re.compile(r"(?<=[a-z0-9])([A-Z])")


class _Mode(IntEnum):
    WIRE = 0  # fields of the API
    SCHEMA = 1
    NAMES = 2  # an object whose names are the callers' and whose values are schemas
    FREE = 3  # the callers' own, names and all


# What is inside a field, whose words it is if not those of what it is in, how its own text is passed over (`plain`,
# `opaque`, `derived`, `url`; `json` is taken apart), and whether its name means different things.
_Field = tuple[_Mode, Role | None, str, bool]


def _fields() -> dict[str, _Field]:
    wire = _Mode.WIRE
    fields: dict[str, _Field] = {name: (wire, _ROLE_OF_FIELD.get(name), "", False) for name in _KNOWN}
    fields |= dict.fromkeys(_URLS, (wire, None, "url", False))
    fields |= dict.fromkeys(_SCHEMAS, (_Mode.SCHEMA, None, "", False))
    fields |= {name: (_Mode.FREE, _ROLE_OF_FIELD.get(name, "other"), "", False) for name in _FREE}
    fields |= dict.fromkeys(PLAIN, (wire, None, "plain", False))
    fields |= dict.fromkeys(OPAQUE, (wire, None, "opaque", False))
    fields |= dict.fromkeys(("user", "safety_identifier", "prompt_cache_key"), (wire, "other", "", False))
    fields |= dict.fromkeys(("input", "result", "response"), (wire, None, "", True))
    return fields | {"arguments": (wire, "tool_args", "json", False)}


_FIELDS = _fields()
# Gemini reads protobuf's JSON: each name in camelCase or in snake_case.
_GEMINI_FIELDS = {_SNAKE.sub(r"_\1", name).lower(): field for name, field in _FIELDS.items()} | _FIELDS
_ANSWER_FIELDS: dict[str, _Field] = _FIELDS | dict.fromkeys(DERIVED, (_Mode.WIRE, None, "derived", False))


class _Place:
    """A container of the tree and where it hangs."""

    __slots__ = ("key", "node", "parent")

    def __init__(self, parent: "_Place | None", key: str | int, node: Any) -> None:
        self.parent = parent
        self.key = key
        self.node = node


class _Name:
    """Of a segment: the name of the field itself."""


# Where a segment is: in which container, under what, and how: None as it is, `_Name`, a slice of the JSON in that
# string, or what stands before its base64.
_How = type[_Name] | slice | str | None
_Leaf = tuple[_Place, Any, _How]


class View:
    """`texts` are the segments, in the order of the document. `joints` are runs of them that are read as one text."""

    def __init__(self, texts: list[Segment], leaves: list[_Leaf], prose: list[int], tree: Json) -> None:
        self.texts: Sequence[Segment] = texts
        self._texts = texts
        self._leaves = leaves
        self._tree = tree
        self.joints: Sequence[tuple[int, ...]] = tuple(_runs(texts, prose))

    def let_go(self) -> None:
        self.texts, self.joints = (), ()
        let_go(self._leaves, self._texts)

    def rewritten(
        self,
        texts: Mapping[int, str],
        *,
        edits: Mapping[int, Sequence[Edit]] = {},
        resealed: Container[int] = frozenset(),
    ) -> Json:
        """A new tree with these texts by segment; it shares with the old one what they do not touch.

        Where a text is signed by its maker, what holds it is left out: changed
        it would be refused. Not so for the segments in `resealed`, which are
        again what was signed. Places counted in a text (`layout`, annotations)
        move with it by `edits`, or the difference.
        """
        offset = self.texts[0].index if self.texts else 0
        change = _Change()
        for index in sorted(texts):
            segment, leaf = self.texts[index - offset], self._leaves[index - offset]
            if texts[index] != segment.text:
                moves = edits.get(index) or [difference(segment.text, texts[index])]
                change.add(leaf, texts[index], moves, signed=index not in resealed)
        done = change.finish()
        return self._tree if done is None else done


def let_go(*lists: list[Any]) -> None:
    """Empties them a few items at a time: freeing a hundred thousand objects at once holds up all other threads."""
    for items in lists:
        while items:
            del items[-_LET_GO:]


class Views:
    """Several trees under one numbering: what a request says in its canonical and in its client's own form."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self.texts: Sequence[Segment] = (
            views[0].texts if len(views) == 1 else [segment for view in views for segment in view.texts]
        )
        self.joints: Sequence[tuple[int, ...]] = [run for view in views for run in view.joints]

    def let_go(self) -> None:
        """Takes as long as it takes; after it nothing is left."""
        texts, self.texts, self.joints = self.texts, (), ()
        for view in self._views:
            view.let_go()
        if isinstance(texts, list):
            let_go(texts)

    def rewritten(
        self,
        texts: Mapping[int, str],
        *,
        edits: Mapping[int, Sequence[Edit]] = {},
        resealed: Container[int] = frozenset(),
    ) -> tuple[Json, ...]:
        """Each tree as `View.rewritten` makes it."""
        result, at = [], 0
        for view in self._views:
            mine = {index: text for index, text in texts.items() if at <= index < at + len(view.texts)}
            result.append(view.rewritten(mine, edits=edits, resealed=resealed))
            at += len(view.texts)
        return tuple(result)


def views_of(request: Request) -> Views:
    """The body and, of another dialect than OpenAI's chat, what the client wrote: either may be sent."""
    body = request_segments(request.body, "openai")
    if request.native is None or request.native is request.body:
        return Views([body])
    return Views([body, request_segments(request.native, request.dialect, first=len(body.texts))])


def request_segments(tree: Json, dialect: Dialect, *, first: int = 0) -> View:
    """`first` is the index of the first segment."""
    return _view(tree, "other", _GEMINI_FIELDS if dialect == "gemini" else _FIELDS, first)


def answer_segments(tree: Json) -> View:
    """Of a whole answer in the canonical form."""
    return _view(tree, "assistant", _ANSWER_FIELDS, 0)


# --- reading


def _view(tree: Json, role: Role, fields: Mapping[str, _Field], first: int) -> View:
    walk = _Walk(fields, first)
    walk.run(tree, role)
    return View(walk.texts, walk.leaves, walk.prose, tree)


_Step = tuple[Iterator[tuple[Any, Any]], _Place, _Mode, Role, tuple[str | int, ...]]


class _Walk:
    def __init__(self, fields: Mapping[str, _Field], first: int) -> None:
        self.texts: list[Segment] = []
        self.leaves: list[_Leaf] = []
        self.prose: list[int] = []
        self._fields = fields
        self._first = first

    def run(self, tree: Json, role: Role) -> None:
        # A stack of its own: a body may be nested deeper than Python calls.
        stack: list[_Step] = [(iter(tree.items()), _Place(None, "", tree), _Mode.WIRE, role, ())]
        while stack:
            step = stack[-1]
            for key, value in step[0]:
                deeper = self._step(step, key, value)
                if deeper is not None:
                    stack.append(deeper)
                    break
            else:
                stack.pop()

    def _step(self, step: _Step, key: Any, value: Any) -> _Step | None:
        """Takes one item of a container; the container it is, if it is to be entered."""
        _, place, mode, role, path = step
        passed = ""
        if type(key) is str:
            if mode is _Mode.WIRE:
                field = self._fields.get(key)
                if field is None:
                    self._add(key, place, key, _Name, role, path)
                    mode = _Mode.FREE
                else:
                    mode, own, passed, special = field
                    if special:
                        mode, role, passed = self._special(key, value, place, mode, role, passed)
                    elif own is not None and (role not in _KEPT or own == "name" or own == "tool_result"):
                        role = own
            elif mode is _Mode.SCHEMA:
                mode, passed = self._in_schema(key, place, role, path)
            else:
                self._add(key, place, key, _Name, role, path)
                if mode is _Mode.NAMES:
                    mode = _Mode.SCHEMA
        kind = type(value)
        if kind is str:
            if not value:
                return None
            if passed:
                self._leaf(value, place, key, role, path, passed)
                return None
            if mode is _Mode.WIRE and _is_prose(key, path):
                self.prose.append(len(self.texts))
            self._add(value, place, key, None, role, path)
            return None
        if kind is dict:
            items: Iterator[tuple[Any, Any]] = iter(value.items())
            if mode is _Mode.WIRE and role not in _KEPT:
                role = _role_of(value, role)
        elif kind is list:
            items = enumerate(value)
            if passed == "plain":
                if all(type(item) is str and _A_WORD.fullmatch(item) for item in value):
                    return None
                mode = _Mode.FREE
        else:
            return None
        if passed == "derived":
            return None
        if len(path) < _DEEPEST_PATH:
            path = (*path, key)
        return items, _Place(place, key, value), mode, role, path

    def _special(
        self, key: str, value: Any, place: _Place, mode: _Mode, role: Role, passed: str
    ) -> tuple[_Mode, Role, str]:
        """Names that mean one thing here and another there."""
        if key == "input":
            if place.parent is None:
                role = "user"
            elif role not in _KEPT:
                role = "tool_args"
            return (_Mode.FREE if type(value) is dict else mode), role, passed
        if key == "result" and place.node.get("type") == "image_generation_call":
            return _Mode.WIRE, role, "opaque"
        if key == "response" and role == "tool_result":
            return _Mode.FREE, role, passed
        self._add(key, place, key, _Name, role, ())
        return _Mode.FREE, role, passed

    def _in_schema(self, key: str, place: _Place, role: Role, path: tuple[str | int, ...]) -> tuple[_Mode, str]:
        if key in _SCHEMA_WORDS:
            return _Mode.SCHEMA, "plain"
        if key in _SCHEMA_NAMES:
            return _Mode.NAMES, ""
        if key in _SCHEMA_DATA:
            return _Mode.FREE, ""
        if key in _SCHEMA_KNOWN:
            return _Mode.SCHEMA, ""
        self._add(key, place, key, _Name, role, path)
        return _Mode.FREE, ""

    def _leaf(self, text: str, place: _Place, key: Any, role: Role, path: tuple[str | int, ...], passed: str) -> None:
        if passed == "plain":
            if not _A_WORD.fullmatch(text):
                self._add(text, place, key, None, role, path)
        elif passed == "json":
            self._add_json(text, place, key, role, path)
        elif passed == "url":
            if text[:5].lower() == "data:":
                self._add_data(text, place, key, path, *_data_url(text))
            elif key == "file_data":
                self._add_data(text, place, key, path, None, "")
            else:
                self._add(text, place, key, None, role, path)
        elif key == "data" and place.node.get("type") == "text":
            self._add(text, place, key, None, role, path)
        else:
            given = place.node
            media_type = given.get("media_type") or given.get("mimeType") or given.get("mime_type")
            self._add_data(text, place, key, path, media_type if key == "data" else None, "")

    def _add(self, text: str, place: _Place, key: Any, how: _How, role: Role, path: tuple[str | int, ...]) -> None:
        self.texts.append(Segment(self._first + len(self.texts), text, role, (*path, key)))
        self.leaves.append((place, key, how))

    def _add_json(self, text: str, place: _Place, key: Any, role: Role, path: tuple[str | int, ...]) -> None:
        """Each string in it, names too. What is no JSON is a text."""
        literals = _literals(text)
        if literals is None:
            self._add(text, place, key, None, role, path)
            return
        for where, literal in literals:
            if literal:
                self._add(literal, place, key, where, role, path)

    def _add_data(
        self, text: str, place: _Place, key: Any, path: tuple[str | int, ...], media_type: Any, prefix: str
    ) -> None:
        """What is text in base64 is looked at as that text."""
        encoded = text[len(prefix) :]
        if isinstance(media_type, str) and _TEXT_TYPE.match(media_type):
            decoded = _decoded(encoded)
            if decoded is not None:
                if decoded:
                    self._add(decoded, place, key, prefix, "document", path)
                return
        elif _is_opaque(encoded):
            return
        self._add(text, place, key, None, "document", path)


def _is_prose(key: Any, path: tuple[str | int, ...]) -> bool:
    """What a turn says: a content, or a text that is a part of one."""
    return key == "content" or (key == "text" and any(step in _HOLD_PROSE for step in path[-2:]))


def _role_of(node: Json, role: Role) -> Role:
    said = node.get("role")
    if type(said) is str:
        role = _ROLE_OF_MESSAGE.get(said, role)
        if role in _KEPT:
            return role
    kind = node.get("type")
    if type(kind) is str:
        if kind in _DOCUMENTS:
            return "document"
        if kind.endswith(("_output", "tool_result")):
            return "tool_result"
        if kind.endswith(("_call", "tool_use")):
            return "tool_args"
    return role


def _data_url(text: str) -> tuple[str | None, str]:
    """The media type and what stands before the data, of one in base64."""
    head, comma, _ = text[:512].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        return "text/plain", ""  # not base64: looked at as it is
    return head[5:], f"{head},"


def _is_opaque(text: str) -> bool:
    """Its ends tell; all of a picture of 10 MB is not read for it."""
    return (
        text.isascii()
        and " " not in text
        and _BASE64_LIKE.fullmatch(text[:1024]) is not None
        and _BASE64_LIKE.fullmatch(text[-1024:]) is not None
    )


def _decoded(encoded: str) -> str | None:
    bare = encoded.translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _literals(text: str) -> list[tuple[slice, str]] | None:
    """The strings of a JSON text where they stand. Found in the text itself, so nothing is lost between reading and
    writing: neither a name that is there twice, nor how a number is written."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
        return [
            (slice(*found.span()), msgspec.json.decode(found[0], type=str) if "\\" in found[0] else found[0][1:-1])
            for found in _LITERAL.finditer(text)
        ]
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


def _runs(texts: Sequence[Segment], prose: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Texts of one turn, one after the other; arguments of a tool call end a run, what is passed over does not."""
    run: list[int] = []
    for at in prose:
        if run and not _same_turn(texts, run[-1], at):
            if len(run) > 1:
                yield tuple(texts[place].index for place in run)
            run = []
        run.append(at)
    if len(run) > 1:
        yield tuple(texts[place].index for place in run)


def _same_turn(texts: Sequence[Segment], at: int, then: int) -> bool:
    one, other = texts[at], texts[then]
    if one.role != other.role or (one.path[0] == "choices" and one.path[1] != other.path[1]):
        return False
    return all(texts[between].role != "tool_args" for between in range(at + 1, then))


# --- writing


class _Change:
    """Copies what is changed, and what holds it, once."""

    def __init__(self) -> None:
        self._copies: dict[_Place, Any] = {}
        self._names: dict[_Place, dict[str, str]] = {}
        self._literals: dict[tuple[_Place, Any], list[tuple[slice, str]]] = {}
        self._left_out: dict[_Place, dict[int, str]] = {}
        self._root: Json | None = None

    def add(self, leaf: _Leaf, text: str, moves: Sequence[Edit], *, signed: bool) -> None:
        place, key, how = leaf
        if how is _Name:
            self._copy(place)
            self._names.setdefault(place, {})[str(key)] = text
        elif isinstance(how, slice):
            self._literals.setdefault((place, key), []).append((how, text))
        elif isinstance(how, str):
            self._copy(place)[key] = how + base64.b64encode(text.encode()).decode()
        else:
            self._copy(place)[key] = text
            if type(place.node) is dict:
                self._move(place, str(key), moves)
                if signed and place.node.get("signature") and place.parent and type(place.parent.node) is list:
                    self._copy(place.parent)
                    self._left_out.setdefault(place.parent, {})[int(place.key)] = text

    def finish(self) -> Json | None:
        for (place, key), literals in self._literals.items():
            before, pieces, at = place.node[key], [], 0
            for where, text in literals:  # in the order of the text, as their segments are
                pieces += [before[at : where.start], msgspec.json.encode(text).decode()]
                at = where.stop
            self._copy(place)[key] = "".join([*pieces, before[at:]])
        for place, names in self._names.items():
            _rename(self._copies[place], names)
        for place, items in self._left_out.items():
            _leave_out(self._copies[place], items)
        return self._root

    def _copy(self, place: _Place) -> Any:
        chain: list[_Place] = []
        above: _Place | None = place
        while above is not None and above not in self._copies:
            chain.append(above)
            above = above.parent
        for new in reversed(chain):
            copy = self._copies[new] = new.node.copy()
            if new.parent is None:
                self._root = copy
            else:
                self._copies[new.parent][new.key] = copy
        return self._copies[place]

    def _move(self, place: _Place, key: str, moves: Sequence[Edit]) -> None:
        """What counts places in a text that has become another."""
        if key not in ("content", "text"):
            return
        node = self._copies[place]
        if key == "content":
            if isinstance(layout := node.get("layout"), list):
                node["layout"] = _moved_layout(layout, moves)
            if isinstance(items := node.get("content_items"), list):
                node["content_items"] = [_moved_fields(item, moves) for item in items]
        if isinstance(notes := node.get("annotations"), list):
            node["annotations"] = [_moved_note(note, moves) for note in notes]
        if node.get("logprobs"):
            node["logprobs"] = [] if isinstance(node["logprobs"], list) else None
        parent = place.parent
        if place.key == "message" and parent is not None and parent.node.get("logprobs"):
            self._copy(parent)["logprobs"] = None


def _rename(node: Json, names: Mapping[str, str]) -> None:
    """In place, in order. A name that is taken gets a number."""
    kept = {name for name in node if name not in names}
    items: list[tuple[str, Any]] = []
    counts: dict[str, int] = {}
    for name, value in node.items():
        if name in names:
            wanted = new = names[name]
            while new in kept:
                counts[wanted] = counts.get(wanted, 1) + 1
                new = f"{wanted}_{counts[wanted]}"
            kept.add(new)
            items.append((new, value))
        else:
            items.append((name, value))
    node.clear()
    node.update(items)


def _leave_out(node: list[Any], items: Mapping[int, str]) -> None:
    """In place. A turn of nothing else says it as plain text: an empty turn is none."""
    if len(items) == len(node) and all(item.get("type") == "thinking" for item in node):
        node[:] = [{"type": "text", "text": text} for _, text in sorted(items.items())]
    else:
        node[:] = [item for place, item in enumerate(node) if place not in items]


def _moved_layout(layout: Iterable[Any], moves: Sequence[Edit]) -> list[Any]:
    result, at = [], 0
    for run in layout:
        match run:
            case ["content", int(count)]:
                result.append(["content", moved(at + count, moves) - moved(at, moves)])
                at += count
            case _:
                result.append(run)
    return result


def _moved_fields(item: Any, moves: Sequence[Edit]) -> Any:
    if not isinstance(item, dict):
        return item
    places = {
        name: moved(item[name], moves)
        for name in ("offset", "start_index", "end_index")
        if isinstance(item.get(name), int)
    }
    return {**item, **places} if places else item


def _moved_note(note: Any, moves: Sequence[Edit]) -> Any:
    """Flat as in Responses, or `{"type": T, T: {…}}` as in chat."""
    note = _moved_fields(note, moves)
    inner = note.get(note.get("type")) if isinstance(note, dict) and isinstance(note.get("type"), str) else None
    return {**note, note["type"]: _moved_fields(inner, moves)} if isinstance(inner, dict) else note
