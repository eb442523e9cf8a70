"""What the fakes say, in whichever dialect: a function of the request and of marks in the last user text.

Without marks the answer is `You said: TEXT` with the last user text, after a
line for each attachment of that turn: `[image/png, 68 bytes]`, or
`[image at ADDRESS]`. It is cut at the request's limit (a word is a token) and
at its stop sequences. After tool results it is `The tools said: …` with them.
What the request asks for comes without a mark: thinking or reasoning,
structured output (an instance of the schema, whose strings are the text),
logprobs, several choices, a forced tool.

    #tool      one call of the first tool; its arguments are an instance of its schema
    #tools     a call of every tool, of a single one twice
    #empty     the call has no arguments
    #call NAME {…}   one call of the tool of that name, with these arguments (JSON on one line)
    #say       text before the call
    #redacted  redacted thinking after the thinking (Anthropic)
    #cite      citations, annotations, grounding on the answer
    #search    a web search by the vendor, if the request has such a tool
    #cached    half of the prompt came out of the vendor's cache
    #long      the answer goes on for 200 words
    #refuse    a refusal: Anthropic `refusal`, OpenAI `refusal`, Gemini SAFETY
    #filter    stopped by a filter: OpenAI `content_filter`, Gemini PROHIBITED_CONTENT, elsewhere as #refuse
    #block     the prompt is refused: Gemini `promptFeedback`, elsewhere a 400
    #pause     the turn is paused (Anthropic)
    #reason    readable reasoning where the vendor has none (OpenAI chat: `reasoning_content`, as compatible ones do)
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tests.support.fake_vendor import Json

THOUGHT = "The user wants an answer. I give one."
REFUSAL = "I cannot help with that."
SAID_BEFORE_A_CALL = "Let me look."
PAGE = {"url": "https://example.com/page", "title": "A page"}
_MARK = re.compile(r"#[a-z]+")
_CALL = re.compile(r"#call (\S+) (\{.*\})")
_SECRET = b"what the vendor alone knows"


class Prompt(NamedTuple):
    """The last turn as a fake sees it. `attachments` are such as `[image/png, 68 bytes]`, `results` of tools."""

    text: str
    attachments: Sequence[str] = ()
    results: Sequence[str] = ()

    @property
    def marks(self) -> frozenset[str]:
        return frozenset(_MARK.findall(self.text))

    def asks(self, mark: str) -> bool:
        """Whether a mark that acts once is in the text; after tool results it has acted."""
        return not self.results and f"#{mark}" in self.marks

    @property
    def call(self) -> tuple[str, Json] | None:
        """The name and the arguments that `#call` tells."""
        told = None if self.results else _CALL.search(self.text)
        if told is None:
            return None
        try:
            return told[1], msgspec.json.decode(told[2], type=dict[str, Any])
        except msgspec.MsgspecError:
            return None


class Said(NamedTuple):
    """`cut` is `length`, `stop` (by the sequence `stop`), or None."""

    text: str
    cut: str | None = None
    stop: str | None = None


def answer(prompt: Prompt, *, limit: int | None, stops: Sequence[str], schema: Json | None = None) -> Said:
    if schema is not None:
        text = msgspec.json.encode(instance(schema, prompt.text)).decode()
    elif prompt.results:
        text = f"The tools said: {'; '.join(prompt.results)}"
    else:
        text = "\n".join([*prompt.attachments, f"You said: {prompt.text}"])
        if "#long" in prompt.marks:
            text += " and so on" * 67
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    if found:
        place, stop = min(found)
        return Said(text[:place], "stop", stop)
    words = pieces(text)
    if limit is not None and limit < len(words):
        return Said("".join(words[:limit]), "length")
    return Said(text)


def pieces(text: str) -> list[str]:
    """Words, each with the space before it; joined they are the text. One is one token."""
    return re.findall(r"\s*\S+|\s+$", text)


def tokens(value: Any) -> int:
    """Words in all the strings of a JSON value, at least one."""
    return max(1, _words(value))


def _words(value: Any) -> int:
    if isinstance(value, str):
        return len(value.split()) if len(value) < 10_000 else len(value) // 750
    if isinstance(value, Mapping):
        return sum(map(_words, value.values()))
    return sum(map(_words, value)) if isinstance(value, list) else 0


def attachment(media_type: str, data: str) -> str:
    """Raises ValueError if `data` is not base64."""
    try:
        return f"[{media_type}, {len(base64.b64decode(data, validate=True))} bytes]"
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def sign(*parts: str) -> str:
    """What only this vendor could have said of it, in base64."""
    signed = hmac.new(_SECRET, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256").digest()
    return base64.b64encode(signed).decode()


def sealed(text: str) -> str:
    """Text that only the vendor can read and that nobody can change: base64."""
    return base64.b64encode(base64.b64decode(sign(text)) + text.encode()).decode()


def unsealed(opaque: str) -> str | None:
    """None if it was not sealed here."""
    try:
        opened = base64.b64decode(opaque, validate=True)
        text = opened[32:].decode()
    except ValueError:
        return None
    return text if sealed(text) == opaque else None


def flaw(schema: Any) -> str | None:
    """What is wrong with a JSON schema, as far as the fakes look; each vendor refuses it in its own words."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return "a schema must be an object"
    kinds = schema.get("type", "string")
    if not (isinstance(kinds, str) or (isinstance(kinds, list) and kinds and all(isinstance(k, str) for k in kinds))):
        return "'type' must be a string or an array of strings"
    if not isinstance(schema.get("$ref", ""), str):
        return "'$ref' must be a string"
    required = schema.get("required", [])
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        return "'required' must be an array of strings"
    if not (isinstance(schema.get("enum", [0]), list) and schema.get("enum", [0])):
        return "'enum' must be an array with values"
    inner: list[Any] = []
    for name in ("properties", "$defs", "definitions"):
        if not isinstance(schema.get(name, {}), dict):
            return f"'{name}' must be an object"
        inner += schema.get(name, {}).values()
    for name in ("anyOf", "oneOf", "allOf"):
        if not isinstance(schema.get(name, []), list):
            return f"'{name}' must be an array"
        inner += schema.get(name, [])
    inner += [schema[name] for name in ("items", "additionalProperties") if name in schema]
    return next((wrong for wrong in map(flaw, inner) if wrong), None)


def filled(schema: Any, prompt: Prompt) -> Any:
    """The arguments of a call to a tool with that schema."""
    if prompt.call is not None:
        return prompt.call[1]
    return {} if prompt.asks("empty") else instance(schema, prompt.text)


def instance(schema: Any, text: str) -> Any:
    """A value that the JSON schema allows; its strings are `text` where nothing narrower is said."""
    return _instance(schema, text, schema if isinstance(schema, dict) else {}, depth=0)


def _instance(schema: Any, text: str, root: Json, *, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > 20:
        return text
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#").strip("/").split("/") if schema["$ref"] != "#" else ():
            target = target.get(step) if isinstance(target, dict) else None
        return _instance(target, text, root, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return _instance(schema[several][0], text, root, depth=depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = str(kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        wanted = schema.get("required", list(schema.get("properties", {})))
        return {name: _instance(schema.get("properties", {}).get(name), text, root, depth=depth + 1) for name in wanted}
    if kind == "array":
        return [_instance(schema.get("items"), text, root, depth=depth + 1)] * max(1, schema.get("minItems", 1))
    if kind in {"integer", "number"}:
        return schema.get("minimum", 42)
    return {"boolean": True, "null": None}.get(kind, text)
