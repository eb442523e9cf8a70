"""Train the trees of service/caching/verifier.py, and measure them.

    python -m benchmarks.train_verifier --data DIR [--seed N] [--out FILE] [--words FILE] [--json FILE] [--vectors DIR]

DIR holds the labelled sets, one folder each. Learned from: gptcache_qqp, langcache_sources, mrpc, disfl_qa and half of
the intents of clinc150 (60 % of their components; 15 % choose the cut, 25 % test), and pairs made from the sentences
and swaps in benchmarks/templates.py. checklist_qqp, simclue_zh, and the nearest neighbours in banking77 and
osschat_clusters are measured and never learned from. Needs lightgbm; the gateway does not.
"""

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.embedding.minilm import REVISION
from benchmarks import templates
from benchmarks.verifier_data import CLASSES, Labelled, Vectors, halves, labelled, neighbours, strangers
from benchmarks.verifier_words import common, lines, said, says, word_weights
from service.caching import vocabulary
from service.caching.features import NAMES, Prepared, features, prepare
from service.caching.verifier import LEAVES, Trees, Verifier, dump, read

SHIPPED = Path(__file__).parents[1] / "service" / "caching" / "verifier"
SHARES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
# Candidates are not looked at below the cosine under which `FLOOR_MISSED` lie of those served at a cut; there are
# floors for the cuts of this share and below.
FLOOR_SHARE, FLOOR_MISSED, FLOOR_LEAST, FLOOR_UNKNOWN = 0.05, 0.005, 5, 0.95
EACH_TEMPLATE, EACH_SWAP = 40, 900
TEMPLATE_WEIGHT, SWAP_WEIGHT = 0.5, 0.4
_PARAMETERS = {
    "objective": "binary", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 40, "feature_fraction": 0.6,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 5.0, "use_missing": False, "max_bin": 255,
    "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
}  # fmt: skip
TREES = 300
# What a cosine of 1 adds to the trees' log-odds. The trees know public questions and the made ones; on the classes of
# banks' and chats' questions, which they never saw, they rank worse than the cosine, and with this much of it better
# than without, while recall on the public ones stays.
COSINE = 10.0
SWAPPED = ("gptcache_qqp", "mrpc", "sick", "disfl_qa")  # whose texts are changed


# Sets of changed questions that say more together: the same words in another order, of the same meaning or not.
TOGETHER = {"word order": ("swap two words", "swap two names", "same moved", "same and")}
_SETS = {"template": "templates", "swap": "swaps", "same": "swaps", "strangers": "gptcache_qqp"}  # of vectors
# Where more is never worse, or never better: what the sets show otherwise is how they were chosen.
_RISING = frozenset({"cosine", "cover_least", "jaccard", "soft_cover", "trigrams"})
_FALLING = frozenset({"heaviest_least", "lacking_least", "numbers_most", "numbers_least", "names_least", "identifiers"})


class Rows(NamedTuple):
    """Pairs and their features, row for row."""

    pairs: list[Labelled]
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    apart: list[tuple[str, ...]]  # stems that one of the two texts has

    def where(self, *, source: str | None = None, part: str | None = None, test: str | None = None) -> "Rows":
        keep = [
            (source is None or pair.source == source) and (part is None or pair.part == part)
            and (test is None or pair.test == test)
            for pair in self.pairs
        ]  # fmt: skip
        return self.only(np.array(keep, bool))

    def only(self, keep: NDArray[np.bool_]) -> "Rows":
        """Those for which `keep` holds."""
        places = np.flatnonzero(keep).tolist()
        return Rows(
            [self.pairs[place] for place in places],
            self.x[keep],
            self.y[keep],
            [self.apart[place] for place in places],
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--out", type=Path, help=f"where the trees go; the product reads {SHIPPED / 'trees.npz'}")
    parser.add_argument("--words", type=Path, help="where the words' weights go; made before training")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--vectors", type=Path, default=Path("vectors"), help="folder where embeddings are kept")
    options = parser.parse_args()
    options.vectors.mkdir(parents=True, exist_ok=True)

    pairs = labelled(options.data, seed=options.seed)
    weights = word_weights(pairs)
    if options.words is not None:
        options.words.write_text(lines(weights, {}), encoding="utf-8")
        vocabulary.forget()
    pairs += strangers(pairs, Vectors(options.vectors, "gptcache_qqp"), seed=options.seed)
    pairs += generated(pairs, seed=options.seed)
    for name in CLASSES:
        pairs += neighbours(options.data, name, Vectors(options.vectors, name), seed=options.seed)
    rows = looked(pairs, options.vectors)
    spoken = listened(rows, seed=options.seed)
    if options.words is not None:
        options.words.write_text(lines(weights, spoken), encoding="utf-8")
        vocabulary.forget()
    if options.out is not None:
        trees = train(rows, seed=options.seed)
        options.out.write_bytes(dump(trees))
    shipped = options.out or SHIPPED / "trees.npz"
    figures = measure(rows, Verifier(read(shipped.read_bytes(), revision=REVISION)), seed=options.seed)
    report(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def generated(pairs: Sequence[Labelled], *, seed: int, without: frozenset[str] = frozenset()) -> list[Labelled]:
    """From the sentences, and from questions that are learned from; and from those that are not, to test."""
    made: list[Labelled] = []
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    made += [
        Labelled(one.a, one.b, one.label, f"template {one.family}", "learn", TEMPLATE_WEIGHT)
        for one in templates.templates(EACH_TEMPLATE, draw, without=without)
    ]
    for part, each in (("learn", EACH_SWAP), ("test", EACH_SWAP // 3)):
        texts = sorted({pair.a for pair in pairs if pair.source in SWAPPED and pair.part == part})
        made += [
            Labelled(one.a, one.b, one.label, one.family, "learn" if part == "learn" else "test", SWAP_WEIGHT)
            for one in templates.swaps(texts, each, draw, without=without)
        ]
    return made


def looked(pairs: list[Labelled], folder: Path) -> Rows:
    """The features of all pairs; what has no vector yet is embedded."""
    cosines = np.zeros(len(pairs))
    by_set: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        kind = pair.source.partition(" ")[0]
        by_set.setdefault(_SETS.get(kind, kind), []).append(place)
    for name, places in by_set.items():
        vectors = Vectors(folder, name)
        vectors.add(text for place in places for text in (pairs[place].a, pairs[place].b))
        cosines[places] = vectors.cosines([pairs[place].a for place in places], [pairs[place].b for place in places])
    started = time.perf_counter()
    known: dict[str, Prepared] = {}
    x = np.empty((len(pairs), len(NAMES)))
    apart: list[tuple[str, ...]] = []
    for place, pair in enumerate(pairs):
        for text in (pair.a, pair.b):
            if text not in known:
                known[text] = prepare(text)
        one, other = known[pair.a], known[pair.b]
        x[place] = features(one, other, float(cosines[place]))
        apart.append(tuple(sorted(one.weights.keys() ^ other.weights.keys())))
    print(f"{len(pairs)} pairs looked at in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return Rows(pairs, x, np.array([pair.label for pair in pairs], np.int64), apart)


def listened(rows: Rows, *, seed: int) -> dict[str, float]:
    """Learns what words say and sets the feature `said` by it.

    What is returned is learned from all pairs to learn from, and used for the others. A pair that is learned from has
    it from the half of the components it is not in: else the trees would believe it more than it deserves.
    """
    column = NAMES.index("said")
    words = common(rows.pairs) & vocabulary.stems()
    half = halves(rows.pairs, seed=seed)
    learn = np.array([pair.part == "learn" for pair in rows.pairs])
    weight = np.array([pair.weight * (1.0 if pair.source == "gptcache_qqp" else 0.5) for pair in rows.pairs])
    rows.x[:, column] = 0.0

    def heard(keep: NDArray[np.bool_]) -> dict[str, float]:
        some = rows.only(keep)
        return says(some.x, some.y, weight[keep], some.apart, words)

    of_halves = [heard(learn & (half == number)) for number in (0, 1)]
    spoken = heard(learn)
    for keep, by in ((~learn, spoken), (learn & (half == 0), of_halves[1]), (learn & (half == 1), of_halves[0])):
        rows.x[keep, column] = said(rows.only(keep).apart, by)
    return spoken


def train(rows: Rows, *, seed: int, columns: Sequence[int] | None = None) -> Trees:
    """`columns` are the features that may be used, all by default."""
    import lightgbm

    learn = rows.where(part="learn")
    weight = np.array([pair.weight for pair in learn.pairs])
    x = learn.x
    if columns is not None:
        x = np.zeros_like(learn.x)
        x[:, columns] = learn.x[:, columns]
    started = time.perf_counter()
    data = lightgbm.Dataset(x, learn.y, weight=weight, feature_name=list(NAMES), free_raw_data=True)
    ways = [int(name in _RISING) - int(name in _FALLING) for name in NAMES]
    booster = lightgbm.train({**_PARAMETERS, "seed": seed, "monotone_constraints": ways}, data, num_boost_round=TREES)
    print(f"trained on {len(x)} pairs in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    digest = hashlib.sha256(np.ascontiguousarray(learn.x).tobytes()).hexdigest()[:8]
    trees = exported(booster.dump_model(), trained=f"{digest}-{seed}")
    chosen, seen = rows.where(source="gptcache_qqp", part="cut"), np.zeros(len(NAMES))
    seen[slice(None) if columns is None else columns] = 1.0
    trees = settled(trees._replace(cosine=COSINE), chosen.x * seen, chosen.y)
    verifier = Verifier(trees)
    p = verifier.judge(chosen.x * seen)
    different = np.sort(p[chosen.y == 0])[::-1]
    # Served is at or above: just above the first that must not be.
    cuts = {share: float(np.nextafter(different[int(share * len(different))], 1.0)) for share in SHARES}
    floors = {share: _floors(rows, verifier, cuts[share]) for share in SHARES if share <= FLOOR_SHARE}
    return trees._replace(cuts=cuts, floors=floors)


def settled(trees: Trees, x: NDArray[np.float64], y: NDArray[np.int64]) -> Trees:
    """Scaled and shifted, so that P is the share of pairs with one answer (Platt, 1999); the order stays."""
    score = Verifier(trees).scores(x)
    middle, spread = float(score.mean()), float(score.std())
    sides, found = np.stack([(score - middle) / spread, np.ones(len(score))]), np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-(found @ sides)))
        found += np.linalg.solve((sides * (p * (1 - p))) @ sides.T, sides @ (y - p))
    scale = float(found[0]) / spread
    bias = float(found[1]) - scale * middle
    value = (scale * trees.value).astype(np.float32).astype(np.float64)
    return trees._replace(value=value, cosine=scale * trees.cosine, bias=bias)


def _floors(rows: Rows, verifier: Verifier, cut: float) -> tuple[float, ...]:
    known = rows.where(source="gptcache_qqp", part="cut")
    served = verifier.judge(known.x) >= cut
    cosine = known.x[:, NAMES.index("cosine")]
    tenths = (10 * known.x[:, NAMES.index("content")] + 1e-9).astype(int)
    floors: list[float] = []
    for tenth in range(11):
        of = cosine[served & (tenths == tenth)]
        floor = round(float(np.quantile(of, FLOOR_MISSED)), 3) if len(of) >= FLOOR_LEAST else FLOOR_UNKNOWN
        # With more words shared, it only falls.
        floors.append(min([floor, *floors]))
    return tuple(floors)


def exported(model: dict[str, Any], *, trained: str) -> Trees:
    """LightGBM's trees with a mask for each node: the leaves still possible when its comparison fails."""
    trees = [tree["tree_structure"] for tree in model["tree_info"]]
    nodes = LEAVES - 1
    feature = np.zeros((nodes, len(trees)), np.int64)
    threshold = np.full((nodes, len(trees)), np.inf)
    mask = np.full((nodes, len(trees)), 0xFFFF, np.uint16)
    value = np.zeros((len(trees), LEAVES))
    for number, tree in enumerate(trees):
        place, leaf = 0, 0

        def walk(node: dict[str, Any], number: int = number) -> int:
            """The leaves below, as bits."""
            nonlocal place, leaf
            if "split_feature" not in node:
                value[number, leaf] = node["leaf_value"]
                leaf += 1
                return 1 << (leaf - 1)
            at, place = place, place + 1
            if node["decision_type"] != "<=":
                raise ValueError(f"a tree decides by {node['decision_type']}")
            left = walk(node["left_child"])
            feature[at, number], threshold[at, number] = node["split_feature"], node["threshold"]
            mask[at, number] = 0xFFFF ^ left
            return left | walk(node["right_child"])

        walk(tree)
    return Trees(feature, threshold, mask, value.astype(np.float32).astype(np.float64), 0.0, REVISION, trained, {}, {})


def measure(rows: Rows, verifier: Verifier, *, seed: int) -> dict[str, Any]:
    """Recall at given shares of different pairs served, and shares served at the shipped cut; with 95 % intervals."""
    figures: dict[str, Any] = {
        "cuts": {str(share): verifier.cut(share) for share in SHARES},
        "recall": {},
        "served": {},
    }
    cut = verifier.cut()
    tested = {name: rows.where(source=name, part="test") for name in dict.fromkeys(pair.source for pair in rows.pairs)}
    for name, sources in TOGETHER.items():
        keep = np.array([pair.source in sources and pair.part == "test" for pair in rows.pairs])
        tested[name] = rows.only(keep)
    for name, one in tested.items():
        if not len(one.y):
            continue
        p = verifier.judge(one.x)
        if 0 < one.y.sum() < len(one.y):
            figures["recall"][name] = {
                "n": len(one.y), "same": int(one.y.sum()),
                "P": _recalls(p, one.y, seed), "cosine": _recalls(one.x[:, 0], one.y, seed),
                "auc P": _auc(p, one.y), "auc cosine": _auc(one.x[:, 0], one.y),
            }  # fmt: skip
        tests = dict.fromkeys(pair.test for pair in one.pairs)
        for test in tests:
            subset = one.where(test=test)
            p = verifier.judge(subset.x)
            for label in (0, 1):
                of = p[subset.y == label]
                if len(of):
                    key = f"{name}: {test}" if test else name
                    figures["served"][f"{key} [{'same' if label else 'different'}]"] = {
                        "n": len(of), "served": float((of >= cut).mean()),
                        "interval": wilson(int((of >= cut).sum()), len(of)),
                        "cosine .9": float((subset.x[subset.y == label, 0] >= 0.9).mean()),
                    }  # fmt: skip
    return figures


def _recalls(score: NDArray[np.float64], y: NDArray[np.int64], seed: int) -> dict[str, list[float]]:
    """Recall with at most 1, 2 and 5 % of the different served, and its bootstrap interval."""
    draw = np.random.default_rng(seed)
    found = {share: [_recall(score, y, share)] for share in (0.01, 0.02, 0.05)}
    for _ in range(100):
        again = draw.integers(0, len(y), len(y))
        for share, values in found.items():
            values.append(_recall(score[again], y[again], share))
    return {
        str(share): [round(values[0], 4), *(round(float(edge), 4) for edge in np.quantile(values[1:], (0.025, 0.975)))]
        for share, values in found.items()
    }


def _recall(score: NDArray[np.float64], y: NDArray[np.int64], share: float) -> float:
    different = np.sort(score[y == 0])[::-1]
    cut = different[min(int(share * len(different)), len(different) - 1)]
    return float((score[y == 1] > cut).mean())


def _auc(score: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    order = np.argsort(score, kind="stable")
    ranks = np.empty(len(y))
    ranks[order] = np.arange(1, len(y) + 1)
    same = int(y.sum())
    return float((ranks[y == 1].sum() - same * (same + 1) / 2) / (same * (len(y) - same)))


def wilson(hits: int, of: int) -> list[float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    share = hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return [
        round(max(0.0, (middle - half) / (1 + z * z / of)), 5),
        round(min(1.0, (middle + half) / (1 + z * z / of)), 5),
    ]


def report(figures: dict[str, Any]) -> None:
    print("cuts " + ", ".join(f"{share}: {cut:.4f}" for share, cut in figures["cuts"].items()))
    heads = f"{'n':>6} {'P':>16} {'interval at 1 %':>18} {'cosine':>16} {'AUC P':>7} {'cos':>6}"
    print(f"{'recall at 1/2/5 % of the different':36} {heads}")
    for name, row in figures["recall"].items():
        ours = " ".join(f"{values[0]:.3f}" for values in row["P"].values())
        theirs = " ".join(f"{values[0]:.3f}" for values in row["cosine"].values())
        low, high = row["P"]["0.01"][1:]
        aucs = f"{row['auc P']:7.4f} {row['auc cosine']:6.4f}"
        print(f"{name:36} {row['n']:>6} {ours:>16}    {low:.3f} to {high:.3f} {theirs:>16} {aucs}")
    print(f"{'served at the shipped cut':100} {'n':>5} {'served':>7} {'interval':>17} {'cos .9':>7}")
    for name, row in figures["served"].items():
        low, high = row["interval"]
        print(f"{name[-100:]:100} {row['n']:>5} {row['served']:7.4f} {low:8.4f} {high:8.4f} {row['cosine .9']:7.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
