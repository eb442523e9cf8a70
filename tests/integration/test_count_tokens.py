"""Counts of tokens: the vendor's where it counts, the gateway's own estimate where it does not."""

from typing import Any

import pytest

from tests.support.vendors import MODELS, Vendors

MESSAGES = [{"role": "user", "content": "one two three four"}]
CONTENTS = [{"role": "user", "parts": [{"text": "one two three four"}]}]
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "anthropic": (
        "/v1/messages/count_tokens",
        {"model": MODELS["anthropic"], "messages": MESSAGES},
        "input_tokens",
    ),
    "gemini": (
        f"/genai/v1beta/models/{MODELS['gemini']}:countTokens",
        {"contents": CONTENTS},
        "totalTokens",
    ),
}


def counted(vendors: Vendors, dialect: str) -> tuple[int, int, str]:
    """Status, tokens, and who counted them."""
    path, body, name = ASKED[dialect]
    answer = vendors.gateway.client.post(path, json=body)
    return answer.status_code, answer.json().get(name, 0), answer.headers.get("x-keepgate-upstream", "")


@pytest.mark.parametrize("dialect", ASKED)
def test_who_speaks_the_dialect_counts(vendors: Vendors, dialect: str) -> None:
    status, tokens, upstream = counted(vendors, dialect)

    assert (status, upstream) == (200, MODELS[dialect])
    assert tokens >= 4
    assert vendors.calls == 1


@pytest.mark.parametrize("dialect", ASKED)
@pytest.mark.parametrize("refusal", ["404", "405", "501"])
def test_who_does_not_count_leaves_it_to_the_gateway(vendors: Vendors, dialect: str, refusal: str) -> None:
    vendors.fakes[dialect].fail(refusal)

    status, tokens, upstream = counted(vendors, dialect)

    assert (status, upstream) == (200, "")
    assert tokens >= 4


@pytest.mark.parametrize("dialect", ASKED)
def test_a_count_that_is_refused_for_what_it_says_is_not_estimated(vendors: Vendors, dialect: str) -> None:
    vendors.fakes[dialect].fail("400")

    status, _, upstream = counted(vendors, dialect)

    assert (status, upstream) == (400, MODELS[dialect])
