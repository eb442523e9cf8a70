"""The Gemini API as a fake: generateContent, streamGenerateContent (events, or an array), embeddings, counts, models.

Source: ai.google.dev/api, and the types of the SDK. As the vendor does, it
answers a missing key with 403 and a wrong one with 400 (`API_KEY_INVALID`).
Models from `gemini-3` on give their calls ids and signatures and want the
signatures back. A model whose name begins with `unknown` is a 404.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from service.bench.mock_upstream import embedding
from tests.support import fake_gemini_rules as rules
from tests.support.fake_scenario import (
    PAGE,
    SAID_BEFORE_A_CALL,
    THOUGHT,
    answer,
    digest,
    filled,
    pieces,
    sealed,
    tokens,
)
from tests.support.fake_vendor import SSE, Asked, Json, Refused, Reply, good, whole

MODELS = ("gemini-2.5-flash", "gemini-3.1-pro-preview")
DIMENSIONS = 64
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_RATED = [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH", "blocked": True}]


class Gemini:
    name = "gemini"
    version = "/v1beta"

    def credential(self, asked: Asked) -> str | None:
        return asked.headers.get("x-goog-api-key") or asked.query.get("key")

    def failure(self, status: int, message: str) -> Reply:
        return whole(_error(status, message), status=status)

    def answer(self, asked: Asked) -> Reply:
        try:
            return self._answer(asked)
        except rules.Broken as broken:
            raise Refused(whole(_error(broken.status, str(broken), broken.reason), status=broken.status)) from None

    def _answer(self, asked: Asked) -> Reply:
        credential = self.credential(asked)
        if credential is None:
            raise rules.Broken(
                "Method doesn't allow unregistered callers (callers without established identity).", status=403
            )
        if not good(credential):
            raise rules.Broken("API key not valid. Please pass a valid API key.", reason="API_KEY_INVALID")
        if asked.method == "GET" and asked.path == "/v1beta/models":
            return whole({"models": [_model(name) for name in MODELS]})
        model, _, method = asked.path.removeprefix("/v1beta/models/").partition(":")
        if not asked.path.startswith("/v1beta/models/") or model.startswith("unknown"):
            raise rules.Broken(
                f"models/{model} is not found for API version v1beta, or is not supported for {method or 'GetModel'}.",
                status=404,
            )
        match asked.method, method:
            case "GET", "":
                return whole(_model(model))
            case "POST", "generateContent" | "streamGenerateContent":
                body = rules.decoded(asked.body, rules.Generate)
                rules.check(body, model)
                exchange = _Exchange(model, body)
                if method == "generateContent":
                    return whole(exchange.response())
                return _stream(list(exchange.chunks()), events=asked.query.get("alt") == "sse")
            case "POST", "countTokens":
                body = rules.decoded(asked.body, rules.CountTokens)
                read = tokens([body.get("contents", []), body.get("generateContentRequest", {})])
                return whole({"totalTokens": read, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": read}]})
            case "POST", "embedContent":
                return whole({"embedding": _embedded(rules.decoded(asked.body, rules.EmbedContent))})
            case "POST", "batchEmbedContents":
                body = rules.decoded(asked.body, rules.BatchEmbedContents)
                for place, request in enumerate(body["requests"]):
                    if request["model"] != f"models/{model}":
                        raise rules.Broken(
                            f"* BatchEmbedContentsRequest.requests[{place}].model: must match the model of the batch.\n"
                        )
                return whole({"embeddings": [_embedded(request) for request in body["requests"]]})
        raise rules.Broken("Not Found", status=404)


class _Exchange:
    def __init__(self, model: str, body: Json) -> None:
        self._model = model
        self._body = body
        self._config: Json = body.get("generationConfig") or {}
        self._thinking: Json = self._config.get("thinkingConfig") or {}
        self._prompt = rules.last_turn(body["contents"])
        self._id = digest(model, msgspec.json.encode(body).decode())
        count = self._config.get("candidateCount") or 1
        self._candidates = [] if self._prompt.asks("block") else [self._candidate(index) for index in range(count)]

    def response(self) -> Json:
        if not self._candidates:
            blocked = {"blockReason": "SAFETY", "safetyRatings": _RATED}
            return {"promptFeedback": blocked, **self._foot()}
        return {"candidates": self._candidates, **self._foot()}

    def chunks(self) -> Iterator[Json]:
        """A part of text comes in pieces, a call in one; a signature of text comes last, with empty text."""
        if not self._candidates:
            yield self.response()
        for candidate in self._candidates:
            index = candidate["index"]
            for part in candidate.get("content", {}).get("parts", ()):
                for piece in _pieces(part):
                    content = {"parts": [piece], "role": "model"}
                    yield {"candidates": [{"content": content, "index": index}], **self._foot()}
            ended = {name: value for name, value in candidate.items() if name != "content"}
            signed = [
                part["thoughtSignature"]
                for part in candidate.get("content", {}).get("parts", ())
                if "text" in part and "thoughtSignature" in part
            ]
            last: Json = {"text": "", **({"thoughtSignature": signed[0]} if signed else {})}
            yield {"candidates": [{"content": {"parts": [last], "role": "model"}, **ended}], **self._foot()}

    def _candidate(self, index: int) -> Json:
        prompt = self._prompt
        if prompt.asks("refuse"):
            return {"finishReason": "SAFETY", "index": index, "safetyRatings": _RATED}
        thoughts: list[Json] = []
        if self._thinking.get("includeThoughts"):
            thoughts.append({"text": THOUGHT, "thought": True})
        if calls := self._calls():
            said = [{"text": SAID_BEFORE_A_CALL}] if prompt.asks("say") else []
            content = {"parts": [*thoughts, *said, *calls], "role": "model"}
            return {"content": content, "finishReason": "STOP", "index": index}
        said_text = answer(
            prompt,
            limit=self._config.get("maxOutputTokens"),
            stops=self._config.get("stopSequences") or [],
            schema=self._schema(),
        )
        text = f"{said_text.text} ({index})" if index else said_text.text
        part: Json = {"text": text, **({"thoughtSignature": sealed(THOUGHT)} if self._thinks else {})}
        reason = (
            "PROHIBITED_CONTENT" if prompt.asks("filter") else "MAX_TOKENS" if said_text.cut == "length" else "STOP"
        )
        candidate = {"content": {"parts": [*thoughts, part], "role": "model"}, "finishReason": reason, "index": index}
        return {**candidate, **self._grounds(text), **self._logprobs(text)}

    @property
    def _thinks(self) -> bool:
        wanted = self._thinking.get("thinkingBudget", 0) != 0 or "thinkingLevel" in self._thinking
        return wanted or bool(self._thinking.get("includeThoughts")) or rules.signs(self._model)

    def _calls(self) -> list[Json]:
        tools = self._body.get("tools") or ()
        functions = [function for tool in tools for function in tool.get("functionDeclarations") or ()]
        calling = (self._body.get("toolConfig") or {}).get("functionCallingConfig") or {}
        allowed = calling.get("allowedFunctionNames")
        candidates = [function for function in functions if not allowed or function["name"] in allowed]
        mode = str(calling.get("mode", "AUTO")).upper()
        if mode == "NONE":
            called = []
        elif (told := self._prompt.call) is not None:
            called = [function for function in candidates if function["name"] == told[0]]
        elif self._prompt.asks("tools"):
            called = candidates if len(candidates) > 1 else candidates * 2
        elif self._prompt.asks("tool") or self._prompt.asks("empty") or (mode == "ANY" and not self._prompt.results):
            called = candidates[:1]
        else:
            called = []
        parts: list[Json] = []
        for place, function in enumerate(called):
            schema = function.get("parametersJsonSchema") or function.get("parameters") or {"type": "object"}
            call: Json = {"name": function["name"], "args": filled(schema, self._prompt)}
            if rules.signs(self._model):
                call["id"] = digest(self._id, str(place))[:8]
            # Of calls made at once, the first alone is signed.
            signed = {"thoughtSignature": sealed(THOUGHT)} if self._thinks and place == 0 else {}
            parts.append({"functionCall": call, **signed})
        return parts

    def _schema(self) -> Any:
        if self._config.get("responseMimeType") != "application/json":
            return None
        schema = self._config.get("responseJsonSchema") or self._config.get("responseSchema")
        return schema or {"type": "object", "properties": {"answer": {"type": "string"}}}

    def _grounds(self, text: str) -> Json:
        end = min(8, len(text))
        if self._prompt.asks("search") and any("googleSearch" in tool for tool in self._body.get("tools") or ()):
            web = {"uri": PAGE["url"], "title": PAGE["title"]}
            support = {"segment": {"startIndex": 0, "endIndex": end, "text": text[:end]}, "groundingChunkIndices": [0]}
            return {
                "groundingMetadata": {
                    "webSearchQueries": [self._prompt.text],
                    "searchEntryPoint": {"renderedContent": "<div>search</div>"},
                    "groundingChunks": [{"web": web}],
                    "groundingSupports": [{**support, "confidenceScores": [0.9]}],
                }
            }
        if self._prompt.asks("cite"):
            cited = {"startIndex": 0, "endIndex": end, "uri": PAGE["url"], "title": PAGE["title"]}
            return {"citationMetadata": {"citationSources": [cited]}}
        return {}

    def _logprobs(self, text: str) -> Json:
        if not self._config.get("responseLogprobs"):
            return {}
        chosen = [
            {"token": piece, "tokenId": place, "logProbability": -0.25} for place, piece in enumerate(pieces(text))
        ]
        others = [{"token": f"x{place}", "tokenId": place, "logProbability": -2.5} for place in range(1, 20)]
        asked = self._config.get("logprobs") or 0
        top = [{"candidates": [one, *others][:asked]} for one in chosen]
        return {"avgLogprobs": -0.25, "logprobsResult": {"chosenCandidates": chosen, "topCandidates": top}}

    def _foot(self) -> Json:
        body = self._body
        read = tokens([body["contents"], body.get("systemInstruction") or {}, body.get("tools") or []])
        parts = [part for candidate in self._candidates for part in candidate.get("content", {}).get("parts", ())]
        written = tokens(
            [part.get("text") or part.get("functionCall") or "" for part in parts if "thought" not in part]
        )
        usage: Json = {
            "promptTokenCount": read,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": read}],
            "totalTokenCount": read,
        }
        if parts:
            usage |= {"candidatesTokenCount": written, "totalTokenCount": read + written}
        if parts and self._thinks:
            usage["thoughtsTokenCount"] = tokens(THOUGHT)
            usage["totalTokenCount"] += tokens(THOUGHT)
        if self._prompt.asks("cached"):
            usage["cachedContentTokenCount"] = read // 2
            usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": read // 2}]
        return {"usageMetadata": usage, "modelVersion": self._model, "responseId": self._id}


def _pieces(part: Json) -> Iterator[Json]:
    if "functionCall" in part:
        yield part
    else:
        for piece in pieces(part["text"]):
            yield {"text": piece, **({"thought": True} if part.get("thought") else {})}


def _stream(chunks: list[Json], *, events: bool) -> Reply:
    """As events with the line ends that Google sends, or as one array that grows."""
    encoded = [msgspec.json.encode(chunk) for chunk in chunks]
    error = msgspec.json.encode(_error(503, "The model is overloaded. Please try again later."))
    if events:
        told = [b"data: " + chunk + b"\r\n\r\n" for chunk in encoded]
        return Reply(told, media_type=SSE, error_event=b"data: " + error + b"\r\n\r\n")
    grown = [(b"," if place else b"[") + chunk + b"\r\n" for place, chunk in enumerate(encoded)]
    return Reply([*grown, b"]"], error_event=b"," + error + b"]")


def _embedded(request: Json) -> Json:
    if request.get("outputDimensionality", 0) < 0:
        raise rules.Broken("* EmbedContentRequest.output_dimensionality: must be positive.\n")
    text = "\n".join(part.get("text", "") for part in request["content"].get("parts") or ())
    return {"values": embedding(text, request.get("outputDimensionality") or DIMENSIONS)}


def _error(status: int, message: str, reason: str | None = None) -> Json:
    error: Json = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
    if reason is not None:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        error["details"] = [{"@type": kind, "reason": reason, "domain": "googleapis.com"}]
    return {"error": error}


def _model(name: str) -> Json:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "thinking": True,
    }
