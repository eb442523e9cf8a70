"""Which implementation a seam's name stands for; imported when it is asked for.

Third parties add to a seam with an entry point in the group
`keepgate.<seam>`, for example `keepgate.exact`.
"""

import tomllib
from collections.abc import Callable
from importlib import import_module, resources
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from models.errors import ConfigError

# Upstreams that are data. What its tables hold is said there and checked where an upstream is made of one.
PROVIDERS: dict[str, dict[str, Any]] = tomllib.loads(
    resources.files("backends.upstream").joinpath("providers.toml").read_text(encoding="utf-8")
)

BUILT_IN: dict[str, dict[str, str]] = {
    "exact": {
        "memory": "backends.exact.memory:MemoryStore",
        "lmdb": "backends.exact.lmdb:LmdbStore",
        "redis": "backends.exact.redis:RedisStore",
    },
    "vector": {
        "flat": "backends.vector.flat:FlatStore",
        "faiss": "backends.vector.faiss:FaissStore",
        "redis": "backends.vector.redis:RedisVectorStore",
        "qdrant": "backends.vector.qdrant:QdrantStore",
    },
    "embedding": {
        "onnx": "backends.embedding.onnx:OnnxEmbedder",
        "static": "backends.embedding.static:StaticEmbedder",
        "openai": "backends.embedding.openai:OpenAIEmbedder",
        "sentence-transformers": "backends.embedding.sentence_transformers:SentenceTransformersEmbedder",
    },
    "upstream": {
        "demo": "backends.upstream.demo:DemoUpstream",
        **dict.fromkeys(PROVIDERS, "backends.upstream.providers:upstream"),
    },
    "judging": {
        "onnx": "backends.judging.onnx:OnnxJudge",
        "judge": "backends.judging.language_model:LanguageModelJudge",
    },
    "lease": {
        "memory": "backends.lease.memory:MemoryLeases",
        "redis": "backends.lease.redis:RedisLeases",
    },
    "tuning": {
        "files": "backends.tuning.files:TuningFiles",
    },
    "keyring": {
        "memory": "backends.keyring.memory:MemoryKeyring",
        "lmdb": "backends.keyring.lmdb:LmdbKeyring",
    },
}


# What is not installed with the gateway itself: the package by its import, and the extra that brings it.
_EXTRAS = {
    "redis": "redis",
    "grpc": "qdrant",
    "google": "qdrant",
    "sentence_transformers": "sentence-transformers",
}
_NEEDS = {
    ("exact", "redis"): "redis",
    ("vector", "redis"): "redis",
    ("embedding", "sentence-transformers"): "sentence_transformers",
}


def not_installed(seam: str, name: str) -> str | None:
    """What a built-in lacks here, in words; None where it can be built."""
    package = _NEEDS.get((seam, name))
    return None if package is None or find_spec(package) is not None else _needs(package)


def _needs(module: str) -> str:
    package = module.partition(".")[0]
    extra = _EXTRAS.get(package)
    source = package if extra is None else f"'keepgate[{extra}]'"
    return f"needs the package {package}: pip install {source}"


def create(seam: str, name: str, /, **options: Any) -> Any:
    """The implementation, built with `options`.

    Raises `ConfigError` for a name nobody registered or a package that is not
    installed.
    """
    target = BUILT_IN[seam].get(name)
    try:
        if target is not None:
            module, _, attribute = target.partition(":")
            factory: Callable[..., Any] = getattr(import_module(module), attribute)
        else:
            found = [point for point in entry_points(group=f"keepgate.{seam}") if point.name == name]
            if not found:
                known = ", ".join(sorted(names(seam)))
                raise ConfigError(f"no {seam} implementation is named {name!r}; known: {known}")
            factory = found[0].load()
    except ModuleNotFoundError as error:
        raise ConfigError(f"{seam} {name!r} {_needs(error.name or '')}") from error
    return factory(**options)


def names(seam: str) -> set[str]:
    return set(BUILT_IN[seam]) | {point.name for point in entry_points(group=f"keepgate.{seam}")}
