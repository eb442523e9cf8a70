"""Anthropic's Messages API as a fake: messages whole and streamed, threads of them, count_tokens, models.

Source: platform.claude.com/docs/en/api, and the types of its SDK. What the
API's versions differ in is kept: 2026-10-21 takes no sampling parameters, no
documents in assistant turns and no citations in user texts, 2023-06-01 does.
A model whose name begins with `unknown` is a 404.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params

from tests.support import fake_anthropic_rules as rules
from tests.support.fake_scenario import (
    PAGE,
    REFUSAL,
    SAID_BEFORE_A_CALL,
    THOUGHT,
    Said,
    answer,
    digest,
    filled,
    pieces,
    sealed,
    sign,
    tokens,
)
from tests.support.fake_vendor import SSE, Asked, Json, Refused, Reply, event, good, whole

OLD, NEW = "2023-06-01", "2026-10-21"
MODELS = ("claude-sonnet-5-5", "claude-haiku-4-5")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_CREATED = "2025-10-01T00:00:00Z"


class Anthropic:
    """Takes its key from `x-api-key`, or as a bearer token as the SDKs send it since version 2."""

    name = "anthropic"
    version = "/v1"

    def __init__(self) -> None:
        self._threads: dict[str, Json] = {}  # by the id of the last answer, what was asked and it

    def credential(self, asked: Asked) -> str | None:
        return asked.headers.get("x-api-key") or asked.bearer()

    def failure(self, status: int, message: str, details: Json | None = None) -> Reply:
        request_id = f"req_{digest(message)}"
        error: Json = {"type": _TYPES.get(status, "api_error"), "message": message}
        if details is not None:
            error["details"] = details
        body = {"type": "error", "error": error, "request_id": request_id}
        return whole(body, status=status, headers={"request-id": request_id})

    def answer(self, asked: Asked) -> Reply:
        try:
            reply = self._answer(asked)
        except rules.Broken as broken:
            raise Refused(self.failure(broken.status, str(broken), broken.details)) from None
        reply.headers = {"request-id": f"req_{digest(asked.path)}", "anthropic-ratelimit-requests-remaining": "99"}
        return reply

    def _answer(self, asked: Asked) -> Reply:
        credential = self.credential(asked)
        if not good(credential):
            raise rules.Broken("x-api-key header is required" if credential is None else "invalid x-api-key", 401)
        version = asked.headers.get("anthropic-version")
        if version not in (OLD, NEW):
            wrong = "header is required" if version is None else f'"{version}" is not a valid version'
            raise rules.Broken(f"anthropic-version: {wrong}")
        if asked.method == "GET" and asked.path == "/v1/models":
            data = [_model(name) for name in MODELS]
            return whole({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})
        if asked.method == "GET" and asked.path.startswith("/v1/models/"):
            return whole(_model(_known(asked.path.removeprefix("/v1/models/"))))
        # The SDKs say it twice; for the API the header is enough.
        beta = asked.query.get("beta") == "true" or "anthropic-beta" in asked.headers
        if asked.method == "POST" and asked.path == "/v1/messages":
            params: Any = beta_create_params.MessageCreateParams if beta else message_create_params.MessageCreateParams
            raw, thread = rules.unthreaded(asked.body, self._threads) if beta else (asked.body, False)
            exchange = _Exchange(rules.checked(raw, params, sampling=version == OLD))
            if thread:
                self._threads[exchange.id] = exchange.conversation()
            return exchange.reply()
        if asked.method == "POST" and asked.path == "/v1/messages/count_tokens":
            params = (beta_count_params if beta else message_count_tokens_params).MessageCountTokensParams
            body = rules.checked(asked.body, params, sampling=False)
            return whole({"input_tokens": _prompt_tokens(body)})
        raise rules.Broken("Not Found", 404)


class _Exchange:
    def __init__(self, body: Json) -> None:
        self._body = body
        self._prompt = rules.last_turn(body["messages"])
        self._id = digest(msgspec.json.encode({**body, "stream": None}).decode())
        self.id = f"msg_{self._id}"
        _known(body["model"])
        if self._prompt.asks("block"):
            raise rules.Broken("Output blocked by content filtering policy")
        self._stop: tuple[str, str | None] = ("end_turn", None)
        self._blocks = list(self._content())

    def reply(self) -> Reply:
        reason, stop = self._stop
        message = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._body["model"],
            "content": self._blocks,
            "stop_reason": reason,
            "stop_sequence": stop,
            "stop_details": self._details(reason),
            "usage": self._usage(),
        }
        if self._body.get("stream") is not True:
            return whole(message)
        overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return Reply(list(_events(message)), media_type=SSE, error_event=_event({**overloaded, "request_id": "req_1"}))

    def conversation(self) -> Json:
        """What the next turn of a thread goes on from."""
        said = {"role": "assistant", "content": self._blocks}
        kept = {name: self._body[name] for name in rules.THREADED if name in self._body}
        return {**kept, "messages": [*self._body["messages"], said]}

    def _details(self, reason: str) -> Json | None:
        if reason != "refusal":
            return None
        return {"type": "refusal", "category": "general_harms", "explanation": REFUSAL}

    def _content(self) -> Iterator[Json]:
        prompt, body = self._prompt, self._body
        thinking = body.get("thinking") or {}
        if thinking.get("type") in {"enabled", "adaptive"}:
            thought = "" if thinking.get("display") == "omitted" else THOUGHT
            yield {"type": "thinking", "thinking": thought, "signature": sign("thinking", thought)}
            if prompt.asks("redacted"):
                yield {"type": "redacted_thinking", "data": sealed("redacted")}
        if prompt.asks("refuse"):
            self._stop = ("refusal", None)
            return
        if calls := list(self._calls()):
            if prompt.asks("say"):
                yield _text(SAID_BEFORE_A_CALL)
            yield from calls
            self._stop = ("tool_use", None)
            return
        searched = prompt.asks("search") and self._search_tool()
        if searched:
            yield from self._search()
        said = self._said()
        if said.text:
            citations = self._citations(said.text, searched=bool(searched))
            yield {**_text(said.text), "citations": citations} if citations else _text(said.text)
        if prompt.asks("filter"):
            self._stop = ("refusal", None)
        elif prompt.asks("pause"):
            self._stop = ("pause_turn", None)
        elif said.cut is not None:
            self._stop = ("max_tokens" if said.cut == "length" else "stop_sequence", said.stop)

    def _said(self) -> Said:
        asked_format = (self._body.get("output_config") or {}).get("format") or self._body.get("output_format") or {}
        stops = self._body.get("stop_sequences", [])
        return answer(self._prompt, limit=self._body["max_tokens"], stops=stops, schema=asked_format.get("schema"))

    def _calls(self) -> Iterator[Json]:
        tools = [tool for tool in self._body.get("tools", []) if tool.get("type") in (None, "custom")]
        choice = self._body.get("tool_choice", {})
        kind = choice.get("type", "auto")
        if kind == "tool":
            called = [tool for tool in tools if tool["name"] == choice["name"]]
        elif (told := self._prompt.call) is not None and kind != "none":
            called = [tool for tool in tools if tool["name"] == told[0]]
        elif self._prompt.asks("tools") and kind != "none":
            called = tools if len(tools) > 1 else tools * 2
        elif self._prompt.asks("tool") or self._prompt.asks("empty") or kind == "any":
            called = tools[:1] if kind != "none" else []
        else:
            called = []
        if choice.get("disable_parallel_tool_use"):
            called = called[:1]
        for place, tool in enumerate(called):
            yield {
                "type": "tool_use",
                "id": f"toolu_{digest(self._id, str(place))}",
                "name": tool["name"],
                "input": filled(tool["input_schema"], self._prompt),
                "caller": {"type": "direct"},
            }

    def _search_tool(self) -> bool:
        return any(str(tool.get("type")).startswith("web_search") for tool in self._body.get("tools", []))

    def _search(self) -> Iterator[Json]:
        use = f"srvtoolu_{self._id}"
        query = {"query": self._prompt.text}
        yield {"type": "server_tool_use", "id": use, "name": "web_search", "input": query, "caller": {"type": "direct"}}
        page = {"type": "web_search_result", **PAGE, "encrypted_content": sealed("page"), "page_age": "1 day ago"}
        result = {"type": "web_search_tool_result", "tool_use_id": use, "content": [page]}
        yield {**result, "caller": {"type": "direct"}}

    def _citations(self, text: str, *, searched: bool) -> list[Json]:
        if searched:
            found = {**PAGE, "encrypted_index": sealed("index"), "cited_text": text[:20]}
            return [{"type": "web_search_result_location", **found}]
        if not self._prompt.asks("cite"):
            return []
        where = {"document_index": 0, "document_title": None, "start_char_index": 0, "end_char_index": 20}
        return [{"type": "char_location", "cited_text": text[:20], "file_id": None, **where}]

    def _usage(self) -> Json:
        read = _prompt_tokens(self._body)
        cached = read // 2 if self._prompt.asks("cached") else 0
        kept = read // 2 if not cached and rules.caches(self._body) else 0
        thought = tokens(THOUGHT) if any("thinking" in block["type"] for block in self._blocks) else 0
        text = [block.get("text") or block.get("input") or "" for block in self._blocks]
        usage: Json = {
            "input_tokens": read - cached - kept,
            "cache_creation_input_tokens": kept,
            "cache_read_input_tokens": cached,
            "cache_creation": {"ephemeral_5m_input_tokens": kept, "ephemeral_1h_input_tokens": 0},
            "output_tokens": tokens(text) + thought,
            "output_tokens_details": {"thinking_tokens": thought},
            "service_tier": "standard",
        }
        if any(block["type"] == "server_tool_use" for block in self._blocks):
            usage["server_tool_use"] = {"web_search_requests": 1, "web_fetch_requests": 0}
        return usage


def _events(message: Json) -> Iterator[bytes]:
    started = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    yield _event({"type": "message_start", "message": {**started, "usage": {**message["usage"], "output_tokens": 1}}})
    for index, block in enumerate(message["content"]):
        opened, deltas = _opened(block)
        yield _event({"type": "content_block_start", "index": index, "content_block": opened})
        if index == 0:
            yield _event({"type": "ping"})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    kept = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    usage = {name: message["usage"][name] for name in (*kept, "output_tokens_details", "server_tool_use")
             if name in message["usage"]}  # fmt: skip
    delta = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    yield _event({"type": "message_delta", "delta": delta, "usage": usage})
    yield _event({"type": "message_stop"})


def _opened(block: Json) -> tuple[Json, list[Json]]:
    """A block as it starts, and what completes it."""
    kind = block["type"]
    if kind == "text":
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        cited = [{"type": "citations_delta", "citation": citation} for citation in block.get("citations") or []]
        return {**block, "text": "", **({"citations": []} if cited else {})}, cited + deltas
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
    if kind in {"tool_use", "server_tool_use"}:
        arguments = msgspec.json.encode(block["input"]).decode() if block["input"] else ""
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(arguments)]]
        return {**block, "input": {}}, deltas
    return block, []


def _event(payload: Json) -> bytes:
    return event(payload, payload["type"])


def _text(text: str) -> Json:
    return {"type": "text", "text": text, "citations": None}


def _prompt_tokens(body: Json) -> int:
    return tokens([body["messages"], body.get("system", ""), body.get("tools", [])])


def _known(name: str) -> str:
    if name.startswith("unknown"):
        raise rules.Broken(f"model: {name}", 404)
    return name


def _model(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").title(),
        "created_at": _CREATED,
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
