"""A requested name stands for one route, or is refused with those that exist."""

import pytest

from models.errors import RequestError
from service.routing.aliases import Aliases, Route, Target, route

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


def test_how_often_and_how_soon_is_no_part_of_the_identity() -> None:
    plain = route([Target("a", "m")], places=PLACES)
    other = route([Target("a", "m")], places=PLACES, strategy="least-busy", sticky=True, timeout=3.0, attempts=7)

    assert plain.identity == other.identity


def test_a_request_may_cause_three_calls_or_one_for_each_target_and_fallback() -> None:
    two, five = [Target("a", "m")] * 2, [Target("a", "m")] * 5

    assert route(two, places=PLACES).attempts == 3
    assert route(two, five, places=PLACES).attempts == 7
    assert route(two, five, places=PLACES, attempts=2).attempts == 2


def test_names_that_are_not_configured_have_the_limits_of_the_section() -> None:
    aliases = Aliases({"gpt": GPT}, {name: PLACES[name] for name in ("openai", "local")}, timeout=5.0, attempts=1)

    assert (aliases.resolve("local/m").timeout, aliases.resolve("local/m").attempts) == (5.0, 1)
    assert (aliases.resolve("gpt").timeout, aliases.resolve("gpt").attempts) == (None, 3)


ANY = route([Target("local", "*")], places=PLACES)
OPENAI = route([Target("openai", "*", 2.0)], [Target("openrouter", "openai/*")], places=PLACES, attempts=9, timeout=5.0)
MINI = route([Target("local", "small")], places=PLACES)
WILD = over("openai", "local", "openrouter", **{"*": ANY, "gpt-*": OPENAI, "gpt-*-mini": MINI, "gpt-4o": GPT})


@pytest.mark.parametrize(
    ("name", "upstream", "model"),
    [
        ("gpt-4o", "openai", "gpt-4o"),  # as configured, without a *
        ("gpt-5", "openai", "5"),
        ("gpt-5-mini", "local", "small"),  # the longer text after the * decides
        ("llama3", "local", "llama3"),
        ("gpt-", "local", "gpt-"),  # the * stands for something
        ("openrouter/meta/llama-3", "openrouter", "meta/llama-3"),  # as good as openrouter/*
    ],
)
def test_a_name_fits_the_pattern_that_says_most_of_it(name: str, upstream: str, model: str) -> None:
    target = WILD.resolve(name).targets[0]

    assert (target.upstream, target.model) == (upstream, model)


def test_what_the_star_stands_for_is_put_into_targets_and_fallbacks() -> None:
    way = WILD.resolve("gpt-5")

    assert way.targets == (Target("openai", "5", 2.0),)
    assert way.fallbacks == (Target("openrouter", "openai/5"),)
    assert (way.attempts, way.timeout) == (9, 5.0)


def test_a_pattern_may_take_over_an_upstream_of_that_name() -> None:
    aliases = over("openai", "local", **{"openai/*": ANY})

    assert aliases.resolve("openai/gpt-4o").targets == (Target("local", "gpt-4o"),)


def test_a_name_by_pattern_shares_its_entries_with_the_same_targets_by_another_name() -> None:
    assert WILD.resolve("llama3").identity == WILD.resolve("local/llama3").identity


def test_patterns_are_no_names_of_models() -> None:
    assert list(WILD.models) == ["gpt-4o"]
    assert not over("local", **{"gpt-*": ANY}).any_bare_name
    with pytest.raises(RequestError, match=r"known: gpt-\*, local/MODEL"):
        over("local", **{"gpt-*": ANY}).resolve("llama3")
