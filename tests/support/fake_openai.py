"""OpenAI's API as a fake: chat completions, Responses, embeddings, models, moderations, transcriptions and files.

Source: platform.openai.com/docs/api-reference, and the types of its SDK. A
model whose name begins with `unknown` is a 404. Responses that may be kept are,
for `previous_response_id`.
"""

import base64
import email.parser
import email.policy
import struct
from typing import Any

from openai.types import EmbeddingCreateParams, ModerationCreateParams

from service.bench.mock_upstream import embedding
from tests.support import fake_openai_chat, fake_openai_rules
from tests.support.fake_openai_responses import Responses
from tests.support.fake_scenario import digest, tokens
from tests.support.fake_vendor import Asked, Json, Refused, Reply, good, whole

MODELS = ("gpt-4o", "gpt-5.2")
DIMENSIONS = 64
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_exceeded"}


class OpenAI:
    name = "openai"
    version = "/v1"

    def __init__(self) -> None:
        self._responses = Responses()

    def credential(self, asked: Asked) -> str | None:
        return asked.bearer()

    def failure(self, status: int, message: str) -> Reply:
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        error = {"message": message, "type": kind, "param": None, "code": None}
        return whole({"error": error}, status=status, headers={"x-request-id": f"req_{digest(message)}"})

    def answer(self, asked: Asked) -> Reply:
        try:
            reply = self._answer(asked)
        except fake_openai_rules.Broken as broken:
            told = {"message": str(broken), "type": "invalid_request_error", "param": broken.param, "code": broken.code}
            raise Refused(whole({"error": told}, status=broken.status, headers={"x-request-id": "req_1"})) from None
        reply.headers = {"x-request-id": f"req_{digest(asked.path)}", "x-ratelimit-remaining-requests": "99"}
        return reply

    def _answer(self, asked: Asked) -> Reply:
        credential = self.credential(asked)
        if not good(credential):
            wrong = "You didn't provide an API key." if credential is None else "Incorrect API key provided."
            code = None if credential is None else "invalid_api_key"
            raise fake_openai_rules.Broken(wrong, code=code, status=401)
        match (asked.method, asked.path):
            case ("POST", "/v1/chat/completions"):
                return fake_openai_chat.reply(asked.body)
            case ("POST", "/v1/responses"):
                return self._responses.reply(asked.body)
            case ("POST", "/v1/embeddings"):
                return _embeddings(fake_openai_rules.decoded(asked.body))
            case ("POST", "/v1/moderations"):
                return _moderations(fake_openai_rules.decoded(asked.body))
            case ("POST", "/v1/audio/transcriptions"):
                return _transcription(asked)
            case ("POST", "/v1/files"):
                return _file(asked)
            case ("GET", "/v1/models"):
                return whole({"object": "list", "data": [_model(name) for name in MODELS]})
            case ("GET", path) if path.startswith("/v1/models/"):
                return whole(_model(path.removeprefix("/v1/models/")))
        raise fake_openai_rules.Broken(f"Invalid URL ({asked.method} {asked.path})", status=404)


def _model(name: str) -> Json:
    if name.startswith("unknown"):
        raise fake_openai_rules.Broken(f"The model '{name}' does not exist", code="model_not_found", status=404)
    return {"id": name, "object": "model", "created": fake_openai_chat.CREATED, "owned_by": "openai"}


def _embeddings(body: Json) -> Reply:
    fake_openai_rules.check(body, EmbeddingCreateParams)
    given = body["input"]
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    texts = [text if isinstance(text, str) else " ".join(map(str, text)) for text in (given if several else [given])]
    if not texts or not all(texts):
        raise fake_openai_rules.Broken("'$.input' is invalid.", param="input")
    vectors: list[Any] = [embedding(text, body.get("dimensions", DIMENSIONS)) for text in texts]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens(texts), "total_tokens": tokens(texts)}
    return whole({"object": "list", "data": data, "model": body["model"], "usage": usage})


def _moderations(body: Json) -> Reply:
    """Text with `#flag` in it is flagged as harassment."""
    fake_openai_rules.check({"model": "omni-moderation-latest", **body}, ModerationCreateParams)
    given = body["input"]
    texts = given if isinstance(given, list) else [given]
    results = [_moderated("#flag" in (text if isinstance(text, str) else text.get("text", ""))) for text in texts]
    model = body.get("model", "omni-moderation-latest")
    return whole({"id": f"modr-{digest(str(given))}", "model": model, "results": results})


def _moderated(flagged: bool) -> Json:
    hit = {name: flagged and name == "harassment" for name in _CATEGORIES}
    return {
        "flagged": flagged,
        "categories": hit,
        "category_scores": {name: 0.9 if found else 0.01 for name, found in hit.items()},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }


def _transcription(asked: Asked) -> Reply:
    form = _form(asked)
    for name in ("file", "model"):
        if name not in form:
            raise fake_openai_rules.Broken(f"Missing required parameter: '{name}'.", param=name)
    name, audio = form["file"]
    usage = {"type": "duration", "seconds": 1.0}
    return whole({"text": f"Heard {len(audio)} bytes of {name}.", "usage": usage})


def _file(asked: Asked) -> Reply:
    form = _form(asked)
    for name in ("file", "purpose"):
        if name not in form:
            raise fake_openai_rules.Broken(f"Missing required parameter: '{name}'.", param=name)
    name, content = form["file"]
    known = {"id": f"file-{digest(name, str(len(content)))}", "object": "file", "created_at": fake_openai_chat.CREATED}
    purpose = form["purpose"][1].decode()
    return whole({**known, "bytes": len(content), "filename": name, "purpose": purpose, "status": "processed"})


def _form(asked: Asked) -> dict[str, tuple[str, bytes]]:
    """Its fields: file name (or nothing) and content."""
    kind = asked.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise fake_openai_rules.Broken("Unsupported content type: expected multipart/form-data.")
    head = f"content-type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + asked.body)
    found = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        found[str(name)] = (part.get_filename() or "", content if isinstance(content, bytes) else b"")
    return found
