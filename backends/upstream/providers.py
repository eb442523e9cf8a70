"""The providers of providers.toml, each as an upstream."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module, resources
from typing import Any

import msgspec

from backends.upstream.http import AuthStyle, HttpUpstream
from backends.upstream.wire import Wire
from models.errors import ConfigError
from models.request import Dialect, Operation

# Imported when an upstream speaks them.
_WIRES: dict[Dialect, tuple[str, str]] = {
    "openai": ("backends.upstream.openai", "OpenAIWire"),
    "responses": ("backends.upstream.responses", "ResponsesWire"),
    "anthropic": ("backends.upstream.anthropic", "AnthropicWire"),
    "gemini": ("backends.upstream.gemini", "GeminiWire"),
}


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of providers.toml, which says what its keys mean."""

    dialects: tuple[Dialect, ...]
    base_url: str | None = None
    auth: AuthStyle = "bearer"
    headers: dict[str, str] = {}
    serves: frozenset[Operation] = frozenset({"chat", "completion", "embedding"})
    renamed: dict[str, str] = {}
    accepted: tuple[str, ...] = ()


@cache
def providers() -> Mapping[str, Provider]:
    text = resources.files("backends.upstream").joinpath("providers.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Provider])


def upstream(
    *,
    name: str,
    provider: str,
    base_url: str | None = None,
    dialects: Sequence[Dialect] = (),
    stream_usage: bool = True,
    **options: Any,
) -> HttpUpstream:
    """`base_url` and `dialects` replace those of the provider. `options` are `HttpUpstream`'s."""
    known = providers()[provider]
    base_url = base_url or known.base_url
    if base_url is None:
        raise ConfigError(f"upstreams.{name}.base_url: is needed, for example http://127.0.0.1:11434/v1")
    return HttpUpstream(
        name=name,
        provider=provider,
        base_url=base_url,
        wires=[_wire(dialect, known, stream_usage=stream_usage) for dialect in dialects or known.dialects],
        auth_style=known.auth,
        defaults=known.headers,
        **options,
    )


def _wire(dialect: Dialect, known: Provider, *, stream_usage: bool) -> Wire:
    module, attribute = _WIRES[dialect]
    kind = getattr(import_module(module), attribute)
    options: dict[str, Any] = {}
    if dialect == "openai":
        options = {
            "stream_usage": stream_usage,
            "renamed": known.renamed,
            "accepted": known.accepted,
            "operations": known.serves,
        }
    wire: Wire = kind(**options)
    return wire
