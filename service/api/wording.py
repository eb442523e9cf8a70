"""What no target has words for, by the names the client wrote.

A provider's dialect names fields of the canonical form, which are those of
the OpenAI API (docs/dialects.md); a client of another dialect never wrote them.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from models.errors import Untranslatable
from models.request import Dialect, Request

_WORDS: Final[Mapping[Dialect, Mapping[str, str]]] = {
    "openai": {},
    "responses": {
        "logprobs": "include",
        "max_completion_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "verbosity": "text.verbosity",
    },
    "anthropic": {
        "max_completion_tokens": "max_tokens",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_budget": "thinking",
        "reasoning_effort": "output_config.effort",
        "response_format": "output_config.format",
        "stop": "stop_sequences",
        "user": "metadata.user_id",
    },
    "gemini": {
        "frequency_penalty": "generationConfig.frequencyPenalty",
        "logprobs": "generationConfig.responseLogprobs",
        "max_completion_tokens": "generationConfig.maxOutputTokens",
        "messages": "contents",
        "n": "generationConfig.candidateCount",
        "presence_penalty": "generationConfig.presencePenalty",
        "reasoning_budget": "generationConfig.thinkingConfig.thinkingBudget",
        "reasoning_effort": "generationConfig.thinkingConfig.thinkingLevel",
        "response_format": "generationConfig.responseMimeType",
        "seed": "generationConfig.seed",
        "stop": "generationConfig.stopSequences",
        "temperature": "generationConfig.temperature",
        "tool_choice": "toolConfig.functionCallingConfig",
        "top_k": "generationConfig.topK",
        "top_logprobs": "generationConfig.logprobs",
        "top_p": "generationConfig.topP",
    },
}
_KINDS: Final = {"file": "a document", "image_url": "an image", "input_audio": "audio"}
_NAME = re.compile(r"(\w+)([^ ]*)(?: \((.*)\))?", re.DOTALL)
_PART = re.compile(r"\[(\d+)\]\.content\[(\d+)\]")


def in_words_of(request: Request, error: Untranslatable) -> Untranslatable:
    """The same error, with names that `request` has where it was written."""
    words = _WORDS[request.dialect]
    if not words:
        return error
    own = frozenset(request.refused)
    names = [name if name in own else _renamed(name, words, request) for name in error.names]
    return Untranslatable(list(dict.fromkeys(names)), dialect=error.dialect)


def _renamed(name: str, words: Mapping[str, str], request: Request) -> str:
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    field, rest, note = found.groups()
    if field != "messages":
        return f"{words.get(field, field)}{rest}" + (f" ({note})" if note else "")
    # Messages and their parts are counted in another way there: only what it is about can be told.
    note = note or _kind(rest, request.body.get("messages"))
    return words.get(field, field) + (f" ({note})" if note else "")


def _kind(rest: str, messages: Any) -> str | None:
    found = _PART.match(rest)
    if found is None:
        return None
    try:
        kind = messages[int(found[1])]["content"][int(found[2])]["type"]
    except (LookupError, TypeError):
        return None
    return _KINDS.get(kind, kind) if isinstance(kind, str) else None
