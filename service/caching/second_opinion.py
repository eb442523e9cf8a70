"""What a judge's opinion changes of the verifier's P, and which candidates are worth asking about.

An opinion costs more than all the rest of a look-up, so it is asked for where
it can change what is served: of the likeliest one or two candidates, with a P
near the cut. It moves P by a bounded step. Whatever the judge says, what it
makes servable was near the cut before; and no opinion changes nothing.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise

import msgspec

from models.errors import ConfigError

MOST_ASKED = 2
_FORMAT = 1
_LEAST_CHANCE = 1e-6


class Weights(msgspec.Struct, frozen=True):
    """How the two are weighed: `bias + chance * log odds of P + opinion * log odds of the opinion`, the latter at most
    `most` in either direction.

    `levels` takes that to the log odds of a P that means what the verifier's
    does: pairs, both rising, the first the weighed sum and the second the log
    odds of P at which as many different questions are served. Between them it
    is linear, beyond them a step is a step. Without levels it is the sum.
    `revision` is part of whatever is certified with these weights.
    """

    bias: float
    chance: float
    opinion: float
    most: float
    levels: tuple[tuple[float, float], ...] = ()
    revision: str = "default/1"


# For a judge that nobody measured beside the verifier. A yes adds .42 to the log odds, which lies between the cuts of
# 1 and 2 % of different questions served; a no takes 1.1, which lies between those of .15 and 1 %. So one that says yes
# to everything makes the cache serve about as at the 2 % cut (2.3 % of 12,695 different pairs).
DEFAULT = Weights(bias=-0.34, chance=1.0, opinion=0.76, most=1.0)


def weighed(chance: float, opinion: float | None, weights: Weights = DEFAULT) -> float:
    """P by the verifier (`chance`) and the judge, both in [0, 1]. Rises with both.

    Without an opinion it is the verifier's. One that is no number in [0, 1] is none.
    """
    if opinion is None or not 0.0 <= opinion <= 1.0:
        return chance
    leaning = min(max(_log_odds(opinion), -weights.most), weights.most)
    total = weights.bias + weights.chance * _log_odds(chance) + weights.opinion * leaning
    return 0.5 * (1.0 + math.tanh(0.5 * _levelled(total, weights.levels)))


def undecided(
    chances: Sequence[float | None],
    serves: Callable[[int, float], bool],
    weights: Weights = DEFAULT,
    *,
    most: int = MOST_ASKED,
) -> list[tuple[int, float]]:
    """Place and P of at most `most` candidates, the likeliest first, whose opinion could change what is served.

    `chances` are the verifier's, None for one that is vetoed: no opinion
    outweighs a veto. `serves` says whether the candidate at that place would
    be served with that P, and is true from some P on. None is asked about behind one that is
    served whatever its judge says, as it is the likelier answer.
    """
    found: list[tuple[int, float]] = []
    ranked = sorted(
        ((chance, place) for place, chance in enumerate(chances) if chance is not None),
        key=lambda one: (-one[0], one[1]),
    )
    for chance, place in ranked:
        if len(found) == most or serves(place, weighed(chance, 0.0, weights)):
            break
        if serves(place, weighed(chance, 1.0, weights)):
            found.append((place, chance))
    return found


def read(content: bytes, *, judge: str, verifier: str) -> Weights:
    """Weights that were fitted to the judge and the verifier of these revisions (benchmarks/second_opinion.py).

    Raises `ConfigError` for those of others, or what cannot be used.
    """
    try:
        about = json.loads(content)
        number, fitted_to = about["format"], (str(about["judge"]), str(about["verifier"]))
        levels = tuple((float(total), float(log_odds)) for total, log_odds in about["levels"])
        bias, chance, opinion, most = (float(about[name]) for name in ("bias", "chance", "opinion", "most"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"this is no file of a second opinion's weights ({type(error).__name__})") from error
    if number != _FORMAT or fitted_to != (judge, verifier):
        raise ConfigError(
            f"the weights were fitted to {fitted_to[0]} beside the verifier {fitted_to[1]}, "
            f"these are {judge} and {verifier}: fit them again, or remove second_opinion.json for the default ones"
        )
    values = (bias, chance, opinion, most, *(value for level in levels for value in level))
    rising = all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(levels))
    if not all(math.isfinite(value) for value in values) or chance <= 0 or opinion < 0 or most < 0 or not rising:
        raise ConfigError("the weights of a second opinion must be finite, and what they give must rise with both")
    weights = Weights(bias, chance, opinion, most, levels)
    return msgspec.structs.replace(weights, revision=f"{judge}/{_digest(values)}")


def dump(weights: Weights, *, judge: str, verifier: str) -> bytes:
    """The file that `read` reads."""
    about = {
        "format": _FORMAT, "judge": judge, "verifier": verifier, "bias": weights.bias, "chance": weights.chance,
        "opinion": weights.opinion, "most": weights.most, "levels": [list(level) for level in weights.levels],
    }  # fmt: skip
    return json.dumps(about, indent=1).encode() + b"\n"


def _digest(values: Sequence[float]) -> str:
    return blake2b(json.dumps(values).encode(), digest_size=4).hexdigest()


def _levelled(total: float, levels: Sequence[tuple[float, float]]) -> float:
    if not levels:
        return total
    place = bisect_right(levels, total, key=lambda level: level[0])
    if place == 0:
        return levels[0][1] + total - levels[0][0]
    if place == len(levels):
        return levels[-1][1] + total - levels[-1][0]
    (left, low), (right, high) = levels[place - 1], levels[place]
    return low + (high - low) * (total - left) / (right - left)


def _log_odds(chance: float) -> float:
    chance = min(max(chance, _LEAST_CHANCE), 1 - _LEAST_CHANCE)
    return math.log(chance) - math.log1p(-chance)
