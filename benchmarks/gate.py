"""Would a static embedding pay as a gate in front of the transformer: what it spares, what it loses, what it costs.

    python -m benchmarks.gate --data DIR [--vectors DIR] [--beside FOLDER] [--only recall|cost|empty] [--sizes N ...]
        [--threshold T] [--seed 6] [--json FILE]

The gate: where nothing in a request's namespace has a static cosine of `t` or more to it, the request is taken for a
miss and the transformer does not run. It is judged by the full path, which embeds, takes the ten nearest and serves one
that nothing vetoes and to which the shipped verifier gives its shipped cut. Texts with tokens that the table does not
know, or letters that are not Latin, always pass.

recall    of the requests that the full path serves, and of those with a neighbour at a cosine of .8, the share that the
          gate lets through; of the unique ones (not served, and no label says that something stored is the same), the
          share that is spared. Thresholds are chosen on one half of
          the requests and all figures are of the other half: one that loses at most 1 % of what is served in each set
          and size, one that does so in all of them together; and beside them, of each set, its own in hindsight.
          Sizes are 100 (20 namespaces), 10,000 and 50,000 entries; what a set is too small for is filled up from
          gptcache_qqp. `, foreign` is a set that is asked only, of gptcache_qqp alone.
lazy      unique requests, each of which is kept: how many texts are embedded if a stored one is embedded only when a
          request comes near it, and how many of the entries that are served are near enough themselves.
cost      one process, one request after the other: embed, search, judge, keep (FaissStore on disk). `full`; `gated`: a
          miss is embedded after it went upstream; `lazy`: it is not until something comes near it. CPU time a
          request is of all threads, `miss` the wall time until it goes upstream. Traffic is gptcache_qqp without
          exact repeats: `unique` has no paraphrase of anything stored, `chat-real` 2 %, `faq` 37 %, as in `keepgate
          bench cache`; `unique, foreign` is search_queries.
empty     of the streams of `keepgate bench cache`: look-ups in a namespace without entries, entries that stay alone in
          theirs.

`--vectors` is where embeddings are kept; `--beside` a folder with another static model's `table.npy` (a row a token)
and `tokenizer.json`, to compare with. Texts are embedded one at a time: the first run takes minutes.
"""

import argparse
import asyncio
import hashlib
import json
import math
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from backends.embedding import minilm, static
from backends.embedding.onnx import OnnxEmbedder
from backends.embedding.static import StaticEmbedder
from backends.vector.faiss import FaissStore
from backends.vector.rows import Rows, closest
from benchmarks.verifier_data import Vectors, lines
from service.bench import cache_policies, cache_traffic
from service.caching.features import Prepared, prepare
from service.caching.verifier import Verifier, load
from service.caching.vetoes import conflict

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_SIZES = (100, 10_000, 50_000)
_LARGE = 50_000
_ASKED = 2_000  # of each kind in each set and size, at most
_CANDIDATES = 10
_NEAR = 0.8
_RECALL = 0.99
_ENOUGH = 50  # served requests without which a set has no say
_FILL = "gptcache_qqp"
_PAIRS = 40_000  # of gptcache_qqp that are read
_BACKGROUND = ("llm_prompts", "search_queries")
_UNIQUE = ("gptcache_qqp", *_BACKGROUND)
_LAZY = 4_000
_TIMED = 200  # requests of each path
_MOST_WAITING = 10  # stored entries that one request embeds
_TRAFFIC = (
    ("unique", 0.0, _FILL),
    ("unique, foreign", 0.0, "search_queries"),
    ("chat-real", 0.02, _FILL),
    ("faq", 0.37, _FILL),
)


class Texts(NamedTuple):
    """`pairs` are those labelled as the same."""

    name: str
    texts: list[str]
    pairs: list[tuple[int, int]]


class Asked(NamedTuple):
    """One namespace and what is asked of it, as places in a list of texts. `alike` are those of the asked that are said
    to be the same as something stored."""

    stored: list[int]
    asked: list[int]
    alike: frozenset[int]


class Looked(NamedTuple):
    """A request: its text, the entry that the full path serves, whether one is near, whether none is said to be the
    same."""

    text: int
    served: int | None
    near: bool
    unique: bool
    first_half: bool


class Outcome(NamedTuple):
    """A row a request. `nearest` is the static cosine to the nearest entry, `own` to the one that is served."""

    served: Bools
    near: Bools
    unique: Bools
    nearest: Floats
    own: Floats
    first_half: Bools


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--vectors", type=Path, default=Path("vectors"), help="folder where embeddings are kept")
    parser.add_argument("--beside", type=Path, help="folder of another static model")
    parser.add_argument("--only", choices=("recall", "cost", "empty"))
    parser.add_argument("--threshold", type=float, default=0.72, help="of the gate whose cost is measured")
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, help="of namespaces whose cost is measured")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()

    if options.only in (None, "empty"):
        print(json.dumps(empty(options.data), indent=1))
    if options.only == "empty":
        return 0
    sets = read(options.data)
    if options.only == "cost":
        sets = [one for one in sets if one.name in (_FILL, "search_queries")]
    options.vectors.mkdir(parents=True, exist_ok=True)
    embedded = [_embedded(one, options.vectors) for one in sets]
    figures: dict[str, Any] = {}
    if options.only != "cost":
        figures["recall"] = recall(sets, np.concatenate(embedded), options)
    if options.only != "recall":
        vectors = {one.name: rows for one, rows in zip(sets, embedded, strict=True)}
        named = {one.name: one for one in sets}
        figures["cost"] = asyncio.run(costs(named, vectors, options.threshold, options.sizes, seed=options.seed))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def recall(sets: Sequence[Texts], vectors: Floats, options: argparse.Namespace) -> dict[str, Any]:
    texts = [text for one in sets for text in one.texts]
    readable = np.linalg.norm(vectors, axis=1) > 0  # a text beyond the window is not looked up
    spaces = _spaces(sets, readable, seed=options.seed)
    verifier = load(minilm.REVISION)
    looked = {}
    for name, asked in spaces.items():
        looked[name] = looked_up(texts, vectors, asked, verifier)
        print(f"{name}: {len(looked[name])} requests", file=sys.stderr)
    unique = _unique(sets, readable, seed=options.seed)
    found: dict[str, Any] = {}
    for variant in variants(texts, kept=options.vectors, beside=options.beside):
        rows = variant.vectors()
        outcomes = {name: gated(rows, variant.tokens.blind, asked, looked[name]) for name, asked in spaces.items()}
        found[variant.name] = summary(outcomes)
        for kind in ("each set", "the entry itself"):
            least = found[variant.name]["thresholds"][kind]
            found[variant.name][f"lazy, {kind}"] = {
                name: lazily(rows, places, least) for name, places in unique.items()
            }
        print(_recall_table(variant.name, found[variant.name]), flush=True)
    return found


def _unique(sets: Sequence[Texts], readable: Bools, *, seed: int) -> dict[str, list[int]]:
    """Texts of which no two are said to be the same, in the order in which they are asked."""
    found: dict[str, list[int]] = {}
    begin = 0
    for one in sets:
        if one.name in _UNIQUE:
            paired = {text for pair in one.pairs for text in pair}
            alone = [begin + text for text in range(len(one.texts)) if text not in paired and readable[begin + text]]
            draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
            found[one.name] = draw.sample(alone, min(_LAZY, len(alone)))
        begin += len(one.texts)
    return found


def empty(folder: Path) -> dict[str, dict[str, float]]:
    """By set and profile: of look-ups, the share in a namespace without entries; of entries, those that stay alone."""
    found: dict[str, dict[str, float]] = {}
    for path in ("osschat_clusters/norm_clusters.jsonl", f"{_FILL}/norm_pairs.jsonl"):
        questions = cache_traffic.sample(cache_traffic.read(folder / path), 1_200, 0)
        for profile, shares in cache_traffic.PROFILES.items():
            looks, first, alone = 0, 0, 0
            for seed in range(3):
                asks = cache_traffic.stream(questions, [[] for _ in questions.texts], shares, requests=1_500, seed=seed)
                made = cache_policies.prepared(asks)
                places = dict(zip(made.exact.tolist(), made.scopes["eligible"].tolist(), strict=True)).values()
                kept = Counter(where for where in places if where >= 0)
                looks += kept.total()
                first += len(kept)
                alone += sum(1 for count in kept.values() if count == 1)
            found[f"{path.partition('/')[0]}, {profile}"] = {
                "look-ups": looks,
                "empty": round(first / looks, 3),
                "alone": round(alone / looks, 3),
            }
    return found


def _spaces(sets: Sequence[Texts], readable: Bools, *, seed: int) -> dict[str, list[Asked]]:
    fill = [place for place in range(len(sets[0].texts)) if readable[place]]
    found: dict[str, list[Asked]] = {}
    begin = 0
    for one in sets:
        for size in _SIZES:
            for alone in (False, True) if one.name in _BACKGROUND else (False,):
                if size > (_LARGE if one.name == _FILL or alone else len(one.texts)) and size > 10_000:
                    continue
                draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
                filling = [] if one.name == _FILL else [place - begin for place in fill]
                spaces = namespaces(one, filling, size, alone=alone, draw=draw)
                name = f"{one.name}{', foreign' if alone else ''}, {size:,}"
                found[name] = [
                    Asked(
                        [begin + place for place in space.stored if readable[begin + place]],
                        [begin + place for place in space.asked if readable[begin + place]],
                        frozenset(begin + place for place in space.alike),
                    )
                    for space in spaces
                ]
        begin += len(one.texts)
    return found


def _embedded(one: Texts, kept: Path) -> Floats:
    Vectors(kept, one.name).add(one.texts)
    stem = f"{one.name}-{hashlib.sha256(minilm.REVISION.encode()).hexdigest()[:12]}"
    with (kept / f"{stem}.jsonl").open(encoding="utf-8") as texts:
        place = {json.loads(text): at for at, text in enumerate(texts)}
    rows: Floats = np.load(kept / f"{stem}.npy", mmap_mode="r")[[place[text] for text in one.texts]]
    return rows


def _recall_table(name: str, found: dict[str, Any]) -> str:
    thresholds = found["thresholds"]
    kinds = ("each set", "all sets", "each set, .8")
    out = [f"\n{name}: thresholds " + ", ".join(f"{kind} {least:.3f}" for kind, least in thresholds.items())]
    out.append(
        f"{'':32}{'served':>7}{'unique':>7}"
        + "".join(f"{kind + ': recall, spared':>30}" for kind in kinds)
        + f"{'in hindsight':>14}"
    )
    for label, row in found["sets"].items():
        pairs = [(row[kind]["recall .8" if kind.endswith(".8") else "recall"], row[kind]["spared"]) for kind in kinds]
        cells = "".join(f"{_percent(kept):>22}{_percent(spared):>8}" for kept, spared in pairs)
        out.append(f"{label:32}{row['served']:7}{row['unique']:7}{cells}{_percent(row['in hindsight']):>14}")
    for kind in ("each set", "the entry itself"):
        for label, row in found[f"lazy, {kind}"].items():
            out.append(
                f"lazy at {thresholds[kind]:.3f}, {label}: "
                + ", ".join(f"{key} {value:.3g}" for key, value in row.items())
            )
    return "\n".join(out)


def _cost_row(row: dict[str, Any]) -> str:
    where = f"{row['entries']:8,} {row['traffic']:16}{row['path']:8}{row['hits']:7.1%}{row['passed']:8.1%}"
    return f"{where}{row['cpu']:9.3f}{row['a second']:10.0f}{row['miss p50']:14.3f}{row['gate p50']:14.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


# The labelled sets.


def read(folder: Path) -> list[Texts]:
    """The first is what the others are filled up with."""
    found = [_pairs(_FILL, folder / _FILL / "norm_pairs.jsonl", at_most=_PAIRS)]
    for name in ("banking77", "clinc150", "osschat_clusters"):
        texts = [str(row["text"]) for row in lines(folder / name / "norm_clusters.jsonl")]
        found.append(Texts(name, list(dict.fromkeys(texts)), []))
    found.append(_pairs("disfl_qa", folder / "disfl_qa/norm_pairs.jsonl"))
    conversations = lines(folder / "meancache_contextual/norm_multiturn_dup.jsonl")
    same = [(str(row[one]), str(row[f"{one}_duplicate"])) for row in conversations for one in ("u0", "u1")]
    found.append(_same("meancache_contextual", same))
    found.append(_pairs("simclue_zh", folder / "simclue_zh/norm_pairs.jsonl", at_most=6_000))
    found.append(Texts("llm_prompts", list(dict.fromkeys(_prompts(folder / "llm_prompts"))), []))
    found.append(Texts("search_queries", list(dict.fromkeys(_queries(folder / "search_queries"))), []))
    return found


def _pairs(name: str, path: Path, at_most: int | None = None) -> Texts:
    rows = [(str(row["a"]), str(row["b"]), int(str(row["label"]))) for row in lines(path)[:at_most]]
    same = [(a, b) for a, b, label in rows if label]
    return _same(name, same, more=[text for a, b, _ in rows for text in (a, b)])


def _same(name: str, same: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> Texts:
    texts = list(dict.fromkeys([*(text for pair in same for text in pair), *more]))
    place = {text: at for at, text in enumerate(texts)}
    return Texts(name, texts, [(place[a], place[b]) for a, b in same if a != b])


def _prompts(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for row in lines(path):
            turns = row.get("turns")
            if isinstance(turns, list):
                found.append(str(turns[0]["content"] if isinstance(turns[0], dict) else turns[0]))
            else:
                instances = row["instances"]
                given = instances[0]["input"] if isinstance(instances, list) else ""
                found.append(f"{row['instruction']}\n{given}".strip())
    return found


def _queries(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("topics.*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            left, _, right = line.partition("\t")
            found.append((right if left.strip().isdigit() else left).strip())
    return [text for text in found if text]


# Static models.


class Variant(NamedTuple):
    """A static model: a row a token. `quantised` is how rows of texts are kept."""

    name: str
    table: Floats
    tokens: "Tokens"
    quantised: str = ""

    def vectors(self) -> Floats:
        rows: Floats = self.tokens.sums(self.table)
        if self.quantised == "bits":
            rows = np.where(rows > 0, 1, -1).astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths > 0, lengths, 1)
        if self.quantised == "int8":
            scale = 127 / np.abs(rows).max(axis=1, keepdims=True).clip(1e-9)
            rows = (np.round(rows * scale) / scale).astype(np.float32)
        return rows


class Tokens:
    """The token ids of many texts, without the special ones. `blind` where a text has a token the table cannot know."""

    def __init__(self, path: Path, texts: Sequence[str]) -> None:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        unknown = tokenizer.token_to_id("[UNK]")
        encoded = [one.ids or [0] for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        self._starts = np.cumsum([0, *(len(ids) for ids in encoded)])
        self._flat = np.fromiter((one for ids in encoded for one in ids), np.int64, int(self._starts[-1]))
        self.counts = np.diff(self._starts)
        self.blind = np.array([unknown in ids or _foreign(text) for ids, text in zip(encoded, texts, strict=True)])

    def sums(self, table: Floats) -> Floats:
        found = np.empty((len(self.counts), table.shape[1]), np.float32)
        for at in range(0, len(found), 5_000):
            starts = self._starts[at : at + 5_001]
            found[at : at + 5_000] = np.add.reduceat(table[self._flat[starts[0] : starts[-1]]], starts[:-1] - starts[0])
        return found


def _foreign(text: str) -> bool:
    return not text.isascii() and any(one > "\u024f" and one.isalpha() for one in text)


def weighed(words: Floats, *, smoothing: float, dimensions: int) -> Floats:
    """As `static.token_vectors`, with another weight and other dimensions."""
    centred = words.astype(np.float64) - words.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    turned = centred @ axes[:, ::-1][:, :dimensions]
    frequency = 1.0 / np.arange(2, len(words) + 2)
    turned *= (smoothing / (smoothing + frequency / frequency.sum()))[:, None]
    return np.asarray(turned, np.float32)


def variants(texts: Sequence[str], *, kept: Path, beside: Path | None) -> list[Variant]:
    folder = minilm.build(report=lambda line: print(line, file=sys.stderr))
    tokens = Tokens(folder / "tokenizer.json", texts)
    words = load_file(minilm.source() / "model.safetensors")["embeddings.word_embeddings.weight"]
    shipped = np.load(static.build() / "table.npy").astype(np.float32)
    found = [
        Variant("shipped (256)", shipped, tokens),
        Variant("shipped, int8", shipped, tokens, "int8"),
        Variant("shipped, bits", shipped, tokens, "bits"),
        Variant("128", weighed(words, smoothing=1e-4, dimensions=128), tokens),
        Variant("64", weighed(words, smoothing=1e-4, dimensions=64), tokens),
        Variant("weight 1e-3", weighed(words, smoothing=1e-3, dimensions=256), tokens),
        Variant("weight 1e-5", weighed(words, smoothing=1e-5, dimensions=256), tokens),
    ]
    found.append(Variant("distilled", weighed(_through(folder, kept), smoothing=1e-4, dimensions=256), tokens))
    if beside is not None:
        other = np.load(beside / "table.npy").astype(np.float32)
        found.append(Variant(beside.name, other, Tokens(beside / "tokenizer.json", texts)))
    return found


def _through(folder: Path, kept: Path) -> Floats:
    """What the transformer makes of each token alone; half a minute once."""
    path = kept / f"tokens-{minilm.WEIGHTS_REVISION}.npy"
    if not path.exists():
        from backends.embedding.onnx import _Encoder
        from backends.embedding.recipe import Recipe

        recipe = Recipe(dimensions=minilm.DIMENSIONS, window=minilm.WINDOW)
        encoder = _Encoder(folder / "model.onnx", recipe, threads=1)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ends = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        rows = [encoder.encode([ends[0] or 0, one, ends[1] or 0]) for one in range(tokenizer.get_vocab_size())]
        np.save(path, np.stack(rows).astype(np.float32))
    found: Floats = np.load(path)
    return found


# Who is asked what.


def namespaces(one: Texts, fill: Sequence[int], size: int, *, alone: bool, draw: random.Random) -> Iterator[Asked]:
    """Namespaces of `size` entries of the set, then of `fill`, and requests of them. Of labelled pairs one side is
    stored and the other asked, and as many others are asked beside them; of classes some are stored and some asked.
    `alone`: the set is asked only, of the filling."""
    own = list(range(len(one.texts)))
    pairs = list(one.pairs)
    draw.shuffle(pairs)
    spaces = 20 if size <= 1_000 else 1
    for _ in range(spaces):
        draw.shuffle(own)
        stored: dict[int, None] = {}
        asked: dict[int, None] = {}
        while pairs and not alone and len(asked) < min(_ASKED // spaces, size):
            a, b = pairs.pop()
            if a not in stored and b not in asked:
                stored[b] = asked[a] = None
        more = _ASKED // spaces // (2 if one.pairs else 1)
        if not alone:
            more = min(more, len(own) // 3)
        others = [text for text in own if text not in stored and text not in asked]
        asked |= dict.fromkeys(others[:more])
        if not alone:
            stored |= dict.fromkeys(others[more : more + size - len(stored)])
        filling = [text for text in draw.sample(fill, min(size, len(fill))) if text not in asked]
        alike = [{a, b} & set(asked) for a, b in one.pairs if a in stored or b in stored]
        yield Asked([*stored, *filling[: size - len(stored)]], list(asked), frozenset().union(*alike))


# Both paths.


def looked_up(texts: Sequence[str], vectors: Floats, spaces: Sequence[Asked], verifier: Verifier) -> list[Looked]:
    """What the full path does with each request."""
    cut = verifier.cut()
    found = []
    for space in spaces:
        stored = np.array(space.stored)
        for at in range(0, len(space.asked), 250):
            asked = space.asked[at : at + 250]
            cosines = vectors[asked] @ vectors[stored].T
            best = np.argpartition(-cosines, _CANDIDATES, axis=1)[:, :_CANDIDATES]
            for row, text in enumerate(asked):
                places = best[row][np.argsort(-cosines[row, best[row]])]
                near = cosines[row, places].tolist()
                candidates = stored[places].tolist()
                served = judged(prepare(texts[text]), [prepare(texts[one]) for one in candidates], near, verifier, cut)
                own = None if served is None else candidates[served]
                unique = text not in space.alike and served is None
                found.append(Looked(text, own, near[0] >= _NEAR, unique, zlib.crc32(texts[text].encode()) % 2 == 0))
    return found


def judged(
    asked: Prepared, stored: Sequence[Prepared], cosines: Sequence[float], verifier: Verifier, cut: float
) -> int | None:
    """The place of the one that is served, as the semantic tier decides without a threshold of the user's."""
    likely = verifier.probabilities(asked, stored, cosines)
    for one in sorted(range(len(stored)), key=lambda one: (-likely[one], one)):
        if likely[one] >= cut and conflict(asked, stored[one]) is None:
            return one
    return None


def gated(rows: Floats, blind: Bools, spaces: Sequence[Asked], looked: Sequence[Looked]) -> Outcome:
    """What a static model thinks of the same requests."""
    nearest = []
    for space in spaces:
        stored = rows[space.stored]
        parts = (space.asked[at : at + 500] for at in range(0, len(space.asked), 500))
        nearest += [(rows[part] @ stored.T).max(axis=1) for part in parts]
    own = [np.nan if one.served is None else float(rows[one.text] @ rows[one.served]) for one in looked]
    return Outcome(
        np.array([one.served is not None for one in looked]),
        np.array([one.near for one in looked]),
        np.array([one.unique for one in looked]),
        np.where(blind[[one.text for one in looked]], np.float32(2), np.concatenate(nearest)),
        np.array(own, np.float32),
        np.array([one.first_half for one in looked]),
    )


def threshold(cosines: Sequence[NDArray[np.floating[Any]]]) -> float:
    """The highest at which each of these that has enough requests loses at most a hundredth."""
    kept = [np.sort(one)[int((1 - _RECALL) * len(one))] for one in cosines if len(one) >= _ENOUGH]
    return float(min(kept)) if kept else -1.0


def summary(found: dict[str, Outcome]) -> dict[str, Any]:
    """Thresholds are chosen on the first half of the requests, all else is of the second."""
    first = [one.nearest[one.served & one.first_half] for one in found.values()]
    thresholds = {
        "each set": threshold(first),
        "all sets": threshold([np.concatenate(first)]),
        "each set, .8": threshold([one.nearest[one.near & one.first_half] for one in found.values()]),
        "the entry itself": threshold(
            [np.concatenate([one.own[one.served & one.first_half] for one in found.values()])]
        ),
    }
    rows: dict[str, Any] = {}
    for name, one in found.items():
        served, near = one.served & ~one.first_half, one.near & ~one.first_half
        missed = one.unique & ~one.first_half
        row: dict[str, Any] = {"served": int(served.sum()), "near": int(near.sum()), "unique": int(missed.sum())}
        for kind, least in thresholds.items():
            row[kind] = {
                "recall": _share(one.nearest[served] >= least),
                "recall .8": _share(one.nearest[near] >= least),
                "spared": _share(one.nearest[missed] < least),
                "own": _share(one.own[served] >= least),
            }
        row["in hindsight"] = (
            _share(one.nearest[missed] < threshold([one.nearest[served]])) if served.sum() >= _ENOUGH else None
        )
        rows[name] = row
    return {"thresholds": thresholds, "sets": rows}


def _share(chosen: Bools) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def lazily(rows: Floats, texts: Sequence[int], least: float) -> dict[str, float]:
    """Unique requests one after the other, all kept, each stored entry embedded only when a request comes near it."""
    embedded = np.zeros(len(texts), bool)
    passed, most = 0, 0
    kept = rows[texts]
    for at in range(1, len(texts)):
        near = np.flatnonzero(kept[:at] @ kept[at] >= least)
        if len(near):
            passed += 1
            embedded[at] = True
            waiting = near[~embedded[near]]
            embedded[waiting] = True
            most = max(most, len(waiting))
    return {
        "requests": len(texts),
        "passed": passed / len(texts),
        "embeddings": float(embedded.mean()),
        "most in one request": most,
    }


# What it costs.


class World:
    """One namespace: the embedded store with its vectors, and the static ones beside it."""

    def __init__(
        self, store: FaissStore, embedder: OnnxEmbedder, words: StaticEmbedder, least: float, *, namespace: str
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._embedder = embedder
        self._words = words
        self._least = least
        self._verifier = load(minilm.REVISION)
        self._rows = Rows()
        self._waiting: dict[int, str] = {}
        self._number = 0
        self._prepared = lru_cache(10_000)(prepare)
        self.passed = 0
        self.gate = [0.0]

    async def fill(self, texts: Sequence[str], vectors: Floats) -> None:
        for at in range(0, len(texts), 500):
            batch = texts[at : at + 500]
            await asyncio.gather(*(self._write(text, vectors[at + one]) for one, text in enumerate(batch)))
            for row in await self._words.embed(batch, role="document"):
                self._remember(row)
        await self._store.indexed()

    async def full(self, text: str, missed: Callable[[], None]) -> bool:
        """Whether it is a hit. `missed` is called where the request would go upstream, and so by all paths."""
        self.passed += 1
        vector = await self._embed(text)
        if await self._served(text, vector):
            return True
        missed()
        await self._write(text, vector)
        return False

    async def gated(self, text: str, missed: Callable[[], None]) -> bool:
        row, near = await self._looked(text, limit=1)
        vector = None
        if near:
            self.passed += 1
            vector = await self._embed(text)
            if await self._served(text, vector):
                return True
        missed()
        await self._write(text, await self._embed(text) if vector is None else vector)
        self._remember(row)
        return False

    async def lazy(self, text: str, missed: Callable[[], None]) -> bool:
        row, near = await self._looked(text, limit=_MOST_WAITING)
        vector = None
        if near:
            self.passed += 1
            for stored in [self._waiting.pop(number) for number in near if number in self._waiting]:
                await self._write(stored, await self._embed(stored))
            vector = await self._embed(text)
            if await self._served(text, vector):
                return True
        missed()
        number = self._remember(row)
        if vector is None:
            self._waiting[number] = text
        else:
            await self._write(text, vector)
        return False

    async def _looked(self, text: str, *, limit: int) -> tuple[Floats, list[int]]:
        start = time.perf_counter()
        row: Floats = (await self._words.embed([text], role="query"))[0]
        found = closest(self._rows.view(), row, limit=limit, now=0.0)
        self.gate.append(time.perf_counter() - start)
        return row, [number for number, similarity in found if similarity >= self._least]

    def _remember(self, row: Floats) -> int:
        self._number += 1
        self._rows.add(self._number, row, math.inf)
        return self._number

    async def _embed(self, text: str) -> Floats:
        found: Floats = (await self._embedder.embed([text], role="query"))[0]
        return found

    async def _write(self, text: str, vector: Floats) -> None:
        await self._store.upsert(
            self._namespace, hashlib.sha256(text.encode()).hexdigest(), vector, text.encode(), ttl=None
        )

    async def _served(self, text: str, vector: Floats) -> bool:
        neighbors = await self._store.nearest(self._namespace, vector, limit=_CANDIDATES)
        stored = [self._prepared(neighbor.payload.decode()) for neighbor in neighbors]
        cosines = [neighbor.similarity for neighbor in neighbors]
        return judged(prepare(text), stored, cosines, self._verifier, self._verifier.cut()) is not None


async def costs(
    sets: dict[str, Texts], vectors: dict[str, Floats], least: float, sizes: Sequence[int], *, seed: int
) -> list[dict[str, Any]]:
    """Of each path: CPU time a request and wall time until a miss goes upstream, in ms."""
    embedder, words = OnnxEmbedder(), StaticEmbedder()
    await embedder.load()
    await words.load()
    found = []
    print(f"{'entries':>8} {'traffic':16}{'path':8}   hits  passed  CPU, ms  a second  miss p50, ms  gate p50, ms")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = FaissStore(path=Path(folder), dimensions=minilm.DIMENSIONS, revision=minilm.REVISION)
            await store.load()
            draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
            questions = sets[_FILL]
            pairs = draw.sample(questions.pairs, min(len(questions.pairs), 3_000))
            stored = dict.fromkeys(b for _, b in pairs[: size // 2])
            repeats = dict.fromkeys(a for a, _ in pairs[: size // 2] if a not in stored)
            known = {text for pair in questions.pairs if pair[0] in stored or pair[1] in stored for text in pair}
            others = [text for text in range(len(questions.texts)) if text not in known]
            draw.shuffle(others)
            chosen = [*stored, *others[: size - len(stored)]]
            filled = [questions.texts[one] for one in chosen], vectors[_FILL][chosen]
            asks = min(size, _TIMED)
            fresh = {
                _FILL: [questions.texts[one] for one in others[size - len(stored) :]],
                "search_queries": draw.sample(sets["search_queries"].texts, 4 * _TIMED),
            }
            again = [questions.texts[one] for one in repeats]
            world = World(store, embedder, words, least, namespace="")
            await world.fill(*filled)
            for traffic, share, source in _TRAFFIC:
                for path in ("full", "gated", "lazy"):
                    if size < _TIMED:  # what is kept would soon be most of it
                        world = World(store, embedder, words, least, namespace=f"{traffic}/{path}")
                        await world.fill(*filled)
                        draw.shuffle(again)
                    asked = [(again if draw.random() < share else fresh[source]).pop() for _ in range(asks)]
                    if size < _TIMED:
                        again = [questions.texts[one] for one in repeats]
                    row = await _timed(world, getattr(world, path), asked)
                    found.append({"entries": size, "traffic": traffic, "path": path} | row)
                    print(_cost_row(found[-1]), flush=True)
            await store.close()
    await embedder.close()
    return found


async def _timed(
    world: World, path: Callable[[str, Callable[[], None]], Coroutine[Any, Any, bool]], asked: Sequence[str]
) -> dict[str, float]:
    misses: list[float] = []
    hits = 0
    start = 0.0

    def missed() -> None:
        misses.append(time.perf_counter() - start)

    passed, world.gate = world.passed, []
    cpu = time.process_time()
    for text in asked:
        start = time.perf_counter()
        hits += await path(text, missed)
    cpu = (time.process_time() - cpu) / len(asked)
    return {
        "hits": hits / len(asked),
        "passed": (world.passed - passed) / len(asked),
        "cpu": cpu * 1e3,
        "a second": 1 / cpu,
        "miss p50": statistics.median(misses) * 1e3,
        "gate p50": statistics.median(world.gate or [0.0]) * 1e3,
    }


if __name__ == "__main__":
    raise SystemExit(main())
