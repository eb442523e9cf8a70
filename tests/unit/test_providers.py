"""The table of providers: what it says of each is what is sent, and what docs/providers.md shows works."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.registry import PROVIDERS
from backends.upstream.base import Call
from backends.upstream.openai import OpenAIWire
from backends.upstream.providers import Provider, providers, upstream
from backends.upstream.wire import Unreadable
from models.errors import ConfigError, Untranslatable
from models.request import Dialect, Operation
from service.settings import Settings, load
from service.wiring import _place, make_upstream

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LOCAL = {
    "ollama": "http://127.0.0.1:11434/v1",
    "vllm": "http://127.0.0.1:8000/v1",
    "sglang": "http://127.0.0.1:30000/v1",
    "lm-studio": "http://127.0.0.1:1234/v1",
    "llama-cpp": "http://127.0.0.1:8080/v1",
}


def wire_of(provider: str, **settings: Any) -> OpenAIWire:
    """The openai wire that `provider` is spoken to with."""
    made = upstream(name="it", provider=provider, base_url="http://localhost", dialects=["openai"], **settings)
    [wire] = made._ways["chat", "openai"]
    assert isinstance(wire, OpenAIWire)
    return wire


def asked(body: dict[str, Any], *, dialect: Dialect = "openai", model: str = "m", **fields: Any) -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **body}
    raw = msgspec.json.encode(body) if dialect == "openai" else None
    return Call("chat", model, body, raw, dialect=dialect, **fields)


def sent(wire: OpenAIWire, call: Call, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(wire.request(call, stream=stream).body)
    return body


# The table


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
async def test_every_provider_can_be_an_upstream(provider: str) -> None:
    known = providers()[provider]

    made = upstream(name="it", provider=provider, base_url=known.base_url or "https://models.example.com/v1")
    await made.close()

    assert made.dialects == set(known.dialects)
    assert "chat" in made.capabilities


def test_only_two_providers_have_no_address_of_their_own() -> None:
    without = {name for name, known in providers().items() if known.base_url is None}

    assert without == {"openai-compatible", "azure-openai"}


def test_local_servers_are_where_they_usually_listen_and_need_no_key() -> None:
    local = {name: known.base_url for name, known in providers().items() if known.keyless and known.base_url}

    assert local == LOCAL


def test_all_others_are_reached_by_tls() -> None:
    remote = [known.base_url for name, known in providers().items() if known.base_url and name not in LOCAL]

    assert all(url.startswith("https://") and not url.endswith("/") for url in remote)


def test_a_key_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_tokens"):
        msgspec.convert({"dialects": ["openai"], "max_tokens": True}, Provider)


def test_an_unknown_provider_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.it\.provider: must be one of: anthropic, azure-openai, "):
        upstream(name="it", provider="papyrus")


@pytest.mark.parametrize("provider", ["openai-compatible", "azure-openai"])
def test_a_provider_without_an_address_needs_one(provider: str) -> None:
    with pytest.raises(ConfigError, match=rf"upstreams\.it\.base_url: is required with provider {provider}"):
        upstream(name="it", provider=provider)


async def test_dialects_of_an_upstream_replace_those_of_its_provider() -> None:
    made = upstream(name="it", provider="together", dialects=["anthropic", "openai", "anthropic"])
    await made.close()

    assert made.dialects == {"openai", "anthropic"}
    assert [wire.dialect for wire in made._ways["chat", "gemini"]] == ["anthropic", "openai"]


@pytest.mark.parametrize(
    ("provider", "operation", "dialect", "wires"),
    [
        ("deepseek", "chat", "anthropic", ["anthropic", "openai", "responses"]),
        ("deepseek", "chat", "gemini", ["openai", "anthropic", "responses"]),
        ("xai", "chat", "openai", ["openai", "responses"]),
        ("xai", "chat", "anthropic", ["responses", "openai"]),
        ("perplexity", "chat", "openai", ["responses"]),
        ("openai", "embedding", "openai", ["openai"]),
        ("gemini", "embedding", "openai", ["gemini"]),
    ],
)
async def test_a_request_goes_first_to_the_wire_of_its_own_dialect_then_to_the_best(
    provider: str, operation: Operation, dialect: Dialect, wires: list[Dialect]
) -> None:
    made = upstream(name="it", provider=provider)
    await made.close()

    assert [wire.dialect for wire in made._ways[operation, dialect]] == wires


# What is known under another name


def test_a_client_s_own_request_goes_out_byte_for_byte_where_the_provider_knows_all_of_it() -> None:
    raw = b'{"model":"m", "messages":[{"role":"system","content":"x"}], "max_tokens": 5, "seed": null}'
    call = Call("chat", "m", msgspec.json.decode(raw), raw)

    assert wire_of("deepseek").request(call, stream=False).body == raw
    assert wire_of("openai").request(call, stream=False).body == raw


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": None}, {}),
        ({"max_completion_tokens": "five"}, {"max_tokens": "five"}),  # the provider's to refuse
    ],
)
def test_a_limit_is_not_lost_on_a_provider_that_has_another_name_for_it(
    fields: dict[str, Any], limit: dict[str, Any]
) -> None:
    body = sent(wire_of("deepseek"), asked({**fields, "user": "u"}))

    assert body == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "u", **limit}


def test_a_limit_keeps_its_name_where_it_is_known() -> None:
    assert sent(wire_of("openai-compatible"), asked({"max_completion_tokens": 5}))["max_completion_tokens"] == 5


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_mistral_is_asked_in_its_own_words(dialect: Dialect) -> None:
    call = asked({"max_completion_tokens": 5, "seed": 7}, dialect=dialect)

    body = sent(wire_of("mistral"), call, stream=True)

    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "m",
        "stream": True,
        "max_tokens": 5,
        "random_seed": 7,
    }


def test_mistral_is_not_asked_for_usage_though_the_client_did() -> None:
    call = asked({"stream": True, "stream_options": {"include_usage": True}})

    assert "stream_options" not in sent(wire_of("mistral"), call, stream=True)


def test_a_setting_can_only_keep_from_asking_for_usage() -> None:
    assert sent(wire_of("groq"), asked({}), stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(wire_of("groq", stream_usage=False), asked({}), stream=True)
    assert "stream_options" not in sent(wire_of("mistral", stream_usage=True), asked({}), stream=True)


def test_a_role_the_provider_does_not_know_becomes_one_it_does() -> None:
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": "Hi"}]

    assert sent(wire_of("cerebras"), asked({"messages": messages}))["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi"},
    ]
    assert sent(wire_of("openai"), asked({"messages": messages}))["messages"] == messages


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_call_and_its_result_keep_one_id_that_the_provider_takes(dialect: Dialect) -> None:
    called = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "toolu_01", **called}, {"id": "D681PevKs", **called}],
        },
        {"role": "tool", "tool_call_id": "toolu_01", "content": "1"},
        {"role": "tool", "tool_call_id": "D681PevKs", "content": "2"},
    ]

    _, turn, first, second = sent(wire_of("mistral"), asked({"messages": messages}, dialect=dialect))["messages"]

    assert re.fullmatch("[0-9a-f]{9}", first["tool_call_id"])
    assert [call["id"] for call in turn["tool_calls"]] == [first["tool_call_id"], "D681PevKs"]
    assert second["tool_call_id"] == "D681PevKs"
    assert turn["tool_calls"][0]["function"] == called["function"]
    assert messages[1]["tool_calls"][0]["id"] == "toolu_01"  # type: ignore[index]  # the client's body is not touched


@pytest.mark.parametrize(
    "messages",
    [
        "Hi",
        None,
        7,
        ["Hi", None, 7, []],
        [{"role": ["developer"]}, {"role": 7, "tool_call_id": 7, "tool_calls": 7}],
        [{"role": "assistant", "tool_calls": [None, 7, "x", {}, {"id": None}, {"id": []}]}],
    ],
)
def test_messages_that_are_none_are_the_provider_s_to_refuse(messages: Any) -> None:
    assert sent(wire_of("mistral"), asked({"messages": messages}))["messages"] == messages


# What is beyond the OpenAI API


@pytest.mark.parametrize(
    ("provider", "field"),
    [("deepseek", "reasoning_content"), ("openrouter", "reasoning"), ("vllm", "reasoning"), ("openai", None)],
)
def test_earlier_reasoning_goes_back_under_the_name_the_provider_has_for_it(provider: str, field: str | None) -> None:
    turn = {"role": "assistant", "content": "Four", "reasoning_content": "2 + 2"}
    messages = [{"role": "user", "content": "2 + 2?"}, turn, {"role": "user", "content": "Sure?"}]

    body = sent(wire_of(provider), asked({"messages": messages}, dialect="anthropic"))

    said = {"role": "assistant", "content": "Four"}
    assert body["messages"][1] == (said if field is None else {**said, field: "2 + 2"})


def test_what_an_openai_client_says_of_reasoning_is_not_touched() -> None:
    messages = [{"role": "assistant", "content": "Four", "reasoning_content": "2 + 2"}]

    assert sent(wire_of("openrouter"), asked({"messages": messages}))["messages"] == messages


def test_what_another_dialect_s_answer_left_in_an_openai_client_s_history_goes_no_further() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": "Four", "tool_calls": [call]}
    signed = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", "text": "2 + 2", "signature": "s"}
    ours = {
        "reasoning_content": "2 + 2",
        "reasoning_details": [signed],
        "layout": [["content", 4]],
        "content_items": [{"offset": 0}],
        "provider_content": [],
        "tool_calls": [{**call, "item_id": "fc_1", "caller": {"type": "direct"}}],
    }
    body = asked({"messages": [{**said, **ours}]})

    told = {provider: sent(wire_of(provider), body)["messages"][0] for provider in ("openai", "vllm", "openrouter")}

    assert told["openai"] == said
    assert told["vllm"] == {**said, "reasoning_content": "2 + 2"}
    assert told["openrouter"] == {**said, "reasoning_content": "2 + 2", "reasoning_details": [signed]}


@pytest.mark.parametrize(
    "own",
    [
        {"reasoning_content": "2 + 2"},
        {"reasoning_details": [{"format": "xai-responses-v1", "data": "…"}], "reasoning_content": "2 + 2"},
        {"reasoning_details": [7, {"format": []}, None]},
        {"tool_calls": [7, {"id": 7}]},
        {"annotations": [], "refusal": None},
    ],
)
def test_what_a_server_may_have_said_itself_is_sent_back_to_it(own: Any) -> None:
    messages = [{"role": "assistant", "content": "Four", **own}]

    assert sent(wire_of("openai"), asked({"messages": messages}))["messages"] == messages


def test_top_k_is_passed_to_who_takes_it_and_refused_elsewhere() -> None:
    call = asked({"top_k": 4}, dialect="anthropic")

    assert sent(wire_of("vllm"), call)["top_k"] == 4
    with pytest.raises(Untranslatable, match="top_k"):
        wire_of("openai").request(call, stream=False)


# What is answered

THOUGHT = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2"}], "closed": True},
    {"type": "text", "text": "Four"},
    {"type": "reference", "reference_ids": [1]},
    {"type": "text", "text": "."},
]


def answer(content: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    return msgspec.json.encode({"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def piece(content: Any) -> bytes:
    return msgspec.json.encode({"id": "1", "choices": [{"index": 0, "delta": {"content": content}}]})


def test_content_in_parts_is_text_and_reasoning_to_other_dialects() -> None:
    wire, call = wire_of("mistral"), asked({}, dialect="anthropic")

    whole = msgspec.json.decode(wire.whole(answer(THOUGHT), call))
    [chunk] = wire.decoder(call).feed(piece(THOUGHT))

    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2"}
    assert chunk.fields["choices"][0]["delta"] == {"content": "Four.", "reasoning_content": "2 + 2"}
    assert msgspec.json.decode(chunk.payload) == chunk.fields


def test_content_in_parts_is_an_openai_client_s_as_it_came() -> None:
    wire, call = wire_of("mistral"), asked({})

    [chunk] = wire.decoder(call).feed(piece(THOUGHT))

    assert wire.whole(answer(THOUGHT), call) == answer(THOUGHT)
    assert chunk.payload == piece(THOUGHT)


@pytest.mark.parametrize("content", ["Four", None, {"text": "Four"}, 7])
def test_content_that_is_no_list_comes_as_it_is(content: Any) -> None:
    wire, call = wire_of("mistral"), asked({}, dialect="anthropic")

    assert wire.whole(answer(content), call) == answer(content)
    assert wire.decoder(call).feed(piece(content))[0].payload == piece(content)


@pytest.mark.parametrize(
    "content",
    [
        [7],
        [None],
        ["Four"],
        [{"type": "thinking", "thinking": "2 + 2"}],
        [{"type": "thinking", "thinking": 7}],
        [{"type": "thinking", "thinking": {"type": "text"}}],
        [{"type": "thinking", "thinking": [7]}],
    ],
)
def test_parts_that_are_none_are_no_answer(content: Any) -> None:
    wire, call = wire_of("mistral"), asked({}, dialect="anthropic")

    with pytest.raises(Unreadable):
        wire.whole(answer(content), call)
    with pytest.raises(Unreadable):
        wire.decoder(call).feed(piece(content))


@pytest.mark.parametrize("choices", [[7], [None], [[]], ["x"]])
def test_choices_that_are_none_are_no_answer_to_other_dialects(choices: Any) -> None:
    with pytest.raises(Unreadable):
        wire_of("mistral").whole(msgspec.json.encode({"choices": choices}), asked({}, dialect="gemini"))


# The page


def loaded(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "keepgate.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, dict.fromkeys(re.findall(r"env\.([A-Z_]+)", text), "key"))


def shown(block: str) -> str:
    found = re.search(r"name: ([\w-]+)", block)
    return found[1] if found else "?"


@pytest.mark.parametrize("block", BLOCKS, ids=map(shown, BLOCKS))
async def test_every_configuration_on_the_page_works(block: str, tmp_path: Path) -> None:
    settings = loaded(block, tmp_path)

    for chosen in settings.upstreams:
        made = make_upstream(chosen)
        assert made.name == chosen.name
        await made.close()
    assert settings.warnings == ()


def test_the_page_shows_a_configuration_for_every_provider(tmp_path: Path) -> None:
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

    used = {
        name: {
            chosen.provider
            for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
            for chosen in loaded(block, tmp_path).upstreams
        }
        for name, text in sections.items()
    }

    assert set(used) == {*PROVIDERS, "demo"}
    assert all(name in providers_shown for name, providers_shown in used.items())


def test_the_table_on_the_page_is_the_one_in_use() -> None:
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(#\1\) \| (\S+) \| ([\w, ]+) \| (.+) \|$", PAGE, re.MULTILINE)
    keys = {
        "bearer": "bearer",
        "`x-api-key`": "x-api-key",
        "`x-goog-api-key`": "x-goog-api-key",
        "`api-key`": "api-key",
    }

    told = {
        name: (
            None if url == "yours" else url.strip("`"),
            tuple(dialects.split(", ")),
            keys.get(key, "bearer"),
            "none" in key,
        )
        for name, url, dialects, key in rows
    }

    assert told == {name: (k.base_url, k.dialects, k.auth, k.keyless) for name, k in providers().items()}


# Settings


@pytest.mark.parametrize(
    ("upstream", "warned"),
    [
        ("{name: a, provider: mistral}", True),
        ("{name: a, provider: azure-openai, base_url: 'https://a.example.com/openai/v1'}", True),
        ("{name: a, provider: mistral, api_key: k}", False),
        ("{name: a, provider: mistral, auth: passthrough}", False),
        ("{name: a, provider: nvidia-nim, base_url: 'http://127.0.0.1:8000/v1'}", False),
        ("{name: a, provider: ollama}", False),
        ("{name: a, provider: openai-compatible, base_url: 'http://127.0.0.1:8000/v1'}", False),
        ("{name: a, provider: demo}", False),
    ],
)
def test_a_provider_that_wants_a_key_is_doubted_without_one(upstream: str, warned: bool, tmp_path: Path) -> None:
    told = loaded(f"upstreams: [{upstream}]", tmp_path).warnings

    assert told == (("upstreams.0.api_key: requests will go out without a credential",) if warned else ())


def test_what_changes_the_answers_of_an_upstream_is_part_of_the_identity(tmp_path: Path) -> None:
    changes = [
        "",
        ", base_url: 'http://127.0.0.1:9000/v1'",
        ", dialects: [openai]",
        ", dialects: [openai, anthropic]",
        ", headers: {X-Model-Version: '2'}",
    ]
    upstreams = [f"{{name: a, provider: vllm{more}}}" for more in changes] + ["{name: a, provider: sglang}"]

    places = {_place(loaded(f"upstreams: [{one}]", tmp_path).upstreams[0]) for one in upstreams}
    same = {_place(loaded(f"upstreams: [{{name: {n}, provider: vllm}}]", tmp_path).upstreams[0]) for n in ("a", "b")}

    assert len(places) == len(upstreams)
    assert len(same) == 1
