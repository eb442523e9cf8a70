"""What is forwarded is what counts, but for what only tells requests apart."""

import pytest

from models.errors import RequestError
from service.pipeline.headers import forwarded, meaning


@pytest.mark.parametrize(
    "name", [b"openai-beta", b"openai-organization", b"openai-project", b"anthropic-beta", b"anthropic-anything"]
)
def test_a_forwarded_header_is_meaning(name: bytes) -> None:
    assert forwarded({name: b"1"}) == ((name.decode(), "1"),)
    assert meaning({name: b"1"}) != meaning({name: b"2"}) != meaning({})


@pytest.mark.parametrize("name", [b"idempotency-key", b"traceparent"])
def test_what_tells_requests_apart_is_forwarded_and_no_meaning(name: bytes) -> None:
    assert forwarded({name: b"1"}) == ((name.decode(), "1"),)
    assert meaning({name: b"1"}) == ()


@pytest.mark.parametrize(
    "name",
    [b"authorization", b"x-api-key", b"cookie", b"x-forwarded-for", b"x-keepgate-namespace", b"connection", b"host"],
)
def test_credentials_and_whereabouts_stay_here(name: bytes) -> None:
    assert forwarded({name: b"1"}) == ()


def test_the_client_is_named_in_a_header_of_its_own() -> None:
    assert forwarded({b"user-agent": b"app/1"}) == (("x-forwarded-user-agent", "app/1"),)


def test_the_usual_anthropic_version_is_no_meaning() -> None:
    assert meaning({b"anthropic-version": b"2023-06-01"}) == ()
    assert meaning({b"anthropic-version": b"2026-10-21"}) == ()
    assert meaning({b"anthropic-version": b"2030-01-01"}) != ()


def test_the_order_of_headers_is_no_meaning() -> None:
    one = {b"openai-beta": b"a", b"x-keepgate-namespace": b"b"}

    assert meaning(one) == meaning(dict(reversed(one.items())))


def test_two_partitions_stay_two_whatever_their_bytes() -> None:
    assert meaning({b"x-keepgate-namespace": b"\xff"}) != meaning({b"x-keepgate-namespace": b"\xfe"})


def test_passages_are_equal_but_for_white_space() -> None:
    assert meaning({b"x-keepgate-context": b"a@1, b@2"}) == meaning({b"x-keepgate-context": b"a@1,b@2"})
    assert meaning({b"x-keepgate-context": b"a@1,b@2"}) != meaning({b"x-keepgate-context": b"b@2,a@1"})


@pytest.mark.parametrize("value", [b"", b"  ", b"x" * 4097])
def test_a_partition_that_says_nothing_or_too_much_is_refused(value: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        meaning({b"x-keepgate-namespace": value})

    assert refused.value.param == "x-keepgate-namespace"
