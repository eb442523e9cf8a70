"""Gateways and a provider that the integration tests share.

A test gets its own model name, which is part of every identity: what one test
put into a shared cache, no other finds.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import AS_SHIPPED, Gateway, Json, Mock, mock_provider, running_gateway, settings
from tests.support.vendors import Vendors, running_vendors

_numbers = itertools.count()

ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}},
    {"name": "exact", "cache": {"mode": "exact"}},
    {"name": "off", "cache": {"mode": "off"}},
    {"name": "shadow", "cache": {"mode": "shadow"}},
    {"name": "lenient", "cache": {"mode": "semantic", "threshold": 0.5}},
    {"name": "keeps-all", "cache": {"mode": "semantic", "keep": ["stop", "length", "tool_calls"]}},
    {"name": "warm", "cache": {"mode": "semantic", "max_temperature": 1}},
    {"name": "paced", "cache": {"mode": "exact", "replay": "paced", "replay_rate": 50}},
]


def with_endpoints(directory: Path, upstream: str, **sections: Any) -> Json:
    return settings(directory, upstream, **{"endpoints": ENDPOINTS, **sections})


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mock_provider(tmp_path_factory.mktemp("provider")) as mock:
        yield mock


@pytest.fixture
def mock(provider: Mock) -> Mock:
    """The shared provider, as it was at its start."""
    provider.reset()
    return provider


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    with running_gateway(directory, with_endpoints(directory, provider.url, guardrails=AS_SHIPPED)) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared_gateway: Gateway, mock: Mock) -> Gateway:  # noqa: ARG001 - a test that asks begins with a fresh mock
    """One worker in front of the mock, nobody needs a key."""
    return shared_gateway


@pytest.fixture
def model() -> str:
    """A name no other test asks for."""
    return f"model-{next(_numbers)}"


@pytest.fixture(scope="session")
def shared_vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendors]:
    with running_vendors(tmp_path_factory.mktemp("vendors")) as vendors:
        yield vendors


@pytest.fixture
def vendors(shared_vendors: Vendors) -> Vendors:
    """A fake of each vendor, which nobody has called, and a gateway in front of all of them."""
    shared_vendors.reset()
    return shared_vendors
