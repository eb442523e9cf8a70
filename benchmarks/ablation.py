"""What each group of features, each family of sentences and each labelled set is worth to the verifier.

    python -m benchmarks.ablation --data DIR [--seed N] [--vectors DIR] [--json FILE] [--only TEXT]

Trains as benchmarks/train_verifier.py does, each time without one of them, and prints what that costs on pairs that
were not learned from: recall on gptcache_qqp, different pairs of the traps served at a cut of 1 %. Negative is worse
for recall, positive is worse for what is served.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import templates, train_verifier
from benchmarks.train_verifier import Rows
from benchmarks.verifier_data import LEARNED, Vectors, labelled, strangers
from service.caching.features import FEATURES, GROUPS, NAMES
from service.caching.verifier import Verifier


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--vectors", type=Path, default=Path("vectors"), help="folder where embeddings are kept")
    parser.add_argument("--only", default="", help="leave out only what has this in its name")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()

    pairs = labelled(options.data, seed=options.seed)
    pairs += strangers(pairs, Vectors(options.vectors, "gptcache_qqp"), seed=options.seed)
    pairs += train_verifier.generated(pairs, seed=options.seed)
    rows = train_verifier.looked(pairs, options.vectors)
    train_verifier.listened(rows, seed=options.seed)
    whole = _figures(rows, rows, seed=options.seed)
    figures = {"nothing left out": whole}
    _print("left out", whole)
    _print("nothing", whole)
    for name, learned, columns in _variants(rows):
        if options.only in name:
            figures[name] = _figures(learned, rows, seed=options.seed, columns=columns)
            _print(name, {key: value - whole[key] for key, value in figures[name].items()}, sign="+")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _variants(rows: Rows) -> list[tuple[str, Rows, list[int] | None]]:
    variants: list[tuple[str, Rows, list[int] | None]] = []
    for group in GROUPS:
        columns = [place for place, name in enumerate(NAMES) if FEATURES[name][0] != group]
        variants.append((f"features: {group}", rows, columns))
    families = [f"template {family}" for family in templates.TEMPLATES]
    swaps = [family for family in templates.SWAPS if family.startswith("swap")]
    rewordings = [family for family in templates.SWAPS if family.startswith("same")]
    for name, sources in (("all sentences", families), ("all swaps", swaps), ("all rewordings", rewordings)):
        variants.append((name, _without(rows, set(sources)), None))
    variants += [(name, _without(rows, {name}), None) for name in (*families, *swaps, *rewordings)]
    variants += [
        (f"learning from {name}", _without(rows, {name}), None)
        for name in (*LEARNED, "clinc150", "strangers")
        if name != "gptcache_qqp"
    ]
    return variants


def _without(rows: Rows, sources: set[str]) -> Rows:
    keep = np.array([pair.source not in sources or pair.part != "learn" for pair in rows.pairs])
    return rows.only(keep)


def _figures(learned: Rows, rows: Rows, *, seed: int, columns: list[int] | None = None) -> dict[str, float]:
    verifier = Verifier(train_verifier.train(learned, seed=seed, columns=columns))
    kept = np.zeros(len(NAMES))
    kept[columns if columns is not None else slice(None)] = 1.0

    def judged(source: str, label: int) -> Any:
        one = rows.where(source=source, part="test")
        return verifier.judge((one.x * kept)[one.y == label])

    cut = verifier.cut()
    same, different = judged("gptcache_qqp", 1), np.sort(judged("gptcache_qqp", 0))[::-1]
    figures = {
        f"qqp {share:.0%}": float((same > different[int(share * len(different))]).mean())
        for share in (0.01, 0.02, 0.05)
    }
    figures["apt same"] = float((judged("apt", 1) >= cut).mean())
    figures["apt different"] = float((judged("apt", 0) >= cut).mean())
    figures["traps"] = float((judged("checklist_qqp", 0) >= cut).mean())
    figures["traps same"] = float((judged("checklist_qqp", 1) >= cut).mean())
    changed = [judged(name, 0) for name in templates.SWAPS if name.startswith("swap")]
    figures["swaps"] = float((np.concatenate(changed) >= cut).mean())
    return figures


def _print(name: str, figures: dict[str, float], *, sign: str = "") -> None:
    if name == "left out":
        print(f"{name:32}" + "".join(f"{key:>14}" for key in figures))
    else:
        print(f"{name:32}" + "".join(f"{value:{sign}14.4f}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
