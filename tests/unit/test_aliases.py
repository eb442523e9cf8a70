"""A requested name stands for one route, or is refused with those that exist."""

import pytest

from models.errors import RequestError
from service.routing.aliases import Aliases, Route, Target, in_order, route

PLACES = {name: f"place of {name}" for name in ("openai", "local", "openrouter", "a", "b", "c")}
GPT = route([Target("openai", "gpt-4o")], [Target("local", "llama3")], places=PLACES)


def over(*upstreams: str, **models: Route) -> Aliases:
    return Aliases(models, {name: PLACES[name] for name in upstreams})


def test_a_configured_name_comes_before_an_upstream_of_that_name() -> None:
    aliases = over("openai", "local", **{"openai/gpt-4o": route([Target("local", "llama3")], places=PLACES)})

    assert aliases.resolve("openai/gpt-4o").targets == (Target("local", "llama3"),)


def test_an_upstream_and_model_are_split_at_the_first_slash() -> None:
    aliases = over("openrouter", "local")

    assert aliases.resolve("openrouter/meta/llama-3").targets == (Target("openrouter", "meta/llama-3"),)


def test_a_bare_name_goes_to_the_only_upstream() -> None:
    assert over("local").resolve("llama3").targets == (Target("local", "llama3"),)


@pytest.mark.parametrize(
    ("aliases", "name"),
    [
        (over("openai", "local"), "llama3"),  # which of them?
        (over("openai", gpt=GPT), "gpt-5"),
        (over("openai", "local"), "azure/gpt-4o"),
        (over("openai", "local"), "openai/"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_exist(aliases: Aliases, name: str) -> None:
    with pytest.raises(RequestError, match=r"known: .*openai/MODEL") as refused:
        aliases.resolve(name)

    assert refused.value.code == "model_not_found"


def test_names_share_an_identity_exactly_when_they_lead_to_the_same() -> None:
    one, other = Target("a", "m", 1.0), Target("b", "m", 2.0)
    both = route([one, other], places=PLACES).identity

    assert both == route([Target("a", "m", 5.0), other], places=PLACES).identity  # how often is not what
    assert both != route([one], places=PLACES).identity
    assert both != route([one], [other], places=PLACES).identity
    assert both != route([one, other], places={**PLACES, "a": "moved"}).identity


def test_a_model_name_cannot_pose_as_another_route() -> None:
    alias = route([Target("a", "x"), Target("b", "y")], places=PLACES)
    posing = over("a", "b").resolve('a/x"],["b","place of b","y')

    assert posing.identity != alias.identity


@pytest.mark.parametrize(("drawn", "first"), [(0.0, "a"), (0.24, "a"), (0.26, "b"), (0.999, "b")])
def test_targets_are_drawn_by_weight_and_fallbacks_follow(drawn: float, first: str) -> None:
    way = route([Target("a", "m", 1.0), Target("b", "m", 3.0)], [Target("c", "m")], places=PLACES)

    order = in_order(way, choose=lambda: drawn)

    assert [target.upstream for target in order] == [first, "c"]
