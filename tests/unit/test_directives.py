"""Headers tighten the endpoint's policy and never loosen it."""

import pytest

from models.errors import RequestError
from service.caching.directives import defaults, parse
from service.context import Directives, Endpoint, Mode

ENDPOINT = Endpoint(name="default", mode="semantic", threshold=0.9, ttl=3600.0)


def parsed(**headers: str) -> Directives:
    return parse({name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}, ENDPOINT)


def test_without_headers_the_endpoint_decides() -> None:
    assert parsed() == defaults(ENDPOINT)


@pytest.mark.parametrize(
    ("endpoint", "asked", "effective"),
    [
        ("semantic", "semantic", "semantic"),
        ("semantic", "exact", "exact"),
        ("semantic", "off", "off"),
        ("exact", "semantic", "exact"),
        ("shadow", "semantic", "shadow"),
        ("off", "semantic", "off"),
    ],
)
def test_the_mode_is_at_most_what_the_endpoint_allows(endpoint: Mode, asked: str, effective: str) -> None:
    directives = parse({b"x-keepgate-cache": asked.encode()}, Endpoint(name="e", mode=endpoint))

    assert directives.mode == effective


def test_a_threshold_only_rises() -> None:
    assert parsed(x_keepgate_threshold="0.95").threshold == 0.95
    assert parsed(x_keepgate_threshold="0.5").threshold == 0.9


@pytest.mark.parametrize(("value", "ttl"), [("60", 60.0), ("10m", 600.0), ("2h", 3600.0), ("0", 0.0)])
def test_a_ttl_only_falls(value: str, ttl: float) -> None:
    assert parsed(x_keepgate_ttl=value).ttl == ttl


def test_cache_control_directives_combine() -> None:
    directives = parsed(cache_control="no-cache, No-Store ,max-age=30, something-new=1")

    assert not directives.lookup
    assert not directives.store
    assert directives.max_age == 30.0


def test_the_smallest_max_age_counts() -> None:
    assert parsed(cache_control="max-age=0, max-age=100").max_age == 0.0


def test_only_if_cached_is_heard() -> None:
    assert parsed(cache_control="only-if-cached").only_if_cached


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-keepgate-cache", "maybe"),
        ("x-keepgate-threshold", "1.5"),
        ("x-keepgate-threshold", "nan"),
        ("x-keepgate-threshold", "-0.1"),
        ("x-keepgate-ttl", "soon"),
        ("x-keepgate-ttl", "-5"),
        ("cache-control", "max-age=soon"),
        ("cache-control", "max-age"),
    ],
)
def test_a_malformed_value_names_its_header(header: str, value: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse({header.encode(): value.encode()}, ENDPOINT)

    assert refused.value.param is not None
    assert refused.value.param.lower() == header
    assert refused.value.code == "invalid_request"
