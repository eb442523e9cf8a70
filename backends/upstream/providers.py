"""The providers of providers.toml, each as an upstream."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import msgspec

from backends.registry import PROVIDERS
from backends.upstream.http import AuthStyle, HttpUpstream
from backends.upstream.openai import OpenAIWire
from backends.upstream.openai_request import Quirks
from backends.upstream.wire import Wire
from models.errors import ConfigError
from models.request import Dialect, Operation

# Imported when an upstream speaks them.
_WIRES: dict[Dialect, tuple[str, str]] = {
    "responses": ("backends.upstream.responses", "ResponsesWire"),
    "anthropic": ("backends.upstream.anthropic", "AnthropicWire"),
    "gemini": ("backends.upstream.gemini", "GeminiWire"),
}
# What whoever speaks a dialect needs to be told, where the client does not say it.
_DEFAULTS: dict[Dialect, dict[str, str]] = {"anthropic": {"anthropic-version": "2023-06-01"}}


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of providers.toml, which says what its keys mean."""

    dialects: tuple[Dialect, ...]
    base_url: str | None = None
    prefixes: dict[Dialect, str] = {}
    auth: AuthStyle = "bearer"
    keyless: bool = False
    models: str = "/models"
    serves: frozenset[Operation] = frozenset({"chat", "completion", "embedding"})
    renamed: dict[str, str] = {}
    roles: dict[str, str] = {}
    accepted: tuple[str, ...] = ()
    call_id_length: int | None = None
    stream_usage: bool = True


@cache
def providers() -> Mapping[str, Provider]:
    return msgspec.convert(PROVIDERS, dict[str, Provider])


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
    known = providers().get(provider)
    if known is None:
        raise ConfigError(f"upstreams.{name}.provider: must be one of: {', '.join(sorted(PROVIDERS))}")
    base_url = base_url or known.base_url
    if base_url is None:
        raise ConfigError(f"upstreams.{name}.base_url: is required with provider {provider}")
    spoken = tuple(dict.fromkeys(dialects)) or known.dialects
    defaults: dict[str, str] = {}
    for dialect in spoken:
        defaults |= _DEFAULTS.get(dialect, {})
    return HttpUpstream(
        name=name,
        provider=provider,
        base_url=base_url,
        wires=[_wire(dialect, known, stream_usage=stream_usage) for dialect in spoken],
        prefixes=known.prefixes,
        models_path=known.models,
        auth_style=known.auth,
        defaults=defaults,
        **options,
    )


def _wire(dialect: Dialect, known: Provider, *, stream_usage: bool) -> Wire:
    if dialect == "openai":
        quirks = Quirks(
            renamed=known.renamed,
            roles=known.roles,
            accepted=frozenset(known.accepted),
            call_id_length=known.call_id_length,
        )
        return OpenAIWire(stream_usage=stream_usage and known.stream_usage, quirks=quirks, operations=known.serves)
    module, attribute = _WIRES[dialect]
    wire: Wire = getattr(import_module(module), attribute)()
    return wire
