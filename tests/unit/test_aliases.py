"""A requested name stands for one route, or is refused with those that exist."""

import pytest

from models.errors import RequestError
from service.routing.aliases import Aliases, Target, in_order, route

GPT = route([Target("openai", "gpt-4o")], [Target("local", "llama3")])


def test_a_configured_name_comes_before_an_upstream_of_that_name() -> None:
    aliases = Aliases({"openai/gpt-4o": route([Target("local", "llama3")])}, ["openai", "local"])

    assert aliases.resolve("openai/gpt-4o").targets == (Target("local", "llama3"),)


def test_an_upstream_and_model_are_split_at_the_first_slash() -> None:
    aliases = Aliases({}, ["openrouter", "local"])

    assert aliases.resolve("openrouter/meta/llama-3").targets == (Target("openrouter", "meta/llama-3"),)


def test_a_bare_name_goes_to_the_only_upstream() -> None:
    assert Aliases({}, ["local"]).resolve("llama3").targets == (Target("local", "llama3"),)


@pytest.mark.parametrize(
    ("aliases", "name"),
    [
        (Aliases({}, ["openai", "local"]), "llama3"),  # which of them?
        (Aliases({"gpt": GPT}, ["openai"]), "gpt-5"),
        (Aliases({}, ["openai", "local"]), "azure/gpt-4o"),
        (Aliases({}, ["openai", "local"]), "openai/"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_exist(aliases: Aliases, name: str) -> None:
    with pytest.raises(RequestError, match=r"known: .*openai/MODEL") as refused:
        aliases.resolve(name)

    assert refused.value.code == "model_not_found"


def test_two_names_for_the_same_targets_have_one_identity() -> None:
    targets = [Target("a", "m", 1.0), Target("b", "m", 2.0)]

    assert route(targets).identity == route(targets, [Target("c", "m")]).identity
    assert route(targets).identity != route(targets[:1]).identity


@pytest.mark.parametrize(("drawn", "first"), [(0.0, "a"), (0.24, "a"), (0.26, "b"), (0.999, "b")])
def test_targets_are_drawn_by_weight_and_fallbacks_follow(drawn: float, first: str) -> None:
    way = route([Target("a", "m", 1.0), Target("b", "m", 3.0)], [Target("c", "m")])

    order = in_order(way, choose=lambda: drawn)

    assert [target.upstream for target in order] == [first, "c"]
