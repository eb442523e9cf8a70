import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest
import trustme
import yaml
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, SecretStr

from backends.embedding import minilm
from models.errors import ConfigError
from service.settings import EmbedderSettings, Settings, load

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "configuration.md"

NOT_A_NAME = (
    "upstreams.0.name: must be at most 100 letters, digits, '.', '_' or '-', "
    "the first a letter or a digit: it is part of URLs"
)

PROVIDERS = (
    "anthropic, azure-openai, cerebras, deepseek, demo, fireworks, gemini, groq, huggingface, llama-cpp, lm-studio, "
    "mistral, nebius, nvidia-nim, ollama, openai, openai-compatible, openrouter, perplexity, sambanova, sglang, "
    "together, vllm, xai"
)

Loading = Callable[..., Settings]
Refusing = Callable[..., list[str]]


@pytest.fixture
def loaded(tmp_path: Path) -> Loading:
    def from_text(text: str, environ: Mapping[str, str] | None = None) -> Settings:
        path = tmp_path / "keepgate.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, environ or {})

    return from_text


@pytest.fixture
def problems(loaded: Loading) -> Refusing:
    def of_text(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            loaded(text, environ)
        return list(refused.value.problems)

    return of_text


def test_without_a_file_the_embedded_defaults_apply() -> None:
    settings = load(None, {})

    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 8080, 1)
    assert [(upstream.name, upstream.provider) for upstream in settings.upstreams] == [("demo", "demo")]
    assert [endpoint.name for endpoint in settings.endpoints] == ["default"]
    assert settings.endpoints[0].cache.threshold is None
    assert (settings.cache.vector.deadline, settings.cache.vector.max_entries) == (0.25, 50_000)
    assert settings.warnings == ()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "server:\nkeys:\n"])
def test_an_empty_file_is_the_defaults(loaded: Loading, text: str) -> None:
    assert loaded(text) == load(None, {})


def test_on_off_yes_and_no_are_strings(loaded: Loading) -> None:
    settings = loaded(
        "endpoints: [{name: no, cache: {mode: off}}, {name: yes}]\n"
        "logs: {requests: off}\n"
        "guardrails: [{name: spare, rules: [{detect: email, on: input, action: log}]}]\n"
    )

    assert [endpoint.name for endpoint in settings.endpoints] == ["no", "yes", "default"]
    assert settings.endpoints[0].cache.mode == "off"
    assert settings.logs.requests == "off"
    assert settings.guardrails[0].rules[0].on == ("input",)


@pytest.mark.parametrize(
    ("scalar", "port"),
    [("9000", 9000), ("0x2328", 9000), ("0o21450", 9000), ("+9000", 9000), ("010", 10)],
)
def test_integers_follow_the_core_schema(loaded: Loading, scalar: str, port: int) -> None:
    assert loaded(f"server: {{port: {scalar}}}").server.port == port


@pytest.mark.parametrize("scalar", ["9_000", "1:30", "0b11", "'9000'", "90.5", "true", "2026-01-01", "9000.0"])
def test_what_the_core_schema_does_not_call_an_integer_is_none(problems: Refusing, scalar: str) -> None:
    assert problems(f"server: {{port: {scalar}}}") == ["server.port: must be a whole number"]


@pytest.mark.parametrize("scalar", ["yes", "on", "1", "'true'", "y"])
def test_only_true_and_false_are_booleans(problems: Refusing, scalar: str) -> None:
    assert problems(f"keys: {{require: {scalar}}}") == ["keys.require: must be true or false"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30.0), ("10m", 600.0), ("1h", 3600.0), ("7d", 604800.0), ("1.5h", 5400.0), ("90", 90.0)],
)
def test_durations_are_seconds(loaded: Loading, written: str, seconds: float) -> None:
    assert loaded(f"server: {{drain: {written}}}").server.drain == seconds


@pytest.mark.parametrize("written", ["10 minutes", "-1", "1w", "1H", "true", ".inf", ".nan", "9999d", "[1]"])
def test_anything_else_is_no_duration(problems: Refusing, written: str) -> None:
    (problem,) = problems(f"server: {{drain: {written}}}")

    assert problem.startswith("server.drain: must be a duration of at most 3650d, such as 500ms")


@pytest.mark.parametrize(
    ("written", "size"),
    [("2048", 2048), ("512KB", 524288), ("10MB", 10485760), ("1.5 MB", 1572864), ("1gb", 1073741824)],
)
def test_sizes_count_in_powers_of_1024(loaded: Loading, written: str, size: int) -> None:
    assert loaded(f"server: {{max_body: {written}}}").server.max_body == size


def test_every_problem_is_reported_at_once(problems: Refusing) -> None:
    found = problems(
        "server: {host: 0.0.0.0, prot: 1}\n"
        "upstreams: [{name: a/b, provider: openai}, {name: local, provider: openai-compatible}]\n"
        "endpoints:\n"
        "  - name: faq\n"
        "    guardrails: [legal]\n"
        "    cache: {mode: sometimes, threshold: 1.5, keep: [stop, error]}\n"
        "  - cache: {ttl: 0}\n"
    )

    assert found == [
        "server.prot: unknown key; did you mean 'port'?",
        NOT_A_NAME,
        "endpoints.0.cache.mode: must be one of: off, exact, semantic, shadow",
        "endpoints.0.cache.threshold: must be at most 1",
        "endpoints.0.cache.keep.1: must be one of: stop, length, tool_calls",
        "endpoints.1.name: is required",
        "endpoints.1.cache.ttl: must be greater than 0",
        "server.host: is open to others: set keys.require: true, or server.host to a loopback address",
        "upstreams.1.base_url: is required with provider openai-compatible",
        "endpoints.0.guardrails.0: no policy is named 'legal'; known: default",
    ]


def test_an_item_that_cannot_be_read_hides_nothing_about_the_others(problems: Refusing) -> None:
    found = problems(
        "upstreams: [{name: a, provider: bedrock}, {name: 'a b'}, {name: a, provider: openai-compatible}]\n"
        "models: [5, {name: m, targets: [{upstream: a, model: x}]}, {name: m, targets: [{upstream: a, model: x}]}]\n"
    )

    assert found == [
        NOT_A_NAME.replace("upstreams.0", "upstreams.1"),
        "upstreams.1.provider: is required",
        "models.0: must be a mapping",
        "upstreams.2.name: 'a' is taken by upstreams.0",
        "models.2.name: 'm' is taken by models.1",
        "upstreams.2.base_url: is required with provider openai-compatible",
        f"upstreams.0.provider: not in this version: bedrock; use one of: {PROVIDERS}",
    ]


def test_a_misspelt_key_does_not_hide_a_contradiction_beside_it(problems: Refusing) -> None:
    found = problems("endpoints: [{name: a, cahce: {}, cache: {threshold: 0.9, max_wrong_hit_rate: 0.01}}]")

    assert found == [
        "endpoints.0.cahce: unknown key; did you mean 'cache'?",
        "endpoints.0.cache.max_wrong_hit_rate: cannot be combined with threshold: set one of the two",
    ]


def test_nothing_is_concluded_from_a_section_that_could_not_be_read(problems: Refusing) -> None:
    found = problems(
        "server: {host: 0.0.0.0}\n"
        "keys: {require: maybe}\n"
        "upstreams: [{name: openai, provider: openai, api_key: 5}, {provider: demo}]\n"
        "models: [{name: m, targets: [{upstream: openai, model: x}]}]\n"
    )

    assert found == [
        "upstreams.0.api_key: must be a string: put it in quotes",
        "upstreams.1.name: is required",
        "keys.require: must be true or false",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sever: {}", "sever: unknown key; did you mean 'server'?"),
        ("server: 5", "server: must be a mapping"),
        ("upstreams: {name: a}", "upstreams: must be a list"),
        ("upstreams: []", "upstreams: must have at least one item"),
        ("upstreams: [5]", "upstreams.0: must be a mapping"),
        ("models: [{name: m, targets: []}]", "models.0.targets: must have at least one item"),
        (
            "models: [{name: m, targets: [{upstream: dmo, model: x}]}]",
            "models.0.targets.0.upstream: no upstream is named 'dmo'; did you mean 'demo'?",
        ),
        (
            "models: [{name: m, targets: [{upstream: demo, model: x}], fallbacks: [other/x]}]",
            "models.0.fallbacks.0: no upstream is named 'other'; known: demo",
        ),
        (
            "models: [{name: m, targets: [{upstream: demo, model: x}], fallbacks: [demo]}]",
            "models.0.fallbacks.0: must be upstream/model",
        ),
        ("models: [{name: 'a*b*', targets: [{upstream: demo, model: x}]}]", "models.0.name: can have one * only"),
        (
            "models: [{name: 'a*', targets: [{upstream: demo, model: '**'}]}]",
            "models.0.targets.0.model: can have one * only",
        ),
        (
            "models: [{name: m, targets: [{upstream: demo, model: x}], fallbacks: ['demo/*']}]",
            "models.0.fallbacks.0: has a * that the name of the model does not have",
        ),
        (
            "models: [{name: m, targets: [{upstream: demo, model: x}], sticky: conversation, strategy: least-busy}]",
            "models.0.sticky: cannot be combined with strategy: least-busy",
        ),
        (
            "models: [{name: m, targets: [{upstream: demo, model: x}], attempts: 0}]",
            "models.0.attempts: must be at least 1",
        ),
        (
            "upstreams: [{name: a, provider: openai, api_key: k, api_keys: [k]}]",
            "upstreams.0.api_keys: cannot be combined with api_key",
        ),
        (
            "upstreams: [{name: a, provider: openai, auth: passthrough, api_keys: [k]}]",
            "upstreams.0.api_keys: cannot be combined with auth: passthrough",
        ),
        (
            "upstreams: [{name: a, provider: openai, api_keys: [k, j, k]}]",
            "upstreams.0.api_keys.2: is the same as one before it",
        ),
        ("upstreams: [{name: a, provider: openai, queue: {size: -1}}]", "upstreams.0.queue.size: must be at least 0"),
        ("endpoints: [{name: a}, {name: a}]", "endpoints.1.name: 'a' is taken by endpoints.0"),
        (
            "endpoints: [{name: a, guardrails: [defualt]}]",
            "endpoints.0.guardrails.0: no policy is named 'defualt'; did you mean 'default'?",
        ),
        ("endpoints: [{name: a, cache: {ttl_jitter: 0.6}}]", "endpoints.0.cache.ttl_jitter: must be at most 0.5"),
        ("endpoints: [{name: a, cache: {threshold: .nan}}]", "endpoints.0.cache.threshold: must be a finite number"),
        ("server: {tls: {cert: /no/cert, key: /}}", "server.tls.key: there is no file /"),
        ("server: {host: gateway.internal}", "server.host: is open to others"),
        ("server: {host: '::'}", "server.host: is open to others"),
        ("cache: {exact: {store: lmbd}}", "cache.exact.store: must be one of: lmdb, memory"),
        ("cache: {embedder: {kind: openai}}", "cache.embedder.dimensions: is required with kind openai"),
        (
            "upstreams: [{name: a, provider: openai-compatible}]",
            "upstreams.0.base_url: is required with provider openai-compatible",
        ),
        (
            "upstreams: [{name: a, provider: openai, base_url: 'file:///etc/passwd'}]",
            "upstreams.0.base_url: must be a URL that starts with http:// or https://",
        ),
        (
            "upstreams: [{name: a, provider: openai, auth: passthrough, api_key: k}]",
            "upstreams.0.api_key: cannot be combined with auth: passthrough",
        ),
        (
            "upstreams: [{name: a, provider: openai, headers: {Host: x}}]",
            "upstreams.0.headers: 'Host' is not a header that can be set",
        ),
        (
            "upstreams: [{name: a, provider: openia}]",
            f"upstreams.0.provider: must be one of: {PROVIDERS}; did you mean 'openai'?",
        ),
        ("upstreams: [{name: a, provider: acme}]", f"upstreams.0.provider: must be one of: {PROVIDERS}"),
        (
            "upstreams: [{name: a, provider: azure-openai}]",
            "upstreams.0.base_url: is required with provider azure-openai",
        ),
        (
            "upstreams: [{name: a, provider: openai, dialects: [openai, cohere]}]",
            "upstreams.0.dialects.1: must be one of: openai, responses, anthropic, gemini",
        ),
        (
            "upstreams: [{name: a, provider: openai, dialects: []}]",
            "upstreams.0.dialects: must have at least one item",
        ),
        ("admin: {token: ''}", "admin.token: must be printable ASCII and not empty"),
        (
            "upstreams: [{name: a, provider: openai, api_key: schlüssel}]",
            "upstreams.0.api_key: must be printable ASCII and not empty",
        ),
        ("cache: {exact: {max_size: 5KB}}", "cache.exact.max_size: must be at least 1MB"),
        ("server: {max_body: 12}", "server.max_body: must be at least 1KB"),
        (
            "cache: {embedder: {model: bge-small}}",
            "cache.embedder.model: no package carries 'bge-small'; known: all-MiniLM-L6-v2; or give the path",
        ),
        (
            "guardrails: [{name: p, rules: [{detect: email, on: [output], action: mask}]}]",
            "guardrails.0.rules.0.action: mask has nothing to restore on output",
        ),
    ],
)
def test_a_problem_names_its_path_and_what_to_do(problems: Refusing, text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(text))


# --- what the settings name on this machine


@pytest.fixture
def found_here(tmp_path: Path) -> Refusing:
    def of_text(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        path = tmp_path / "keepgate.yaml"
        path.write_text(text.replace("HERE", str(tmp_path)), encoding="utf-8")
        load(path, environ or {})  # who only reads keys is not stopped by them
        with pytest.raises(ConfigError) as refused:
            load(path, environ or {}, on_this_machine=True)
        return [problem.replace(str(tmp_path), "HERE") for problem in refused.value.problems]

    return of_text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("storage: {path: HERE/file}", "storage.path: HERE/file is a file; a folder is needed"),
        ("storage: {path: HERE/file/data}", "storage.path: HERE/file is a file; a folder is needed"),
        ("logs: {requests: HERE/none/requests.log}", "logs.requests: there is no folder HERE/none"),
        ("logs: {requests: HERE/file/requests.log}", "logs.requests: there is no folder HERE/file"),
        ("logs: {requests: HERE}", "logs.requests: HERE is a folder; a file is needed"),
        ("cache: {embedder: {path: HERE/none}}", "cache.embedder.path: there is no folder HERE/none"),
        ("cache: {embedder: {path: HERE}}", "cache.embedder.path: HERE lacks model.onnx and tokenizer.json"),
        (
            "endpoints: [{name: faq, cache: {second_opinion: {kind: onnx, path: HERE/none}}}]",
            "endpoints.0.cache.second_opinion.path: there is no folder HERE/none",
        ),
        (
            "endpoints: [{name: faq, cache: {second_opinion: {kind: onnx, path: HERE}}}]",
            "endpoints.0.cache.second_opinion.path: HERE lacks model.onnx, tokenizer.json",
        ),
        (
            "server: {host: no.such.invalid}\nkeys: {require: true}",
            "server.host: no.such.invalid is neither an address nor a name that can be looked up",
        ),
    ],
)
def test_what_a_start_would_stumble_over_is_a_problem(
    found_here: Refusing, tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "file").write_text("")

    assert found_here(text) == [problem]


def test_a_host_that_cannot_be_looked_up_is_not_called_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "keepgate.yaml"
    path.write_text("server: {host: no.such.invalid}")

    with pytest.raises(ConfigError) as refused:
        load(path, {}, on_this_machine=True)

    assert len(refused.value.problems) == 1
    assert "looked up" in refused.value.problems[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_a_problem(found_here: Refusing, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)

    found = found_here("storage: {path: HERE/closed/data}\nlogs: {requests: HERE/closed/log}")

    assert found == [
        "storage.path: HERE/closed cannot be written to",
        "logs.requests: HERE/closed cannot be written to",
    ]


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert`, its `key`, that key `encrypted`, the key of `another` certificate, and `text`."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued, another = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    issued.private_key_pem.write_to_path(str(folder / "key"))
    another.private_key_pem.write_to_path(str(folder / "another"))
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
    (folder / "encrypted").write_bytes(sealed)
    (folder / "text").write_text("no PEM at all")
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "problem"),
    [
        ("text", "key", "server.tls.cert: TLS/text holds no certificate in PEM"),
        ("key", "key", "server.tls.cert: TLS/key holds no certificate in PEM"),
        ("cert", "text", "server.tls.key: TLS/text holds no private key in PEM"),
        ("cert", "encrypted", "server.tls.key: TLS/encrypted is encrypted: write it without a passphrase"),
        ("cert", "another", "server.tls.key: TLS/another does not belong to the certificate of server.tls.cert"),
        ("none", "key", "server.tls.cert: there is no file TLS/none"),
    ],
)
def test_a_tls_pair_that_cannot_serve_is_a_problem(
    tls_files: Path, tmp_path: Path, cert: str, key: str, problem: str
) -> None:
    path = tmp_path / "keepgate.yaml"
    path.write_text(f"server: {{tls: {{cert: {tls_files}/{cert}, key: {tls_files}/{key}}}}}")

    with pytest.raises(ConfigError) as refused:
        load(path, {}, on_this_machine=True)

    assert [found.replace(str(tls_files), "TLS") for found in refused.value.problems] == [problem]


def test_a_machine_with_everything_in_its_place_is_fine(tls_files: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("")
    path = tmp_path / "keepgate.yaml"
    path.write_text(
        f"server: {{host: localhost, tls: {{cert: {tls_files}/cert, key: {tls_files}/key}}}}\n"
        f"storage: {{path: {tmp_path}/to/be/made}}\n"
        f"cache: {{embedder: {{path: {tmp_path}}}}}\n"
        f"logs: {{requests: {tmp_path}/requests.log}}\n"
    )

    assert load(path, {}, on_this_machine=True).server.tls is not None
    assert not (tmp_path / "to").exists()


def test_the_models_known_to_the_settings_are_those_that_can_be_built() -> None:
    assert EmbedderSettings().model == minilm.NAME
    assert load(None, {"KEEPGATE_CACHE__EMBEDDER__MODEL": minilm.NAME}) == load(None, {})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1"])
def test_a_loopback_address_needs_no_keys(loaded: Loading, host: str) -> None:
    assert loaded(f"server: {{host: '{host}'}}").server.host == host


def test_another_address_is_fine_where_keys_are_required(loaded: Loading) -> None:
    assert loaded("server: {host: 0.0.0.0}\nkeys: {require: true}").keys.require


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("detect: emial, on: input, action: log", "detect: nothing is called 'emial'; did you mean 'email'?"),
        ("detect: [email, ssn], on: input, action: log", "detect.1: nothing is called 'ssn'; did you mean 'us_ssn'?"),
        (
            "detect: nonsense_word, on: input, action: log",
            "detect: nothing is called 'nonsense_word'; known: detect_secrets, hidden_text,",
        ),
        ("detect: [email, email], on: input, action: log", "detect.1: is the same as one before it"),
        ("detect: regex, on: input, action: log", "pattern: is required with detect: regex"),
        ("detect: email, on: input, action: log, pattern: x", "pattern: is for detect: regex"),
        ("detect: email, on: input, action: log, allow: x", "allow: is for detect: secrets"),
        ("detect: email, on: input, action: log, entities: PERSON", "entities: is for detect: presidio"),
        ("detect: email, on: input, action: log, options: {a: 1}", "options: is for detectors of third parties"),
        (
            "detect: regex, pattern: '(?=a)b', on: input, action: log",
            "pattern: invalid perl operator: (?=: look-around is not supported.",
        ),
        ("detect: regex, pattern: 'a', group: 1, on: input, action: log", "pattern: it has no group 1, only 0"),
        (
            "detect: email, when: modle == 'x', on: input, action: log",
            "when: knows no 'modle', only model, endpoint, key, headers",
        ),
        ("detect: email, when: model, on: input, action: log", "when: is neither true nor false"),
        ("detect: email, sample: 0, on: input, action: log", "sample: must be greater than 0"),
        ("detect: email, timeout: 0, on: input, action: log", "timeout: must be greater than 0"),
        ("detect: email, fail: soft, on: input, action: log", "fail: must be one of: open, closed"),
        ("detect: email, name: 'a b', on: input, action: log", "name: must be at most 100 letters, digits,"),
        ("detect: secrets, rules: /no/rules.toml, on: input, action: log", "rules: there is no file /no/rules.toml"),
        (
            "detect: prompt_injection, on: output, action: log",
            "on: must have input or tool_result: prompt_injection looks at",
        ),
        (
            "detect: prompt_injection, threshold: 0, on: input, action: log",
            "threshold: must be greater than 0 with detect: prompt_injection",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_a_problem_at_its_key(problems: Refusing, rule: str, problem: str) -> None:
    (found,) = problems(f"guardrails: [{{name: p, rules: [{{{rule}}}]}}]")

    assert found.startswith(f"guardrails.0.rules.0.{problem}")


def test_every_problem_of_a_file_of_rules_is_told_with_its_line(problems: Refusing, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rules]]\nid = "a"\nregex = "("\n\n[[rules]]\nregex = "b"\n')

    found = problems(
        f"guardrails: [{{name: p, rules: [{{detect: secrets, rules: {tmp_path}/rules.toml, on: input, action: log}}]}}]"
    )

    assert found == [
        f"guardrails.0.rules.0.rules: {tmp_path}/rules.toml:1: rule 'a': regex: missing ): (",
        f"guardrails.0.rules.0.rules: {tmp_path}/rules.toml:5: a rule without an id",
    ]


def test_a_rule_that_cannot_be_read_is_not_said_to_lack_what_it_has(problems: Refusing) -> None:
    found = problems("guardrails: [{name: p, rules: [{detect: regex, pattern: 5, on: input, action: log}]}]")

    assert found == ["guardrails.0.rules.0.pattern: must be a string: put it in quotes"]


def test_a_package_that_an_extra_brings_is_named(problems: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails.registry.find_spec", lambda _: None)  # whether or not it is installed here

    found = problems("guardrails: [{name: p, rules: [{detect: presidio, on: input, action: log}]}]")

    assert found == ["guardrails.0.rules.0.detect: presidio is not installed: pip install 'keepgate[presidio]'"]


@pytest.mark.parametrize(
    ("rule", "warning"),
    [
        ("detect: secrets, on: input, action: mask", "action: secrets are redacted: what is masked comes back"),
        ("detect: prompt_injection, on: [input, output], action: log", "on: has no effect on output: prompt_injection"),
        ("detect: hidden_text, on: output, action: block", "on: hidden_text also finds chat templates that an answer"),
        (
            "detect: regex, pattern: 'a .*b', on: output, action: block",
            "pattern: streamed answers wait from where a match may have begun, maybe to their end: what it matches has",
        ),
        ("detect: email, send: original, on: input, action: log", "send: has no effect: pii always looks at the"),
    ],
)
def test_a_rule_that_does_less_than_it_seems_is_doubted(loaded: Loading, rule: str, warning: str) -> None:
    settings = loaded(
        f"endpoints: [{{name: default, guardrails: [p]}}]\nguardrails: [{{name: p, rules: [{{{rule}}}]}}]"
    )

    (found,) = settings.warnings
    assert found.startswith(f"guardrails.0.rules.0.{warning}")


@pytest.mark.parametrize(
    "rule",
    [
        "detect: [secrets, pii], on: [input, output], action: redact",
        "detect: email, on: input, action: mask",
        "detect: regex, pattern: 'PROJ-[0-9]{4}', on: output, action: block",
        "detect: regex, pattern: 'a .*b', on: output, action: log",
        "detect: regex, pattern: '^secret', on: output, action: redact",
        "detect: prompt_injection, on: [input, tool_result], action: block",
    ],
)
def test_an_ordinary_rule_is_not_doubted(loaded: Loading, rule: str) -> None:
    settings = loaded(
        f"endpoints: [{{name: default, guardrails: [p]}}]\nguardrails: [{{name: p, rules: [{{{rule}}}]}}]"
    )

    assert settings.warnings == ()


def test_a_policy_that_no_endpoint_has_is_doubted(loaded: Loading) -> None:
    settings = loaded(
        "endpoints: [{name: default, guardrails: []}]\n"
        "guardrails: [{name: default, rules: [{detect: email, on: input, action: log}]}]"
    )

    assert settings.warnings == ("guardrails.0.name: no endpoint has the policy 'default': it is not applied",)


def test_what_is_left_out_of_a_file_of_rules_is_a_warning(loaded: Loading, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rules]]\nid = "a"\nregex = "a_[a-z]{9}"\n[[rules]]\nid = "b"\npath = "x"\n')

    settings = loaded(
        "guardrails: [{name: default, rules: [{detect: secrets, on: input, action: log,"
        f" rules: {tmp_path}/rules.toml}}]}}]"
    )

    assert settings.warnings == ("guardrails.0.rules.0.rules: rule 'b' looks at file names only: left out",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("upstreams: [{name: a, provider: bedrock}]", "upstreams.0.provider"),
    ],
)
def test_what_is_not_built_yet_is_refused_and_never_ignored(problems: Refusing, text: str, path: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(f"{path}: not in this version: ")


def test_a_reference_reads_the_environment_and_converts_to_the_type_of_its_field(loaded: Loading) -> None:
    settings = loaded(
        "server: {port: env.PORT, drain: env.DRAIN}\n"
        "keys: {require: env.REQUIRE}\n"
        "upstreams: [{name: a, provider: openai, api_key: env.KEY}]\n",
        {"PORT": "9000", "DRAIN": "5s", "REQUIRE": "true", "KEY": "12345"},
    )

    assert (settings.server.port, settings.server.drain, settings.keys.require) == (9000, 5.0, True)
    assert settings.upstreams[0].api_key == SecretStr("12345")


def test_a_reference_to_nothing_is_a_problem_at_its_path(problems: Refusing) -> None:
    found = problems("upstreams: [{name: a, provider: openai, api_key: env.ABSENT}]\nserver: {cors_origins: [env.WEB]}")

    assert found == [
        "upstreams.0.api_key: the environment variable ABSENT is not set",
        "server.cors_origins.0: the environment variable WEB is not set",
    ]


def test_variables_override_what_the_file_says(loaded: Loading) -> None:
    environ = {
        "KEEPGATE_SERVER__PORT": "9000",
        "KEEPGATE_CACHE__EMBEDDER__KIND": "static",
        "KEEPGATE_KEYS__REQUIRE": "true",
        "KEEPGATE_ADMIN__TOKEN": "0042",
    }

    settings = loaded("server: {port: 1, workers: 2}\ncache:\n", environ)

    assert (settings.server.port, settings.server.workers, settings.keys.require) == (9000, 2, True)
    assert settings.cache.embedder.kind == "static"
    assert settings.admin.token == SecretStr("0042")


@pytest.mark.parametrize(
    "variable", ["KEEPGATE_PORT", "KEEPGATE_ADMIN_TOKEN", "KEEPGATE_NOTHING__PORT", "SERVER__PORT"]
)
def test_variables_that_name_no_section_are_ignored(variable: str) -> None:
    assert load(None, {variable: "x"}) == load(None, {})


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("KEEPGATE_SERVER__PROT", "server.prot: unknown key; did you mean 'port'? (set by KEEPGATE_SERVER__PROT)"),
        ("KEEPGATE_SERVER__PORT", "server.port: must be a whole number (set by KEEPGATE_SERVER__PORT)"),
        ("KEEPGATE_SERVER__PORT__X", "server.port: must be a whole number"),
        ("KEEPGATE_CACHE__EXACT", "cache.exact: must be a mapping (set by KEEPGATE_CACHE__EXACT)"),
        (
            "KEEPGATE_UPSTREAMS__0__NAME",
            "upstreams.0.name: lists are set in the file, not by KEEPGATE_UPSTREAMS__0__NAME",
        ),
    ],
)
def test_an_override_that_cannot_be_used_names_its_variable(variable: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {variable: "x"})

    assert refused.value.problems == (problem,)


def test_no_secret_shows_in_a_problem_or_in_the_tree(loaded: Loading, problems: Refusing) -> None:
    text = (
        "upstreams: [{name: a, provider: openai, api_key: hush, proxy: 'http://u:hush@p', headers: {X-Key: hush}}]\n"
        "admin: {token: hush}\n"
        "redis: {url: 'redis://:hush@127.0.0.1'}\n"
    )

    shown = repr(loaded(text)) + str(loaded(text))
    refused = problems(text + "server: {port: hush, host: [hush], tls: hush}\nlogs: {level: hush}\nkeys: env.HUSH")

    assert "hush" not in shown
    assert "hush" not in "".join(refused)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server:\n  port: 1\n  port: 2\n", "server.port: is given twice, on line 2 and on line 3"),
        ("endpoints:\n- name: a\n- name: b\n  name: c\n", "endpoints.1.name: is given twice, on line 3 and on line 4"),
    ],
)
def test_a_key_given_twice_is_a_problem_with_both_lines(problems: Refusing, text: str, problem: str) -> None:
    assert problems(text) == [problem]


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("server: {port: 1", "did not find expected ',' or '}' (line 2, column 1)"),
        ("server:\n\tport: 1", "(line 2, column 1)"),
        ("server: \x01", "(line 1)"),
        ("a: *b", "line 1: *b refers to nothing that ended before it"),
        ("a: &b [*b]", "line 1: *b refers to nothing that ended before it"),
        (
            "a: !!python/object:os.system x",
            "line 1: tags such as tag:yaml.org,2002:python/object:os.system have no meaning here",
        ),
        ("? [a]\n: b", "line 1: a key must be a word or a quoted string"),
        ("--- {}\n--- {}\n", "line 2: a second document begins"),
        ("a: " + "[" * 200_000, "line 1: nested deeper than 32 levels"),
        ("[1, 2]", "must be a mapping of sections: " + ", ".join(Settings.model_fields)),
        ("x: '" + "y" * 1024 * 1024 + "'", "is larger than 1 MB"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(problems: Refusing, tmp_path: Path, text: str, ending: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(f"{tmp_path / 'keepgate.yaml'}: ")
    assert problem.endswith(ending)


def test_aliases_repeat_a_value(loaded: Loading) -> None:
    settings = loaded("endpoints:\n- {name: a, cache: &faq {mode: exact, ttl: 5m}}\n- {name: b, cache: *faq}\n")

    assert settings.endpoints[0].cache == settings.endpoints[1].cache
    assert settings.endpoints[1].cache.ttl == 300.0


def test_aliases_of_aliases_do_not_multiply_without_end(problems: Refusing) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20))

    (problem,) = problems(text)

    assert problem.endswith("more than 100000 values, those that aliases repeat among them")


def test_a_file_that_is_not_there_or_not_utf_8_is_a_problem(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: é".encode("latin-1"))

    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 \(line 2\)"):
        load(latin, {})
    with pytest.raises(ConfigError, match="absent: cannot be read: No such file"):
        load(tmp_path / "absent", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})


def test_doubts_are_warnings_and_not_errors(loaded: Loading) -> None:
    settings = loaded(
        "server: {workers: 2}\n"
        "cache: {exact: {store: memory}}\n"
        "redis: {url: 'redis://127.0.0.1'}\n"
        "endpoints: [{name: default, cache: {mode: exact, threshold: 0.9}}]\n"
    )

    assert settings.warnings == (
        "redis: nothing uses it: set cache.exact.store or cache.vector.store",
        "cache.exact.store: each worker has a cache of its own; lmdb is shared",
        "endpoints.0.cache.threshold: has no effect with mode: exact",
    )


@pytest.mark.parametrize(
    ("cache", "warnings"),
    [
        ("{mode: exact, max_wrong_hit_rate: 0.01}", ["max_wrong_hit_rate: has no effect with mode: exact"]),
        ("{mode: exact, audit_rate: 0.1}", ["audit_rate: has no effect with mode: exact"]),
        (
            "{max_wrong_hit_rate: 0.01, lookups: off}",
            ["lookups: off leaves keepgate tune nothing of the endpoint's own to certify from"],
        ),
        (
            "{threshold: 0.9, second_opinion: {kind: judge, model: demo/demo}}",
            ["second_opinion: has no effect with a threshold: nobody is asked"],
        ),
        ("{max_wrong_hit_rate: 0.01, audit_rate: 0.1}", []),
    ],
)
def test_what_does_not_go_together_in_a_cache_is_a_warning(loaded: Loading, cache: str, warnings: list[str]) -> None:
    settings = loaded(f"endpoints: [{{name: default, cache: {cache}}}]")

    assert settings.warnings == tuple(f"endpoints.0.cache.{warning}" for warning in warnings)


def test_the_documentation_names_every_key() -> None:
    documented = DOCUMENTATION.read_text(encoding="utf-8")

    missing = [path for path in _paths(Settings, "") if f"| `{path}` |" not in documented]

    assert missing == []


def test_the_examples_of_the_documentation_load(loaded: Loading) -> None:
    blocks = DOCUMENTATION.read_text(encoding="utf-8").split("```yaml\n")[1:]
    examples = [block.partition("```")[0] for block in blocks]
    environ = {"OPENAI_API_KEY": "k", "KEEPGATE_ADMIN_TOKEN": "t"}

    settings = [loaded(example, environ) for example in examples]

    assert len(settings) >= 2
    assert all(yaml.safe_load(example) for example in examples)


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner, repeated = _model_in(field.annotation)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from _paths(inner, f"{prefix}{name}{'[]' if repeated else ''}.")


def _model_in(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    parts = get_args(annotation)
    found = next((model for part in parts if (model := _model_in(part)[0])), None)
    return found, ... in parts


MIXED = """
upstreams:
  - {name: theirs, provider: openai, auth: passthrough}
  - {name: ours, provider: openai, api_key: k}
models:
  - {name: m, targets: [{upstream: theirs, model: m}], fallbacks: [ours/m]}
"""


def test_a_caller_nobody_checked_is_not_led_to_the_operators_credential(problems: Refusing) -> None:
    (problem,) = problems(MIXED)

    assert problem.startswith("models.0: mixes upstreams with auth: passthrough and others")


def test_callers_with_a_key_may_be(loaded: Loading) -> None:
    assert loaded(f"{MIXED}keys: {{require: true}}").models[0].name == "m"


REDIS = "cache: {exact: {store: redis}, vector: {store: redis}}\nredis: "


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("{url: 'redis://h:1/one'}", ["redis.url: what follows the port must be the number of a database"]),
        (
            "{url: 'redis://:a#b@h'}",
            [
                (
                    "redis.url: must be a URL that starts with redis://, rediss:// or unix:///; "
                    "special characters of a password are written as %XX"
                )
            ],
        ),
        (
            "{cluster: true, url: 'redis://h:1/1'}",
            ["redis.url: must end without the number of a database: a cluster has database 0 only"],
        ),
        (
            "{cluster: true, url: 'unix:///s'}",
            ["redis.url: must name a host: sentinels and clusters have no socket"],
        ),
        (
            "{sentinel: {hosts: ['h:1'], master: m}, url: 'unix:///s'}",
            ["redis.url: must name a host: sentinels and clusters have no socket"],
        ),
        (
            f"{{url: 'redis://h', tls: {{ca: '{__file__}'}}}}",
            ["redis.tls.ca: is for rediss://, and redis.url begins otherwise: nothing would be encrypted"],
        ),
        (f"{{url: 'rediss://h', tls: {{cert: '{__file__}'}}}}", ["redis.tls.key: is required with redis.tls.cert"]),
        (f"{{url: 'rediss://h', tls: {{key: '{__file__}'}}}}", ["redis.tls.cert: is required with redis.tls.key"]),
        ("{url: 'rediss://h', tls: {ca: /nowhere.pem}}", ["redis.tls.ca: there is no file /nowhere.pem"]),
    ],
)
def test_a_redis_that_cannot_be_reached_so_is_refused(problems: Refusing, section: str, found: list[str]) -> None:
    assert problems(REDIS + section) == found


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("{url: 'https://h', ca_file: /nowhere.pem}", "qdrant.ca_file: there is no file /nowhere.pem"),
        (
            f"{{url: 'http://h', ca_file: '{__file__}'}}",
            "qdrant.ca_file: is for https://, and qdrant.url begins with http://",
        ),
    ],
)
def test_a_qdrant_that_cannot_be_trusted_so_is_refused(problems: Refusing, section: str, found: str) -> None:
    assert problems(f"cache: {{vector: {{store: qdrant}}}}\nqdrant: {section}") == [found]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("cache: {vector: {m: 32}}", "cache.vector.m: has no effect with store: faiss"),
        ("cache: {vector: {store: qdrant, index: flat}}", "cache.vector.index: has no effect with store: qdrant"),
        (
            "cache: {vector: {store: redis, max_entries: 9}}",
            "cache.vector.max_entries: has no effect with store: redis",
        ),
        (
            f"{REDIS}{{url: 'redis://h/3'}}",
            "redis.url: the query engine of Redis knows database 0 only: vectors need a server with vector sets here",
        ),
    ],
)
def test_what_a_store_does_not_heed_is_a_doubt(loaded: Loading, text: str, warning: str) -> None:
    assert loaded(text).warnings == (warning,)


def test_a_store_whose_package_is_not_there_says_what_to_install(
    problems: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)

    found = problems("cache: {exact: {store: redis}}")

    assert found == ["cache.exact.store: redis needs the package redis: pip install 'keepgate[redis]'"]
