"""What a second opinion is worth beside the verifier, on pairs that neither learned from.

    python -m benchmarks.second_opinion --data DIR --model FOLDER [--write] [--vectors DIR] [--seed N] [--json FILE]
        [--most N]

FOLDER holds an ONNX cross-encoder: that of benchmarks/train_cross_encoder.py, or one's own. Fits how it is weighed
beside the shipped verifier to the pairs that choose the verifier's cut, and prints what both are worth on those that
test: alone, weighed by that fit, and weighed as a judge is that nobody measured. `--write` keeps the fit as
FOLDER/second_opinion.json, where the gateway reads it.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.embedding.minilm import REVISION
from backends.judging.onnx import CrossEncoder
from benchmarks import templates
from benchmarks.train_verifier import SHARES, SWAP_WEIGHT, SWAPPED, TOGETHER, generated, looked, wilson
from benchmarks.verifier_data import Labelled, labelled
from models.errors import TextRefused
from service.caching.features import prepare
from service.caching.second_opinion import DEFAULT, Weights, dump, read, undecided, weighed
from service.caching.verifier import Verifier, load
from service.caching.vetoes import conflict

_MOST = 4.0  # log odds of an opinion beyond which it says no more
_LEAST_CHANCE = 1e-6
_SWAPS_TO_FIT = 200  # of each kind, made from questions that choose the cut
_DRAWS = 200
# With a limit, of all other sets this part of it.
_MAIN, _LESS = ("gptcache_qqp", "checklist_qqp", "apt"), 8

Numbers = NDArray[np.float64]


class Judged(NamedTuple):
    """Pairs with the verifier's P and the judge's opinion (NaN for none); `vetoed` where no P would serve."""

    pairs: list[Labelled]
    y: NDArray[np.int64]
    chance: Numbers
    opinion: Numbers
    vetoed: NDArray[np.bool_]

    def where(self, keep: NDArray[np.bool_]) -> "Judged":
        pairs = [pair for pair, kept in zip(self.pairs, keep, strict=True) if kept]
        return Judged(pairs, self.y[keep], self.chance[keep], self.opinion[keep], self.vetoed[keep])

    def of(self, sources: Sequence[str], part: str, test: str | None = None) -> "Judged":
        keep = [
            pair.source in sources and pair.part == part and (test is None or pair.test == test) for pair in self.pairs
        ]
        return self.where(np.array(keep, bool))

    def both(self, weights: Weights) -> Numbers:
        return np.array(
            [
                weighed(chance, None if np.isnan(opinion) else opinion, weights)
                for chance, opinion in zip(self.chance.tolist(), self.opinion.tolist(), strict=True)
            ]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--model", type=Path, required=True, help="folder of the cross-encoder")
    parser.add_argument("--write", action="store_true", help="keep how it is weighed in that folder")
    parser.add_argument("--seed", type=int, default=6, help="as the verifier was trained with")
    parser.add_argument("--vectors", type=Path, default=Path("vectors"), help="folder where embeddings are kept")
    parser.add_argument("--most", type=int, help="for a quick look: pairs of a main set and part")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    options.vectors.mkdir(parents=True, exist_ok=True)

    verifier = load(REVISION)
    judge = CrossEncoder(options.model)
    rows = judged(options.data, options.vectors, verifier, judge, seed=options.seed, most=options.most)
    weights = fitted(rows, verifier)
    content = dump(weights, judge=judge.revision, verifier=verifier.revision)
    weights = read(content, judge=judge.revision, verifier=verifier.revision)
    if options.write:
        (options.model / "second_opinion.json").write_bytes(content)
    figures = measured(rows, verifier, weights, seed=options.seed)
    figures |= {"judge": judge.revision, "verifier": verifier.revision, "weights": json.loads(content)}
    report(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def judged(
    data: Path, vectors: Path, verifier: Verifier, judge: CrossEncoder, *, seed: int, most: int | None
) -> Judged:
    """Pairs that the verifier and the cross-encoder did not learn from, and swaps of those that choose the cut; at
    most so many of a main set and part, and an eighth of the others."""
    pairs = labelled(data, seed=seed)
    pairs += generated(pairs, seed=seed)
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    texts = sorted({pair.a for pair in pairs if pair.source in SWAPPED and pair.part == "cut"})
    pairs += [
        Labelled(one.a, one.b, one.label, one.family, "cut", SWAP_WEIGHT)
        for one in templates.swaps(texts, _SWAPS_TO_FIT, draw)
    ]
    chosen: dict[tuple[str, str], list[Labelled]] = {}
    for pair in pairs:
        if pair.part != "learn":
            chosen.setdefault((pair.source, pair.part), []).append(pair)
    few = []
    for (source, _), of in chosen.items():
        limit = len(of) if most is None else most if source in _MAIN else most // _LESS
        draw.shuffle(of)  # so that more pairs are those of before and others
        few.append(of[:limit])
    rows = looked([pair for of in few for pair in of], vectors)
    opinions = _opinions(judge, rows.pairs, vectors)
    vetoed = [conflict(prepare(pair.a), prepare(pair.b)) is not None for pair in rows.pairs]
    return Judged(rows.pairs, rows.y, verifier.judge(rows.x), opinions, np.array(vetoed, bool))


def _opinions(judge: CrossEncoder, pairs: Sequence[Labelled], folder: Path) -> Numbers:
    """Of each pair, NaN for none; kept in the folder by the judge's revision and the pair, for the next time."""
    kept = folder / f"opinions-{hashlib.sha256(judge.revision.encode()).hexdigest()[:12]}.jsonl"
    known: dict[str, float | None] = {}
    if kept.exists():
        for line in kept.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a last line that was cut off
                name, opinion = json.loads(line)
                known[name] = opinion
    judge.open()
    asked, began = 0, time.process_time()
    with kept.open("a", encoding="utf-8") as file:
        file.write("\n")
        for pair in pairs:
            name = _name(pair)
            if name not in known:
                known[name] = None
                with suppress(TextRefused):
                    known[name] = judge.opinion(pair.a, pair.b)
                file.write(json.dumps([name, known[name]]) + "\n")
                asked += 1
    per_pair = (time.process_time() - began) / max(1, asked) * 1e3
    print(f"{asked} pairs judged, {per_pair:.2f} ms of a core each", file=sys.stderr)
    found = [known[_name(pair)] for pair in pairs]
    return np.array([np.nan if opinion is None else opinion for opinion in found])


def _name(pair: Labelled) -> str:
    return hashlib.sha256(json.dumps([pair.a, pair.b]).encode()).hexdigest()[:20]


def fitted(rows: Judged, verifier: Verifier) -> Weights:
    """A logistic regression on the log odds of both, then the levels at which as much is served as by the verifier.

    On pairs that choose the verifier's cut; a pair weighs what it does for the verifier.
    """
    keep = np.array([pair.part == "cut" for pair in rows.pairs]) & ~np.isnan(rows.opinion)
    known = rows.where(keep)
    x = np.column_stack(
        [_log_odds(known.chance), np.clip(_log_odds(known.opinion), -_MOST, _MOST), np.ones(len(known.y))]
    )
    weight = np.array([pair.weight for pair in known.pairs])
    chance, opinion, bias = _regressed(x, known.y, weight).tolist()
    if opinion < 0:  # a judge that knows nothing beyond the verifier is not turned round
        (chance, bias), opinion = _regressed(x[:, [0, 2]], known.y, weight).tolist(), 0.0
    plain = Weights(bias=bias, chance=chance, opinion=opinion, most=_MOST)
    chosen = known.of(["gptcache_qqp"], "cut")
    different = np.sort(_log_odds(chosen.both(plain))[chosen.y == 0])[::-1]
    levels: list[tuple[float, float]] = []
    for share in sorted(SHARES, reverse=True):
        total = float(different[int(share * len(different))])
        level = total, float(_log_odds(np.array([verifier.cut(share)]))[0])
        if not levels or (level[0] > levels[-1][0] and level[1] > levels[-1][1]):  # else there are too few pairs
            levels.append(level)
    return Weights(bias=bias, chance=chance, opinion=opinion, most=_MOST, levels=tuple(levels))


def _regressed(x: Numbers, y: NDArray[np.int64], weight: Numbers) -> Numbers:
    """The likeliest weights (Newton's method), drawn a little towards none."""
    found = np.zeros(x.shape[1])
    for _ in range(50):
        chance = 0.5 * (1 + np.tanh(0.5 * x @ found))
        slope = x.T @ (weight * (chance - y)) + 1e-3 * found
        bend = (x * (weight * chance * (1 - chance))[:, None]).T @ x + 1e-3 * np.eye(len(found))
        change = np.linalg.solve(bend, slope)
        found -= change
        if float(np.abs(change).max()) < 1e-9:
            break
    return found


def measured(rows: Judged, verifier: Verifier, weights: Weights, *, seed: int) -> dict[str, Any]:
    """Recall at given shares of different pairs served; and what is served at the shipped cut, as in the gateway."""
    cut = verifier.cut()
    sources = {name: [name] for name in dict.fromkeys(pair.source for pair in rows.pairs)}
    sources |= {name: list(parts) for name, parts in TOGETHER.items()}
    sources["all swaps"] = [name for name in sources if name.startswith("swap ")]
    sources["all rewordings"] = [name for name in sources if name.startswith("same ")]
    figures: dict[str, Any] = {"cut": cut, "recall": {}, "served": {}}
    for name, parts in sources.items():
        one = rows.of(parts, "test")
        if 0 < one.y.sum() < len(one.y):
            scores = {
                "verifier": one.chance,
                "opinion": np.where(np.isnan(one.opinion), -1.0, one.opinion),
                "both": one.both(weights),
                "unmeasured": one.both(DEFAULT),
            }
            figures["recall"][name] = {"n": len(one.y), **_recalls(scores, one.y, seed)}
        tests: list[str | None] = list(dict.fromkeys(pair.test for pair in one.pairs))
        for test in tests if len(tests) == 1 else [None, *tests]:
            for label in (0, 1):
                few = one.of(parts, "test", test)
                few = few.where(few.y == label)
                if len(few.y):
                    key = f"{name}: {test}" if test else name
                    key = f"{key} [{'same' if label else 'different'}]"
                    figures["served"][key] = _served(few, cut, weights)
    return figures


def _served(rows: Judged, cut: float, weights: Weights) -> dict[str, Any]:
    def serves(_place: int, chance: float) -> bool:
        return chance >= cut

    alone = (rows.chance >= cut) & ~rows.vetoed
    found: dict[str, Any] = {"n": len(alone), "verifier": [float(alone.mean()), *wilson(int(alone.sum()), len(alone))]}
    for name, how in (("both", weights), ("unmeasured", DEFAULT)):
        asked = np.array(
            [
                bool(undecided([None if vetoed else chance], serves, how))
                for chance, vetoed in zip(rows.chance.tolist(), rows.vetoed.tolist(), strict=True)
            ]
        )
        served = np.where(asked, rows.both(how) >= cut, alone)
        found[name] = [float(served.mean()), *wilson(int(served.sum()), len(served))]
        found[f"{name}: asked"] = float(asked.mean())
    return found


def _recalls(scores: dict[str, Numbers], y: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """By share and score, with a bootstrap's interval; for `both` also that of what it adds to the verifier's."""
    shares = (0.01, 0.02, 0.05)
    draw = np.random.default_rng(seed)
    plain = {name: [_recall(score, y, share) for share in shares] for name, score in scores.items()}
    again: dict[str, list[list[float]]] = {name: [] for name in scores}
    for _ in range(_DRAWS):
        drawn = draw.integers(0, len(y), len(y))
        for name, score in scores.items():
            again[name].append([_recall(score[drawn], y[drawn], share) for share in shares])
    added = np.array(again["both"]) - np.array(again["verifier"])
    return {
        **{
            name: {"recall": values, "interval": np.quantile(again[name], (0.025, 0.975), axis=0).T.tolist()}
            for name, values in plain.items()
        },
        "added": np.quantile(added, (0.025, 0.975), axis=0).T.tolist(),
    }


def _recall(score: Numbers, y: NDArray[np.int64], share: float) -> float:
    different = np.sort(score[y == 0])[::-1]
    if not len(different) or not y.any():
        return 0.0
    return float((score[y == 1] > different[min(int(share * len(different)), len(different) - 1)]).mean())


def _log_odds(chance: Numbers) -> Numbers:
    kept = np.clip(chance, _LEAST_CHANCE, 1 - _LEAST_CHANCE)
    return np.asarray(np.log(kept) - np.log1p(-kept), np.float64)


def report(figures: dict[str, Any]) -> None:
    weights = figures["weights"]
    print(f"{figures['judge']} beside the verifier {figures['verifier']}")
    print("weighed: " + ", ".join(f"{name} {weights[name]:.3f}" for name in ("bias", "chance", "opinion", "most")))
    print(f"\n{'recall at 1/2/5 % of the different':36} {'n':>6}", end="")
    print("".join(f"{name:>18}" for name in ("verifier", "opinion", "both", "unmeasured")), "  both adds, 95 % at 1 %")
    for name, row in figures["recall"].items():
        columns = [
            " ".join(f"{value:.3f}" for value in row[how]["recall"])
            for how in ("verifier", "opinion", "both", "unmeasured")
        ]
        low, high = row["added"][0]
        print(f"{name:36} {row['n']:>6}" + "".join(f"{one:>18}" for one in columns) + f"   {low:+.3f} to {high:+.3f}")
    heads = f"{'n':>6} {'verifier':>20} {'both':>20} asked {'unmeasured':>20} asked"
    print(f"\n{'served at the cut of 1 %, per cent':72} {heads}")
    for name, row in figures["served"].items():
        shown = [
            f"{100 * row[how][0]:.2f} ({100 * row[how][1]:.1f}-{100 * row[how][2]:.1f})"
            for how in ("verifier", "both", "unmeasured")
        ]
        asked = [f"{100 * row[f'{how}: asked']:.0f}" for how in ("both", "unmeasured")]
        print(f"{name[-72:]:72} {row['n']:>6} {shown[0]:>20} {shown[1]:>20} {asked[0]:>5} {shown[2]:>20} {asked[1]:>5}")


if __name__ == "__main__":
    raise SystemExit(main())
