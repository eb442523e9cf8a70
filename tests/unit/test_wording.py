"""What a client is told that no target has words for: in the names that it wrote."""

from typing import Any

import msgspec
import pytest

from models.errors import Untranslatable
from models.request import Request
from service.api.anthropic_messages import ANTHROPIC
from service.api.dialect import Asked, Dialect
from service.api.gemini_generate import GEMINI_SSE
from service.api.openai_chat import OPENAI
from service.api.openai_responses import RESPONSES
from service.api.wording import in_words_of

SOUND = {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}


def asked(dialect: Dialect, **body: Any) -> Request:
    model = "m" if dialect.name == "gemini" else None
    return dialect.decode(msgspec.json.encode({"model": "m", **body}), Asked("chat", model, stream=False))


def told(request: Request, *names: str) -> tuple[str, ...]:
    return in_words_of(request, Untranslatable(names, dialect="x")).names


@pytest.mark.parametrize(
    ("request_", "names", "words"),
    [
        (asked(OPENAI, messages=[{"role": "user", "content": "Hi"}]), ["n", "messages[0]"], ["n", "messages[0]"]),
        (asked(RESPONSES, input="Hi"), ["logprobs", "top_logprobs"], ["include", "top_logprobs"]),
        (asked(ANTHROPIC, max_tokens=9, messages=[{"role": "user", "content": "Hi"}]), ["stop"], ["stop_sequences"]),
        (
            asked(GEMINI_SSE, contents=[{"parts": [{"text": "Hi"}]}]),
            ["n", "response_format (type 'x')", "tools[0]"],
            ["generationConfig.candidateCount", "generationConfig.responseMimeType (type 'x')", "tools[0]"],
        ),
    ],
)
def test_a_field_has_the_name_that_the_client_wrote(request_: Request, names: list[str], words: list[str]) -> None:
    assert told(request_, *names) == tuple(words)


def test_a_message_is_told_by_what_is_in_it_because_the_client_counts_in_another_way() -> None:
    request = asked(GEMINI_SSE, systemInstruction={"parts": [{"text": "Be brief."}]}, contents=[{"parts": [SOUND]}])

    assert told(request, "messages[1].content[0]", "messages[7].content[0]", "messages[1].name") == (
        "contents (audio)",
        "contents",
    )
    assert told(request, "messages[1].content (a document by its address)") == ("contents (a document by its address)",)


def test_what_the_client_s_own_dialect_has_alone_keeps_its_path() -> None:
    request = asked(
        ANTHROPIC,
        max_tokens=9,
        messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}],
    )

    assert request.refused
    assert told(request, *request.refused) == request.refused


def test_the_field_an_error_names_is_a_path_alone() -> None:
    error = Untranslatable(["response_format (type 'x')", "n"], dialect="gemini")

    assert error.param == "response_format"
    assert error.message.endswith("(gemini): response_format (type 'x'), n")
